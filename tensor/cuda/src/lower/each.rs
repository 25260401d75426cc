//! Elementwise functions with broadcasting, alone or several as one loop: a program of steps for `each.cu`.

use super::walk::Walk;
use super::{At, Given, LaunchShape, Launches, Site, Words, given};
use elastic_tensor::half::Half;
use elastic_tensor::ops::{Each, FUSED_OUTPUTS_MAX, FUSED_STEPS_MAX, Fused, FusedInput, FusedStep, IO_MAX};
use elastic_tensor::ops::{contiguous, repeated};

pub(super) fn each(f: Each, site: &Site<'_>, to: &mut Launches) {
    let x = std::array::from_fn(|i| if i < f.arity() { FusedInput::Given(i) } else { FusedInput::Nothing });
    run(&[FusedStep { f, x }], &[0], site, to);
}

pub(super) fn fused(op: &Fused, site: &Site<'_>, to: &mut Launches) {
    run(&op.steps, &op.outputs, site, to);
}

/// Threads of a block.
const THREADS: usize = 128;
/// Most blocks of a grid: enough for the largest GPU several times over.
const BLOCKS_MAX: usize = 8192;

fn run(steps: &[FusedStep], outputs: &[usize], site: &Site<'_>, to: &mut Launches) {
    let program = Program::of(steps, outputs);
    let shape = &site.out_types[0].shape;
    let inputs = site.types.iter().map(|ty| (0, repeated(shape, &ty.shape)));
    let operands: Vec<_> = std::iter::once((0, contiguous(shape))).chain(inputs).collect();
    for part in Walk::new(shape, &operands).cut() {
        let place = |at: &[At], i: usize, operand: usize| {
            at.get(i).map_or(site.call, |at| at.plus(part.operand(operand).start))
        };
        let y = (0..FUSED_OUTPUTS_MAX).map(|i| place(&site.y[..outputs.len()], i, 0));
        let x = (0..IO_MAX).map(|i| place(site.x, i, 1 + i));
        let blocks = part.chunks().div_ceil(THREADS).min(BLOCKS_MAX) as u32;
        // Each thread keeps four floats in a slot.
        let shared_bytes = program.slots * THREADS as u32 * 16;
        let launch = LaunchShape { grid: [blocks, 1, 1], block: [THREADS as u32, 1, 1], shared_bytes };
        let tensors = Given::Addresses(y.chain(x).collect());
        let arguments = given![tensors, program.words.clone(), part.words(1 + IO_MAX)];
        to.push("each", program.function, launch, arguments);
    }
}

/// Steps as the kernel reads them.
struct Program {
    function: &'static str,
    words: Words,
    slots: u32,
}

/// `enum Source` of the kernel.
const SLOT: u32 = 16;
const LAST: u32 = 254;
const NOTHING: u32 = 255;

impl Program {
    fn of(steps: &[FusedStep], outputs: &[usize]) -> Program {
        let kept = slots(steps);
        let mut words = Words::default();
        words.u32(steps.len() as u32).align();
        let mut function = "each";
        for (number, step) in steps.iter().enumerate() {
            let source = |x: FusedInput| match x {
                FusedInput::Given(i) => i as u32,
                FusedInput::Step(earlier) if earlier + 1 == number => LAST,
                FusedInput::Step(earlier) => SLOT + kept[earlier].expect("what is read later is kept"),
                FusedInput::Nothing => NOTHING,
            };
            let from = step.x.iter().rev().fold(0, |from, x| from << 8 | source(*x));
            let output = outputs.iter().position(|output| *output == number).map_or(NOTHING, |output| output as u32);
            let Coded { function: code, power_kind, p, q, power } = Coded::of(step.f);
            words.u32(code).u32(from).u32(kept[number].unwrap_or(NOTHING) << 8 | output);
            words.u32(power_kind).f32(p).f32(q).f64(power);
            if code == POW || code == POW_GRAD {
                function = "each_with_powers";
            }
        }
        (steps.len()..FUSED_STEPS_MAX).for_each(|_| {
            words.u32(0).u32(0).u32(0).u32(0).f32(0.0).f32(0.0).f64(0.0);
        });
        let slots = kept.iter().flatten().max().map_or(0, |last| last + 1);
        Program { function, words, slots }
    }
}

