//! Every op's gradient against central finite differences in f64, and its f32 kernel against its f64 run.

use crate::common::{Build, Case, Ints, apply, distance, random};
use elastic_tensor::ops::*;

const EPS: f64 = 1e-5;

fn check(shapes: &[&[usize]], build: Build) {
    check_with(shapes, Ints::default(), 0.0, build);
}

fn check_with(shapes: &[&[usize]], ints: Ints, smoothing: f32, build: Build) {
    let case = Case { shapes: shapes.iter().map(|s| s.to_vec()).collect(), ints, smoothing, build };
    let inputs = case.inputs();
    let dy = random("dy", case.output_len());
    let exact = case.run::<f64>(&inputs, &dy);
    let fast = case.run::<f32>(&inputs, &dy);
    assert!(distance(&fast.y, &exact.y) < 2e-6, "value: f32 is off by {}", distance(&fast.y, &exact.y));
    for (i, dx) in exact.dx.iter().enumerate() {
        let off = distance(&fast.dx[i], dx);
        assert!(off < 5e-6, "gradient of input {i}: f32 is off by {off}");
        let weigh = |inputs: &[Vec<f64>]| {
            let y = case.run::<f64>(inputs, &dy).y;
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let difference = |at: usize| {
            let mut moved = inputs.clone();
            moved[i][at] = inputs[i][at] + EPS;
            let up = weigh(&moved);
            moved[i][at] = inputs[i][at] - EPS;
            (up - weigh(&moved)) / (2.0 * EPS)
        };
        let numeric: Vec<f64> = (0..dx.len()).map(difference).collect();
        assert!(distance(dx, &numeric) < 1e-6, "input {i}: {dx:?}, by differences {numeric:?}");
    }
}

#[test]
fn add_with_and_without_repetition() {
    for shapes in [[&[2, 3, 4][..], &[2, 3, 4]], [&[2, 3, 4], &[3, 4]], [&[5, 1], &[1]], [&[0, 3], &[3]], [&[7], &[]]] {
        check(&shapes, |g, x, _| apply(g, Op::Add(Add), x));
    }
}

#[test]
fn one_value_used_twice_adds_its_gradients() {
    check(&[&[3, 3]], |g, x, _| {
        let y = apply(g, Op::Mul(Mul), &[x[0], x[0]])?;
        apply(g, Op::Add(Add), &[y, x[0]])
    });
}

#[test]
fn mul_scale_and_reshape() {
    check(&[&[2, 5], &[2, 5]], |g, x, _| apply(g, Op::Mul(Mul), x));
    check(&[&[2, 5]], |g, x, _| apply(g, Op::Scale(Scale { factor: -1.7 }), x));
    check(&[&[2, 6]], |g, x, _| {
        let y = apply(g, Op::Reshape(Reshape { shape: vec![3, 4] }), x)?;
        apply(g, Op::Mul(Mul), &[y, y])
    });
    check(&[&[2, 6]], |g, x, _| apply(g, Op::Reshape(Reshape { shape: vec![12] }), x));
}

#[test]
fn activations() {
    for shape in [&[3, 37][..], &[1], &[0, 4]] {
        check(&[shape], |g, x, _| apply(g, Op::Relu(Relu), x));
        check(&[shape], |g, x, _| apply(g, Op::Gelu(Gelu), x));
    }
}

#[test]
fn matmul_in_every_transposition() {
    check(&[&[3, 5], &[5, 2]], |g, x, _| apply(g, Op::MatMul(MatMul::default()), x));
    check(&[&[5, 3], &[5, 2]], |g, x, _| apply(g, Op::MatMul(MatMul { a_transposed: true, b_transposed: false }), x));
    check(&[&[3, 5], &[2, 5]], |g, x, _| apply(g, Op::MatMul(MatMul { a_transposed: false, b_transposed: true }), x));
    check(&[&[5, 3], &[2, 5]], |g, x, _| apply(g, Op::MatMul(MatMul { a_transposed: true, b_transposed: true }), x));
}

#[test]
fn linear_over_the_last_axis() {
    for input in [&[4, 7][..], &[2, 3, 7], &[1, 7], &[0, 7], &[7]] {
        check(&[input, &[5, 7], &[5]], |g, x, _| apply(g, Op::Linear(Linear), x));
        check(&[input, &[5, 7]], |g, x, _| apply(g, Op::Linear(Linear), x));
    }
    check(&[&[3, 40], &[33, 40], &[33]], |g, x, _| apply(g, Op::Linear(Linear), x));
}

#[test]
fn convolution_with_padding_stride_and_bias() {
    check(&[&[2, 3, 5, 4], &[4, 3, 3, 3], &[4]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 1, pad: 1 }), x));
    check(&[&[2, 2, 7, 6], &[3, 2, 3, 2]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 2, pad: 0 }), x));
    check(&[&[1, 1, 2, 3], &[1, 1, 5, 5], &[1]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 2, pad: 2 }), x));
    // Pixels that no window sees, windows that see padding alone, and one pixel a window.
    check(&[&[2, 2, 8, 7], &[3, 2, 2, 1]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 3, pad: 0 }), x));
    check(&[&[1, 2, 3, 2], &[2, 2, 2, 2]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 1, pad: 3 }), x));
    check(&[&[3, 17, 3, 5], &[33, 17, 1, 1]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 2, pad: 0 }), x));
    check(&[&[2, 1, 1, 1], &[1, 1, 1, 1]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 1, pad: 1 }), x));
}

