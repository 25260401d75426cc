//! Products on tensor cores against the processor's in bf16.
//!
//! Both add the same products, which are exact in f32, in f32, each in its own order: a sum of k products is off by at
//! most k roundings of 2^-24 of the sum of their sizes, and so the two are apart by at most twice that. The sum of
//! sizes is what the processor gives for inputs without signs.

use crate::case::{CALL, Call, Case, Input, bytes_of, floats, given, random, run_program};
use crate::conv::{SIZES, Sizes};
use elastic_cuda::lower::gemm_bf16::{Gemm, Operand, Stored, Way};
use elastic_cuda::lower::{At, Launches, Region};
use elastic_cuda::program::Program;
use elastic_spec::job::Dtype;
use elastic_tensor::mixed::Mixed;
use elastic_tensor::ops::*;
use std::collections::BTreeMap;

fn without_signs(input: &Input) -> Input {
    match input {
        Input::Floats { shape, values } => given(shape, values.iter().map(|x| x.abs()).collect()),
        ints => ints.clone(),
    }
}

/// The op's output is that of the processor but for the order of sums of `terms` terms.
fn near(call: Call, terms: usize, op: Op, inputs: &[Input]) {
    let case = Case::new(call, op.clone(), inputs);
    if case.is_left_out() {
        return;
    }
    let (got, wanted) = (case.on_gpu(Dtype::Bf16), case.on_processor::<Mixed>());
    let sizes: Vec<Input> = inputs.iter().map(without_signs).collect();
    let sizes = Case::new(call, op, &sizes).on_processor::<Mixed>();
    for (i, ((got, wanted), size)) in got.iter().zip(&wanted).zip(&sizes).enumerate() {
        // A denormal number is a zero to the processor.
        let bound = (terms + 2) as f32 * f32::EPSILON * size + 1e-36;
        let is_near = (got - wanted).abs() <= bound || got == wanted || (got.is_nan() && wanted.is_nan());
        assert!(is_near, "{}: number {i} is {got:e}, not {wanted:e} within {bound:e}", case.what());
    }
}

fn matrix(rows: usize, columns: usize, is_transposed: bool) -> Input {
    floats(&if is_transposed { [columns, rows] } else { [rows, columns] })
}

#[test]
fn matrices_are_multiplied_however_they_are_stored() {
    for (m, n, k) in [(1, 1, 1), (7, 13, 5), (64, 64, 32), (65, 67, 33), (130, 24, 100), (3, 516, 48), (150, 613, 37)] {
        for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
            let op = Op::MatMul(MatMul { a_transposed, b_transposed });
            near(CALL, k, op, &[matrix(m, k, a_transposed), matrix(k, n, b_transposed)]);
        }
    }
}

#[test]
fn each_of_a_batch_is_multiplied_by_itself() {
    let (batch, m, n, k) = (3, 33, 70, 41);
    for (a_transposed, b_transposed) in [(false, false), (false, true), (true, false), (true, true)] {
        let a = if a_transposed { [batch, k, m] } else { [batch, m, k] };
        let b = if b_transposed { [batch, n, k] } else { [batch, k, n] };
        let op = || Op::BatchMatMul(BatchMatMul { a_transposed, b_transposed });
        near(CALL, k, op(), &[floats(&a), floats(&b)]);
        near(CALL, k, op(), &[floats(&[0, a[1], a[2]]), floats(&[0, b[1], b[2]])]);
    }
    // More than a grid has along one axis.
    near(CALL, 1, Op::BatchMatMul(BatchMatMul::default()), &[floats(&[65_537, 1, 1]), floats(&[65_537, 1, 2])]);
}

#[test]
fn a_linear_layer_adds_its_bias_last() {
    for (rows, out, inner) in [(1, 10, 3), (70, 600, 64), (5, 7, 0), (0, 4, 4)] {
        let inputs = [floats(&[rows, inner]), floats(&[out, inner]), floats(&[out])];
        near(CALL, inner, Op::Linear(Linear), &inputs);
        near(CALL, inner, Op::Linear(Linear), &inputs[..2]);
    }
    near(CALL, 9, Op::Linear(Linear), &[floats(&[2, 3, 9]), floats(&[4, 9]), floats(&[4])]);
}

