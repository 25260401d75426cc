//! Numerical traps, one test each. docs/numerics.md has the table with the reasons.

use crate::common::{Build, Case, Ints, apply, random};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::Optimizer;
use elastic_tensor::nn::{Module, Scope, Table};
use elastic_tensor::ops::*;
use elastic_tensor::{Init, LeafKey, Network, Tensor, Update, compile};

fn case(shapes: &[&[usize]], build: Build) -> Case {
    Case { shapes: shapes.iter().map(|s| s.to_vec()).collect(), ints: Ints::default(), smoothing: 0.0, build }
}

const RELU: Build = |g, x, _| apply(g, Op::Relu(Relu), x);
const GELU: Build = |g, x, _| apply(g, Op::Gelu(Gelu), x);
const POOL: Build = |g, x, _| apply(g, Op::MaxPool(MaxPool { kernel: 2, stride: 2 }), x);
const LAYER_NORM: Build = |g, x, _| apply(g, Op::LayerNorm(LayerNorm { eps: 1e-5 }), x);
const LOSS: Build = |g, x, ints| apply(g, Op::CrossEntropy(CrossEntropy), &[x[0], ints]);
const HITS: Build = |g, x, ints| Ok(g.apply(Op::CrossEntropy(CrossEntropy), "test", &[x[0], ints])?[2]);
const EMBEDDING: Build = |g, x, ints| apply(g, Op::Embedding(Embedding), &[x[0], ints]);

#[test]
fn a_nan_passes_relu_and_gelu_and_their_gradients() {
    for build in [RELU, GELU] {
        // Long enough for vectors and a tail; the NaN wanders through both.
        for at in [0, 7, 31, 36] {
            let mut x = random("x", 37);
            x[at] = f64::NAN;
            let out = case(&[&[37]], build).run::<f32>(&[x], &[1.0; 37]);
            for (i, (y, dx)) in out.y.iter().zip(&out.dx[0]).enumerate() {
                assert_eq!(y.is_nan(), i == at, "value {i} with a NaN at {at}: {y}");
                let passes = if i == at { dx.is_nan() || *dx == 1.0 } else { !dx.is_nan() };
                assert!(passes, "gradient {i} with a NaN at {at}: {dx}");
            }
        }
    }
}

#[test]
fn a_nan_wins_its_max_pool_window_and_gets_its_gradient() {
    for at in 0..4 {
        let mut x = vec![1.0, 2.0, 3.0, 4.0];
        x[at] = f64::NAN;
        let out = case(&[&[1, 1, 2, 2]], POOL).run::<f32>(&[x], &[5.0]);
        assert!(out.y[0].is_nan());
        assert_eq!(out.dx[0], std::array::from_fn::<f32, 4, _>(|i| if i == at { 5.0 } else { 0.0 }));
    }
}

#[test]
fn a_nan_spoils_its_own_row_of_a_layer_norm_and_no_other() {
    let mut x = random("x", 3 * 9);
    x[9 + 4] = f64::NAN;
    let ones = vec![1.0; 9];
    let out = case(&[&[3, 9], &[9], &[9]], LAYER_NORM).run::<f32>(&[x, ones.clone(), ones], &[1.0; 27]);
    for (i, (y, dx)) in out.y.iter().zip(&out.dx[0]).enumerate() {
        assert_eq!((y.is_nan(), dx.is_nan()), (i / 9 == 1, i / 9 == 1), "element {i}: {y}, {dx}");
    }
}

#[test]
fn a_nan_among_the_logits_makes_the_loss_and_its_row_of_the_gradient_nan() {
    for at in [0, 1, 20, 36] {
        let mut x = random("x", 2 * 37);
        x[37 + at] = f64::NAN;
        let mut case = case(&[&[2, 37]], LOSS);
        case.ints = Ints::new(&[2], &[3, 5]);
        let out = case.run::<f32>(&[x], &[1.0; 2]);
        assert!(!out.y[0].is_nan() && out.y[1].is_nan(), "a NaN at {at}: losses {:?}", out.y);
        assert!(out.dx[0][..37].iter().all(|dx| dx.is_finite()), "the row without it is whole");
        assert!(out.dx[0][37..].iter().all(|dx| dx.is_nan()), "softmax divides by the sum of the whole row");
    }
}

