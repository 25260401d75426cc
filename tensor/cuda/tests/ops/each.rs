//! Elementwise functions with broadcasting: every one of them with special numbers, and programs of several as one loop.

use crate::case::{Input, check, floats, given, special};
use elastic_tensor::half::Half;
use elastic_tensor::ops::*;
use elastic_tensor::philox::Stream;

const ONE: [Each; 20] = [
    Each::Detach,
    Each::Neg,
    Each::Abs,
    Each::Exp,
    Each::Ln,
    Each::Sqrt,
    Each::Tanh,
    Each::Sigmoid,
    Each::Silu,
    Each::Relu,
    Each::Not,
    Each::Scale(0.1),
    Each::Scale(-1e300),
    Each::Shift(-2.5),
    Each::Clamp(-0.5, 0.75),
    Each::Clamp(0.0, 1e300),
    Each::Round(Half::Bf16),
    Each::Round(Half::F16),
    Each::Pow(3.0),
    Each::Pow(-0.5),
];

const TWO: [Each; 23] = [
    Each::Add,
    Each::Sub,
    Each::Mul,
    Each::Div,
    Each::Max,
    Each::Min,
    Each::Eq,
    Each::Ne,
    Each::Lt,
    Each::Le,
    Each::Gt,
    Each::Ge,
    Each::AbsGrad,
    Each::SiluGrad,
    Each::PowGrad(2.0),
    Each::PowGrad(0.0),
    Each::PowGrad(1.0),
    Each::PowGrad(-1.7),
    Each::ClampGrad(-0.5, 0.75),
    Each::SqrtGrad,
    Each::TanhGrad,
    Each::SigmoidGrad,
    Each::ReluGrad,
];

/// Numbers that functions bend at, and others of every size.
fn values() -> Vec<f32> {
    let ends =
        [0.0, 1e-45, 1e-40, f32::MIN_POSITIVE, 6.1e-5, 0.25, 0.5, 0.625, 0.75, 1.0, 1.5, 2.0, 9.02, 65_520.0, 87.7];
    let all = ends.into_iter().chain([88.37, f32::MAX, f32::INFINITY]).flat_map(|x| [x, -x]);
    all.chain([f32::NAN]).collect()
}

/// Floats with random bits: every size, NaNs among them.
fn bits(count: usize) -> Input {
    let stream = Stream::new(5, "bits");
    given(&[count], (0..count).map(|i| f32::from_bits(stream.words([i as u32, 0, 0, 0])[0])).collect())
}

#[test]
fn functions_of_one_number() {
    for f in ONE {
        check(Op::Each(f), &[given(&[values().len()], values())]);
        check(Op::Each(f), &[bits(10_007)]);
        check(Op::Each(f), &[floats(&[3, 5, 67])]);
    }
}

#[test]
fn functions_of_two_numbers() {
    let count = values().len();
    for f in TWO {
        check(Op::Each(f), &[given(&[count, 1], values()), given(&[count], values())]);
        check(Op::Each(f), &[floats(&[1009]), special(&[1009])]);
        check(Op::Each(f), &[special(&[64]), floats(&[64])]);
    }
}

#[test]
fn a_choice_between_two_leaves_no_trace_of_the_other() {
    let count = values().len();
    let (a, b) = (given(&[count, 1, 1], values()), given(&[count, 1], values()));
    check(Op::Each(Each::Where), &[a, b, given(&[count], values())]);
    check(Op::Each(Each::Where), &[special(&[5, 1, 7]), floats(&[1, 3, 7]), floats(&[5, 3, 1])]);
}

/// Whole powers, those around the largest that goes by squaring, and others: fractions, odd and even, so large that only
/// numbers next to 1 stay finite, infinite, and none.
const POWERS: [f64; 44] = [
    0.0,
    1.0,
    2.0,
    3.0,
    7.0,
    63.0,
    64.0,
    -1.0,
    -2.0,
    -3.0,
    -64.0, // by squaring
    65.0,
    66.0,
    -65.0,
    -66.0,
    101.0,
    1000.0,
    -1001.0, // whole
    0.5,
    -0.5,
    1.5,
    2.5,
    1.0 / 3.0,
    -1.0 / 3.0,
    0.1,
    1e-3,
    -1e-9,
    1e-300,
    6.02,
    63.5,
    -17.25,
    123.456, // fractions
    2147483648.0,
    2147483649.0,
    -4e9,
    3e12,
    1e15,
    -1.5e16,
    4e19,
    -1e300, // next to 1
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    12345.678,
];