#[test]
fn what_is_not_finite_stays_in_its_row_and_column() {
    let mut a = random("a", 40 * 70);
    let mut b = random("b", 70 * 20);
    (a[3], a[4], a[5], a[6]) = (-0.0, 1e-40, 3.4e38, -1e-45);
    (a[70], a[141], a[2100]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
    (b[5], b[1399], b[47]) = (f32::NAN, f32::INFINITY, 0.0);
    near(CALL, 70, Op::MatMul(MatMul::default()), &[given(&[40, 70], a), given(&[70, 20], b)]);
}

/// What the tests' GPU gives; each run is two, which have the same bits.
fn on_gpu(call: Call, op: Op, inputs: &[Input]) -> Vec<f32> {
    Case::new(call, op, inputs).on_gpu(Dtype::Bf16)
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let (rows, inner) = (131, 70);
    for out in [24, 530] {
        let (x, w, bias) = (random("x", rows * inner), floats(&[out, inner]), floats(&[out]));
        let some = |rows: std::ops::Range<usize>| {
            let x = given(&[rows.len(), inner], x[rows.start * inner..rows.end * inner].to_vec());
            on_gpu(CALL, Op::Linear(Linear), &[x, w.clone(), bias.clone()])
        };
        let all = some(0..rows);
        for part in [0..1, 67..68, 130..131, 60..129] {
            assert_eq!(bits(&some(part.clone())), bits(&all[part.start * out..part.end * out]), "rows {part:?}");
        }
    }
}

/// A product made one way.
fn by(way: Way, gemm: Gemm, inputs: &[f32]) -> Vec<f32> {
    let mut launches = Launches::default();
    gemm.launch_by(way, At::start(Region::Out), &mut launches);
    let out = vec![0xff; 4 * gemm.batches * gemm.m * gemm.n];
    let contents = BTreeMap::from([(Region::State, bytes_of(inputs)), (Region::Out, out)]);
    run_program(&Program::of_launches(launches), contents).unwrap_or_else(|error| panic!("{way:?}: {error}"))
}

#[test]
fn every_way_to_make_a_product_gives_the_same_bits() {
    // Rows of 8 numbers and of others, at places that 16 bytes divide and at others.
    for (m, n, k, batches, first) in
        [(1, 1, 1, 1, 0), (150, 264, 40, 1, 0), (129, 257, 100, 2, 1), (40, 20, 33, 3, 3), (136, 264, 200, 1, 0)]
    {
        let (a_len, b_len) = (batches * m * k, batches * k * n);
        let inputs = random("inputs", first + a_len + b_len + n);
        let at = |number| At::start(Region::State).plus(number);
        for stored in [false, true].into_iter().flat_map(|a| [false, true].map(|b| [a, b].map(Stored::of))) {
            let a = Operand { at: at(first), stored: stored[0] };
            let b = Operand { at: at(first + a_len), stored: stored[1] };
            let gemm = Gemm { a, b, bias: Some(at(first + a_len + b_len)), m, n, k, batches };
            let [small, others @ ..] = Way::ALL.map(|way| bits(&by(way, gemm, &inputs)));
            for (way, other) in Way::ALL[1..].iter().zip(others) {
                assert!(small == other, "{way:?} of {gemm:?}");
            }
        }
    }
}

/// Leaves of the shards, each in a run of its own, added along the tree.
fn by_leaves(shards: usize, dy: &[f32], x: &[f32], (rows, out, inner): (usize, usize, usize)) -> Vec<f32> {
    let leaves = (0..shards)
        .map(|shard| {
            let dy = given(&[rows, out], dy[shard * rows * out..][..rows * out].to_vec());
            let x = given(&[rows, inner], x[shard * rows * inner..][..rows * inner].to_vec());
            on_gpu(CALL, Op::LinearGradWeight(LinearGradWeight), &[dy, x])
        })
        .collect();
    added(leaves)
}

/// Leaves added along the tree.
fn added(mut leaves: Vec<Vec<f32>>) -> Vec<f32> {
    while leaves.len() > 1 {
        let add = |pair: &[Vec<f32>]| pair[0].iter().zip(&pair[1]).map(|(a, b)| a + b).collect();
        leaves = leaves.chunks_exact(2).map(add).collect();
    }
    leaves.swap_remove(0)
}

#[test]
fn a_weights_gradient_is_the_trees_sum_of_the_shards_leaves() {
    for (shards, rows, out, inner) in [(1, 70, 40, 30), (2, 33, 65, 7), (8, 5, 20, 530), (8, 40, 3, 68)] {
        let (dy, x) = (random("dy", shards * rows * out), random("x", shards * rows * inner));
        let call = Call { shards, ..CALL };
        let inputs = [given(&[shards * rows, out], dy.clone()), given(&[shards * rows, inner], x.clone())];
        let together = on_gpu(call, Op::LinearGradWeight(LinearGradWeight), &inputs);
        let apart = by_leaves(shards, &dy, &x, (rows, out, inner));
        assert_eq!(bits(&together), bits(&apart), "{shards} shards of {rows} rows");
        near(call, shards * rows, Op::LinearGradWeight(LinearGradWeight), &inputs);
    }
}

#[test]
fn leaves_that_do_not_fit_in_the_room_at_once_climb_the_same_tree() {
    // Products of one row are exact, so leaves and their sum have the processor's bits.
    let (shards, side) = (8, 1500);
    let inputs = [floats(&[shards, side]), floats(&[shards, side])];
    let case = Case::new(Call { shards, ..CALL }, Op::LinearGradWeight(LinearGradWeight), &inputs);
    case.same_bits(0, &case.on_gpu(Dtype::Bf16), &case.on_processor::<Mixed>());
}

/// Of more planes than a tile of 64 has, and of more points and taps than fit in any tile.
const MANY_PLANES: Sizes = Sizes::of([3, 18, 15, 14], [70, 3, 3], 1, 1);
const MANY_PARTS: Sizes = Sizes::of([3, 70, 13, 14], [20, 3, 3], 2, 1);

#[test]
fn convolutions_and_their_inputs_gradients() {
    for s in SIZES.into_iter().chain([MANY_PLANES, MANY_PARTS]) {
        let (x, w, dy) = (floats(&s.image()), floats(&s.weight()), floats(&s.out()));
        near(CALL, s.inner * s.kh * s.kw, s.forward(), &[x.clone(), w.clone()]);
        near(CALL, s.inner * s.kh * s.kw, s.forward(), &[x, w.clone(), floats(&[s.outer])]);
        near(CALL, s.outer * s.kh * s.kw, s.grad_input(), &[w, dy]);
    }
}

#[test]
fn gradients_of_convolutions_weights() {
    for s in SIZES.into_iter().chain([MANY_PLANES]) {
        for shards in [1, 2, 8] {
            let s = Sizes { samples: shards * s.samples, ..s };
            let terms = s.out().iter().product::<usize>() / s.outer;
            near(Call { shards, ..CALL }, terms, s.grad_weight(), &[floats(&s.image()), floats(&s.out())]);
        }
    }
}

#[test]
fn an_image_has_the_same_bits_alone_and_among_others() {
    for s in [MANY_PLANES, MANY_PARTS, SIZES[8]] {
        let s = Sizes { samples: 3, ..s };
        let [x, dy] = [s.image(), s.out()].map(|shape| random("image", shape.iter().product()));
        let run = |samples: std::ops::Range<usize>| {
            let alone = Sizes { samples: samples.len(), ..s };
            let of = |all: &[f32], shape: &[usize]| {
                let len = all.len() / 3;
                given(shape, all[samples.start * len..samples.end * len].to_vec())
            };
            let w = floats(&s.weight());
            let y = on_gpu(CALL, alone.forward(), &[of(&x, &alone.image()), w.clone()]);
            let dx = on_gpu(CALL, alone.grad_input(), &[w, of(&dy, &alone.out())]);
            [y, dx]
        };
        let all = run(0..3);
        for sample in 0..3 {
            for (alone, all) in run(sample..sample + 1).iter().zip(&all) {
                let len = all.len() / 3;
                assert_eq!(bits(alone), bits(&all[sample * len..][..len]), "sample {sample}");
            }
        }
    }
}

#[test]
fn a_convolutions_weight_gradient_is_the_trees_sum_of_the_shards_leaves() {
    let (shards, alone) = (4, Sizes { samples: 2, ..MANY_PLANES });
    let together = Sizes { samples: shards * alone.samples, ..alone };
    let [x, dy] = [together.image(), together.out()].map(|shape| random("image", shape.iter().product()));
    let inputs = [given(&together.image(), x.clone()), given(&together.out(), dy.clone())];
    let sum = on_gpu(Call { shards, ..CALL }, together.grad_weight(), &inputs);
    let leaf = |shard: usize| {
        let of = |all: &[f32], shape: &[usize]| {
            let len = all.len() / shards;
            given(shape, all[shard * len..][..len].to_vec())
        };
        on_gpu(CALL, alone.grad_weight(), &[of(&x, &alone.image()), of(&dy, &alone.out())])
    };
    let leaves: Vec<Vec<f32>> = (0..shards).map(leaf).collect();
    assert_eq!(bits(&sum), bits(&added(leaves)));
}