#[test]
fn a_nan_in_a_key_spoils_the_queries_that_see_it_and_no_earlier_one() {
    let (tokens, width) = (40, 8);
    let build: Build = |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x);
    let mut x = random("x", tokens * 3 * width);
    let spoilt = 11;
    // The first number of the second head's key.
    x[spoilt * 3 * width + width + width / 2] = f64::NAN;
    let out = case(&[&[1, tokens, 3 * width]], build).run::<f32>(&[x], &vec![1.0; tokens * width]);
    for (i, y) in out.y.iter().enumerate() {
        let (token, head) = (i / width, i % width / (width / 2));
        assert_eq!(y.is_nan(), token >= spoilt && head == 1, "token {token}, head {head}: {y}");
    }
}

#[test]
fn gelu_of_large_numbers_is_the_number_or_zero() {
    for large in [20.0, 1e4, 1e12, 1e13, 1e20, 3e38] {
        let out = case(&[&[2]], GELU).run::<f32>(&[vec![large, -large]], &[1.0; 2]);
        // Their cubes are infinite from 7e12 on; tanh makes ones of them.
        assert_eq!(out.y, [large as f32, 0.0], "at {large}");
        // x² overflows from 1e19 on, and nothing times infinity is NaN there, in PyTorch too.
        if large < 1e19 {
            assert_eq!(out.dx[0], [1.0, 0.0], "gradient at {large}");
        }
    }
}

#[test]
fn the_first_of_equal_logits_is_the_guess() {
    let mut case = case(&[&[4, 40]], HITS);
    // Twice the largest: 3 and 30 in every row.
    let row: Vec<f64> = (0..40).map(|i| if i % 27 == 3 { 2.0 } else { -1.0 }).collect();
    case.ints = Ints::new(&[4], &[3, 30, IGNORE, 3]);
    assert_eq!(case.run::<f32>(&[row.repeat(4)], &[]).y, [1.0, 0.0, 0.0, 1.0]);
}

#[test]
fn the_first_of_equal_values_gets_all_of_a_max_pools_gradient() {
    let out = case(&[&[1, 2, 2, 2]], POOL).run::<f32>(&[vec![1.0, 7.0, 7.0, 7.0, 0.0, 0.0, 0.0, 0.0]], &[3.0, 4.0]);
    assert_eq!(out.y, [7.0, 0.0]);
    assert_eq!(out.dx[0], [0.0, 3.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0]);
    let out = case(&[&[1, 1, 2, 2]], POOL).run::<f32>(&[vec![-0.0, 0.0, 0.0, -0.0]], &[1.0]);
    assert_eq!(out.dx[0], [1.0, 0.0, 0.0, 0.0], "zeros of either sign are equal");
}

/// An embedding, a norm, and the table once more as the output layer.
struct Tied;

impl Module for Tied {
    fn forward(&self, nn: &Scope, tokens: Tensor) -> elastic_tensor::Result<Tensor> {
        let table = Table { rows: nn.outputs(), width: 8, init: Init::Normal { std: 0.5 } };
        let (x, table) = nn.embedding("table", &tokens, table)?;
        nn.layer_norm("norm", &x)?.linear_with(&table)
    }
}

/// Batch norm, dropout, a linear layer.
struct Image;

impl Module for Image {
    fn forward(&self, nn: &Scope, x: Tensor) -> elastic_tensor::Result<Tensor> {
        let x = x.reshape(&[x.shape()[0], 1, 4, 4])?;
        let x = nn.batch_norm("norm", &x)?.relu();
        let x = nn.dropout("drop", &x, 0.5)?;
        nn.linear("out", &x.flatten()?, nn.outputs())
    }
}