#[test]
fn powers_have_the_bits_of_the_processors() {
    let near_one = (-40..=40).flat_map(|ulps: i32| {
        let near = f32::from_bits(1.0f32.to_bits().wrapping_add_signed(ulps));
        [near, -near]
    });
    let steps = (0..200).map(|i| 0.01 * i as f32 + 0.5);
    let x: Vec<f32> = values().into_iter().chain(near_one).chain(steps).collect();
    for power in POWERS {
        check(Op::Each(Each::Pow(power)), &[given(&[x.len()], x.clone())]);
        check(Op::Each(Each::Pow(power)), &[bits(4_001)]);
        check(Op::Each(Each::PowGrad(power)), &[given(&[x.len(), 1], x.clone()), given(&[2], vec![1.0, -0.3])]);
    }
}

#[test]
fn shapes_broadcast() {
    for shapes in [
        [&[][..], &[]],
        [&[1], &[]],
        [&[0, 1], &[1, 3]],
        [&[3, 0, 5], &[5]],
        [&[7], &[5, 1]],
        [&[2, 3, 5], &[3, 1]],
        [&[2, 1, 5], &[3, 1]],
        [&[3, 8], &[8]],
        [&[3, 1, 8], &[1, 5, 8]],
        [&[3, 5, 8], &[3, 1, 8]],
        [&[13, 4, 1, 12], &[13, 1, 3, 1]],
        [&[2, 3, 1, 7], &[3, 5, 1]],
        [&[2, 1, 3, 1, 5], &[1, 7, 1, 2, 1]],
        [&[2, 3, 2, 3, 5], &[2, 1, 2, 1, 5]],
        [&[1, 2, 1, 3, 1, 2, 1, 4], &[2, 1, 2, 1, 3, 1, 5, 1]],
        [&[31, 1], &[37]],
        [&[131, 64], &[64]],
    ] {
        let [a, b] = shapes.map(floats);
        check(Op::Each(Each::Sub), &[a.clone(), b.clone()]);
        check(Op::Each(Each::Sub), &[b, a]);
    }
}

/// A random program: each step takes inputs and earlier steps, and up to three steps are outputs, the last among them.
fn program(seed: u64, shape: &[usize], inputs: usize) -> Fused {
    let (stream, mut drawn) = (Stream::new(seed, "program"), 0);
    let mut draw = |below: usize| {
        drawn += 1;
        stream.words([drawn, 0, 0, 0])[0] as usize % below
    };
    let count = [16, 1, 2, 5, 9][seed as usize % 5];
    let mut steps = Vec::new();
    for number in 0..count {
        // Powers now and then: they are a kernel of their own.
        let f = match draw(3) {
            0 => ONE[draw(if seed.is_multiple_of(3) { ONE.len() } else { ONE.len() - 2 })],
            1 => [Each::Add, Each::Mul, Each::Sub, Each::Max, Each::TanhGrad, Each::Lt][draw(6)],
            _ => Each::Where,
        };
        let mut operand = || match draw(inputs + number) {
            i if i < inputs => FusedInput::Given(i),
            i => FusedInput::Step(i - inputs),
        };
        let x = std::array::from_fn(|i| if i < f.arity() { operand() } else { FusedInput::Nothing });
        steps.push(FusedStep { f, x });
    }
    let mut outputs = vec![count - 1];
    while outputs.len() < 1 + seed as usize % 3 && outputs.len() < count {
        let other = draw(count);
        if !outputs.contains(&other) {
            outputs.push(other);
        }
    }
    Fused { shape: shape.to_vec(), steps, outputs }
}

#[test]
fn programs_of_many_steps_run_as_one_loop() {
    for seed in 0..60 {
        let shape: &[usize] = [&[3, 5, 7][..], &[4, 6, 8], &[1], &[2, 3, 0], &[517], &[2, 3, 5, 4]][seed as usize % 6];
        let mut x = vec![floats(shape), special(shape), floats(&[]), floats(&shape[shape.len() - 1..])];
        x.extend((0..4).map(|_| special(&[&[1][..], &shape[1..]].concat())));
        x.truncate(1 + seed as usize % 8);
        check(Op::Fused(program(seed, shape, x.len())), &x);
    }
}

#[test]
fn all_inputs_outputs_and_steps_at_once() {
    let x: Vec<Input> = (1..=8).map(|i| floats(if i % 2 == 0 { &[7, 12] } else { &[12] })).collect();
    let step = |f, x| FusedStep { f, x };
    // Sums of neighbours first, which then wait for their readers in reverse.
    let sum = |i| step(Each::Add, [FusedInput::Given(i), FusedInput::Given((i + 1) % 8), FusedInput::Nothing]);
    let join = |i: usize| step(Each::Where, [FusedInput::Given(i), FusedInput::Step(7 - i), FusedInput::Step(7 + i)]);
    let steps: Vec<FusedStep> = (0..8).map(sum).chain((0..8).map(join)).collect();
    check(Op::Fused(Fused { shape: vec![7, 12], steps, outputs: vec![3, 15, 12] }), &x);
}