/// Where what a step makes is kept for steps behind the next one. A slot is free again after its last reader, which
/// itself may take it.
fn slots(steps: &[FusedStep]) -> Vec<Option<u32>> {
    let last_use = |made: usize| steps.iter().rposition(|step| step.x.contains(&FusedInput::Step(made)));
    let mut kept: Vec<Option<u32>> = Vec::new();
    let mut free_from: Vec<usize> = Vec::new();
    for number in 0..steps.len() {
        let slot = last_use(number).filter(|last| *last > number + 1).map(|last| {
            let slot = free_from.iter().position(|free| *free <= number).unwrap_or(free_from.len());
            free_from.resize(free_from.len().max(slot + 1), 0);
            free_from[slot] = last;
            slot as u32
        });
        kept.push(slot);
    }
    kept
}

/// A function by its number in `enum Function`, and what is fixed in it.
struct Coded {
    function: u32,
    power_kind: u32,
    p: f32,
    q: f32,
    power: f64,
}

const POW: u32 = 13;
const POW_GRAD: u32 = 32;

impl Coded {
    fn of(f: Each) -> Coded {
        let plain = |function| Coded { function, power_kind: 0, p: 0.0, q: 0.0, power: 0.0 };
        let with = |function, p: f64, q: f64| Coded { p: p as f32, q: q as f32, ..plain(function) };
        match f {
            Each::Detach => plain(0),
            Each::Neg => plain(1),
            Each::Abs => plain(2),
            Each::Exp => plain(3),
            Each::Ln => plain(4),
            Each::Sqrt => plain(5),
            Each::Tanh => plain(6),
            Each::Sigmoid => plain(7),
            Each::Silu => plain(8),
            Each::Relu => plain(9),
            Each::Not => plain(10),
            Each::Scale(factor) => with(11, factor, 0.0),
            Each::Shift(by) => with(12, by, 0.0),
            Each::Pow(power) => Coded { power_kind: power_kind(power), power, ..plain(POW) },
            Each::Clamp(low, high) => with(14, low, high),
            Each::Round(Half::Bf16) => plain(15),
            Each::Round(Half::F16) => plain(16),
            Each::Add => plain(17),
            Each::Sub => plain(18),
            Each::Mul => plain(19),
            Each::Div => plain(20),
            Each::Max => plain(21),
            Each::Min => plain(22),
            Each::Eq => plain(23),
            Each::Ne => plain(24),
            Each::Lt => plain(25),
            Each::Le => plain(26),
            Each::Gt => plain(27),
            Each::Ge => plain(28),
            Each::Where => plain(29),
            Each::AbsGrad => plain(30),
            Each::SiluGrad => plain(31),
            // 0 even where x is NaN.
            Each::PowGrad(0.0) => plain(38),
            Each::PowGrad(power) => {
                let below = power - 1.0;
                Coded { power_kind: power_kind(below), power: below, ..with(POW_GRAD, power, 0.0) }
            }
            Each::ClampGrad(low, high) => with(33, low, high),
            Each::SqrtGrad => plain(34),
            Each::TanhGrad => plain(35),
            Each::SigmoidGrad => plain(36),
            Each::ReluGrad => plain(37),
        }
    }
}

/// `enum PowerKind`: as `Real::pow` of f32 tells powers apart.
fn power_kind(power: f64) -> u32 {
    let is_whole = power == power.floor();
    match (is_whole && power.abs() <= 64.0, is_whole && power.is_finite()) {
        (true, _) => 0,
        (_, false) => 1,
        (_, true) if power % 2.0 == 0.0 => 3,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use FusedInput::{Given, Nothing, Step};

    #[test]
    fn what_only_the_next_step_reads_takes_no_slot_and_slots_are_used_again() {
        let step = |a, b| FusedStep { f: Each::Add, x: [a, b, Nothing] };
        let chain = [step(Given(0), Given(1)), step(Step(0), Given(0)), step(Step(1), Step(1))];
        assert_eq!(slots(&chain), [None; 3]);
        // 0 is read by 2, which frees its slot for itself, to be read by 4.
        let far = [
            step(Given(0), Given(0)),
            step(Given(1), Given(1)),
            step(Step(0), Step(1)),
            step(Step(2), Step(2)),
            step(Step(2), Step(3)),
        ];
        assert_eq!(slots(&far), [Some(0), None, Some(0), None, None]);
        let two = [step(Given(0), Given(0)), step(Given(1), Given(1)), step(Step(1), Step(1)), step(Step(0), Step(1))];
        assert_eq!(slots(&two), [Some(0), Some(1), None, None]);
    }
}