const TEXT: DataShape = DataShape::Tokens { vocab: 7, context: 5 };
const IMAGE: DataShape = DataShape::Features { features: 16, classes: 3 };

fn batch(data: &DataShape, slots: std::ops::Range<u64>) -> Batch {
    let mut batch = Batch { slots: slots.clone().collect(), ..Batch::default() };
    for slot in slots {
        match *data {
            DataShape::Tokens { vocab, context } => {
                let token = |i: u64| ((slot * 3 + i * i + 1) % vocab as u64) as i32;
                batch.tokens.extend((0..context as u64).map(token));
                batch.targets.extend((1..=context as u64).map(token));
            }
            DataShape::Features { features, classes } => {
                batch.features.extend(random(&format!("sample {slot}"), features).iter().map(|x| *x as f32));
                batch.targets.push((slot % classes as u64) as i32);
            }
        }
    }
    batch
}

fn leaf(network: &dyn Network, state: &[f32], batch: &Batch) -> (Vec<f32>, elastic_spec::layout::Tail) {
    let mut out = vec![f32::NAN; network.layout().reduced_floats()];
    let key = LeafKey { seed: 5, step: 9, scale: 0.125, label_smoothing: 0.0 };
    let tail = network.sum(&mut *network.new_scratch(1), state, batch, key, &mut out);
    (out, tail)
}

#[test]
fn a_batch_without_any_target_is_a_step_of_zero_gradient() {
    for (module, data) in [(&Tied as &dyn Module, TEXT), (&Image, IMAGE)] {
        let network = compile(module, &data, 4).unwrap();
        let mut batch = batch(&data, 0..4);
        batch.targets.fill(IGNORE);
        let start = network.init(1);
        let (mut reduced, tail) = leaf(&*network, &start, &batch);
        assert_eq!((tail.loss, tail.count, tail.correct), (0.0, 0, 0));
        assert!(reduced.iter().all(|x| *x == 0.0), "no gradient, no moments, no NaN");
        let (layout, mut state) = (network.layout(), start.clone());
        // As a worker computes it: B over the targets that count.
        let correction = 4.0 / tail.count as f32;
        let (reduced, moments) = (&mut reduced[..], &mut []);
        let sgd = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
        let state_now = &mut state[..];
        let update =
            Update { layout, reduced, state: state_now, moments, step: 0, lr: 0.5, correction, clip_norm: Some(1.0) };
        assert_eq!(elastic_tensor::apply(&sgd, update).grad_norm, 0.0);
        assert_eq!(state, start, "neither parameters nor running statistics move");
    }
}

#[test]
fn a_row_of_128k_logits_at_ten_thousand_has_an_exact_loss() {
    let classes = 128 * 1024;
    for (name, logit) in [
        ("all equal", (|_| 1e4) as fn(usize) -> f64),
        ("all equal and negative", |_| -1e4),
        ("both ends", |i| if i % 2 == 0 { 1e4 } else { -1e4 }),
        ("spread", |i| 1e4 - (i * 7919 % 1_000) as f64 * 0.01),
    ] {
        let mut case = case(&[&[1, classes]], LOSS);
        case.ints = Ints::new(&[1], &[2]);
        let x: Vec<f64> = (0..classes).map(logit).collect();
        let as_f32: Vec<f64> = x.iter().map(|x| *x as f32 as f64).collect();
        let out = case.run::<f32>(&[x], &[1.0]);
        let top = as_f32.iter().cloned().fold(f64::MIN, f64::max);
        let sum: f64 = as_f32.iter().map(|x| libm::exp(x - top)).sum();
        let loss = libm::log(sum) + top - as_f32[2];
        // One ulp of a logit of 1e4 is 1e-3, and the partition is kept as one number of that size.
        assert!((out.y[0] as f64 - loss).abs() <= 1e-3, "{name}: loss {}, exactly {loss}", out.y[0]);
        let total: f64 = out.dx[0].iter().map(|dx| *dx as f64).sum();
        assert!(out.dx[0].iter().all(|dx| dx.is_finite()) && total.abs() < 2e-3, "{name}: gradients sum to {total}");
    }
}