#[test]
fn rms_norm_and_rotary_positions() {
    // One column is left out: its gradient is nothing but rounding.
    for shape in [&[3, 5][..], &[2, 3, 70], &[1, 3], &[4, 2]] {
        check(&[shape, &shape[shape.len() - 1..]], |g, x, _| apply(g, Op::RmsNorm(RmsNorm { eps: 1e-5 }), x));
    }
    check(&[&[2, 3, 12]], |g, x, _| apply(g, Op::Rotary(Rotary::new(1, 4, 3, 1e4)), x));
    check(&[&[1, 7, 36]], |g, x, _| apply(g, Op::Rotary(Rotary::new(2, 6, 7, 100.0)), x));
}

#[test]
fn pools() {
    check(&[&[2, 3, 4, 6]], |g, x, _| apply(g, Op::MaxPool(MaxPool { kernel: 2, stride: 2 }), x));
    check(&[&[1, 2, 5, 7]], |g, x, _| apply(g, Op::MaxPool(MaxPool { kernel: 3, stride: 2 }), x));
    check(&[&[2, 3, 4, 6]], |g, x, _| apply(g, Op::AvgPool(AvgPool { kernel: 2, stride: 2 }), x));
    check(&[&[1, 2, 5, 7]], |g, x, _| apply(g, Op::AvgPool(AvgPool { kernel: 3, stride: 1 }), x));
}

#[test]
fn batch_norm_counts_valid_samples_only() {
    let norm: Build = |g, x, targets| {
        apply(g, Op::BatchNorm(BatchNorm { eps: 1e-5, relu: false, pool: None }), &[x[0], x[1], x[2], x[3], targets])
    };
    for targets in [[1, 0, 2, 1], [1, -1, 0, -1], [0, -1, -1, -1]] {
        check_with(&[&[4, 3, 2, 5], &[3], &[3], &[3]], Ints::new(&[4], &targets), 0.0, norm);
    }
    check_with(&[&[4, 3], &[3], &[3], &[3]], Ints::new(&[4, 2], &[1, -1, -1, 3, -1, -1, 1, 1]), 0.0, norm);
}

#[test]
fn layer_norm_over_the_last_axis() {
    for input in [&[2, 3, 7][..], &[5, 7], &[7], &[0, 7]] {
        check(&[input, &[7], &[7]], |g, x, _| apply(g, Op::LayerNorm(LayerNorm { eps: 1e-5 }), x));
    }
}

#[test]
fn embedding_adds_the_gradients_of_equal_tokens() {
    let tokens = Ints::new(&[2, 3], &[1, 4, 1, 0, 1, 3]);
    check_with(&[&[5, 7]], tokens, 0.0, |g, x, tokens| apply(g, Op::Embedding(Embedding), &[x[0], tokens]));
}

#[test]
fn causal_attention_of_several_heads() {
    check(&[&[2, 5, 18]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
    check(&[&[1, 1, 3]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 1 }), x));
    check(&[&[1, 17, 12]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 4 }), x));
    // Longer than a tile of queries, and not a multiple of it.
    check(&[&[1, 37, 12]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
    check(&[&[2, 67, 3]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 1 }), x));
    check(&[&[0, 5, 3]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 1 }), x));
    // Heads of 8, 32, 64 and 80 channels.
    check(&[&[1, 2, 48]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
    check(&[&[1, 3, 192]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
    check(&[&[1, 2, 192]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 1 }), x));
    check(&[&[1, 2, 240]], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 1 }), x));
}

#[test]
fn cross_entropy_with_ignored_rows_and_smoothing() {
    let loss: Build = |g, x, targets| apply(g, Op::CrossEntropy(CrossEntropy), &[x[0], targets]);
    for smoothing in [0.0, 0.125] {
        check_with(&[&[4, 5]], Ints::new(&[4], &[3, -1, 0, 4]), smoothing, loss);
        check_with(&[&[2, 2, 3]], Ints::new(&[2, 2], &[-1, 2, 1, -1]), smoothing, loss);
        check_with(&[&[1, 1]], Ints::new(&[1], &[0]), smoothing, loss);
    }
}

#[test]
fn dropout_is_linear_under_one_mask() {
    check(&[&[3, 11]], |g, x, _| apply(g, Op::Dropout(Dropout { p: 0.4 }), x));
}

#[test]
fn dropout_drops_its_share_and_keeps_the_mean() {
    let build: Build = |g, x, _| apply(g, Op::Dropout(Dropout { p: 0.25 }), x);
    let case = Case { shapes: vec![vec![8, 1000]], ints: Ints::default(), smoothing: 0.0, build };
    let y = case.run::<f32>(&[vec![1.0; 8000]], &[0.0; 8000]).y;
    let dropped = y.iter().filter(|y| **y == 0.0).count();
    assert!((1850..2150).contains(&dropped), "{dropped} of 8000 were dropped at p = 0.25");
    assert!(y.iter().all(|y| *y == 0.0 || (*y - 4.0 / 3.0).abs() < 1e-6));
    assert_ne!(y[..1000], y[1000..2000], "samples have masks of their own");
}