/// Panels of a product are padded with zeros: a padded logit of 0 must take no share of the probability.
#[test]
fn a_vocabulary_that_fills_no_panel_has_no_more_logits_than_words() {
    for vocab in [1usize, 2, 31, 33, 250, 1009] {
        let build: Build = |g, x, ints| {
            let logits = apply(g, Op::Linear(Linear), x)?;
            apply(g, Op::CrossEntropy(CrossEntropy), &[logits, ints])
        };
        let mut case = case(&[&[3, 5], &[vocab, 5]], build);
        let last = vocab as i32 - 1;
        case.ints = Ints::new(&[3], &[0, last, last / 2]);
        // Logits of exactly 0 are as likely as each other: a uniform guess among the words.
        let weight = random("words", 5 * vocab);
        let out = case.run::<f32>(&[vec![0.0; 15], weight.clone()], &[1.0; 3]);
        let wanted = libm::log(vocab as f64);
        assert!(out.y.iter().all(|loss| (f64::from(*loss) - wanted).abs() < 1e-6), "{vocab}: {:?}, {wanted}", out.y);
        let exact = case.run::<f64>(&[vec![0.0; 15], weight], &[1.0; 3]);
        assert!(crate::common::distance(&out.dx[0], &exact.dx[0]) < 1e-6, "{vocab}");
    }
}

#[test]
fn attention_with_scores_of_ten_thousand_picks_the_largest() {
    let (tokens, width) = (70, 4);
    let build: Build = |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 1 }), x);
    // q = 1e2, k = ±1e2 on the first axis: scores of ±5e3. Token 3 alone has the positive sign.
    let mut x = vec![0.0; tokens * 3 * width];
    for token in 0..tokens {
        let row = &mut x[token * 3 * width..][..3 * width];
        (row[0], row[width]) = (100.0, if token == 3 { 100.0 } else { -100.0 });
        row[2 * width] = token as f64;
    }
    let out = case(&[&[1, tokens, 3 * width]], build).run::<f32>(&[x], &vec![1.0; tokens * width]);
    for token in 3..tokens {
        assert_eq!(out.y[token * width], 3.0, "token {token} looks at token 3 alone");
    }
    assert!(out.dx[0].iter().all(|dx| dx.is_finite()));
}

/// Largest distance of a norm's f32 result from the f64 result on the same rounded input.
fn norm_error(shapes: &[&[usize]], build: Build, mean: f64) -> f64 {
    let mut case = case(shapes, build);
    case.ints = Ints::new(&shapes[0][..1], &vec![0; shapes[0][0]]);
    let mut inputs = case.inputs();
    inputs[0].iter_mut().for_each(|x| *x = (mean + *x) as f32 as f64);
    let count = inputs[1].len();
    (inputs[1], inputs[2]) = (vec![1.0; count], vec![0.0; count]);
    let (exact, got) = (case.run::<f64>(&inputs, &[]).y, case.run::<f32>(&inputs, &[]).y);
    exact.iter().zip(&got).map(|(exact, got)| (exact - *got as f64).abs()).fold(0.0, f64::max)
}

#[test]
fn norms_of_numbers_about_ten_thousand_keep_three_digits() {
    // E[x²] - E[x]² would lose all: an ulp of 1e8 is 8, the variance a third. What is left is the rounding of the
    // mean: half an ulp of 1e4 (5e-4) and what the sum adds, over a spread of 0.58. PyTorch is off by up to 2.1e-3.
    let batch_norm: Build = |g, x, targets| {
        apply(g, Op::BatchNorm(BatchNorm { eps: 1e-5, relu: false, pool: None }), &[x[0], x[1], x[2], x[2], targets])
    };
    for (name, off) in [
        ("layer norm", norm_error(&[&[6, 768], &[768], &[768]], LAYER_NORM, 1e4)),
        ("layer norm, narrow", norm_error(&[&[6, 7], &[7], &[7]], LAYER_NORM, 1e4)),
        ("batch norm", norm_error(&[&[8, 3, 9, 9], &[3], &[3]], batch_norm, 1e4)),
        ("batch norm, negative", norm_error(&[&[8, 3, 9, 9], &[3], &[3]], batch_norm, -1e4)),
    ] {
        assert!(off < 2.5e-3, "{name} is off by {off}");
    }
}

#[test]
fn a_token_that_repeats_adds_its_gradients_in_order() {
    let mut case = case(&[&[3, 2]], EMBEDDING);
    case.ints = Ints::new(&[4], &[1, 1, 2, 1]);
    // 1e8 + 1 - 1e8 is 0 in f32 in this order, and would be 1 in another.
    let dy = [1e8, 1.0, 1.0, 2.0, 5.0, 6.0, -1e8, 4.0];
    let out = case.run::<f32>(&[vec![0.0; 6]], &dy);
    assert_eq!(out.dx[0], [0.0, 0.0, 0.0, 7.0, 5.0, 6.0]);
}

#[test]
fn a_token_outside_of_the_table_stops_the_step_and_says_which() {
    for wrong in [-1, 3, i32::MIN, i32::MAX] {
        let mut case = case(&[&[3, 2]], EMBEDDING);
        case.ints = Ints::new(&[2], &[1, wrong]);
        let panic = std::panic::catch_unwind(|| case.run::<f32>(&[vec![0.0; 6]], &[0.0; 4])).err().unwrap();
        let said = panic.downcast_ref::<String>().expect("a panic with words");
        assert!(said.contains(&format!("tokens under 3, not {wrong}")), "{said}");
    }
}

#[test]
fn a_tied_table_gets_the_gradients_of_both_its_uses() {
    let tied: Build = |g, x, ints| {
        let y = apply(g, Op::Embedding(Embedding), &[x[0], ints])?;
        apply(g, Op::MatMul(MatMul { b_transposed: true, ..MatMul::default() }), &[y, x[0]])
    };
    let apart: Build = |g, x, ints| {
        let y = apply(g, Op::Embedding(Embedding), &[x[0], ints])?;
        apply(g, Op::MatMul(MatMul { b_transposed: true, ..MatMul::default() }), &[y, x[1]])
    };
    let ints = Ints::new(&[3], &[4, 0, 4]);
    let table = random("table", 5 * 6);
    let dy = random("dy", 3 * 5);
    let one = Case { ints: ints.clone(), ..case(&[&[5, 6]], tied) }.run::<f64>(std::slice::from_ref(&table), &dy);
    let two = Case { ints, ..case(&[&[5, 6], &[5, 6]], apart) }.run::<f64>(&[table.clone(), table], &dy);
    assert_eq!(one.y, two.y);
    for (i, tied) in one.dx[0].iter().enumerate() {
        assert!((tied - (two.dx[0][i] + two.dx[1][i])).abs() < 1e-14, "element {i}");
    }
}

#[test]
fn gradients_that_are_not_finite_are_seen_in_their_norm() {
    let network = compile(&Image, &IMAGE, 4).unwrap();
    let mut wild = batch(&IMAGE, 0..4);
    wild.features[5] = f32::NAN;
    let (mut reduced, tail) = leaf(&*network, &network.init(1), &wild);
    assert!(tail.loss.is_nan());
    let (layout, mut state) = (network.layout(), network.init(1));
    let sgd = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let (reduced, moments, state) = (&mut reduced[..], &mut [], &mut state[..]);
    let update = Update { layout, reduced, state, moments, step: 0, lr: 0.5, correction: 1.0, clip_norm: Some(1.0) };
    assert!(elastic_tensor::apply(&sgd, update).grad_norm.is_nan());
}
