//! Layer norm, RMS norm and their gradients.

use crate::case::{Input, check, check_shards, floats, given, random, special};
use elastic_tensor::ops::*;

/// (rows, columns): none, one, below, at and above the sixteen lanes and a tile of columns, more rows than a tile has.
const SHAPES: [[usize; 2]; 12] =
    [[0, 3], [3, 0], [1, 1], [1, 16], [2, 15], [7, 17], [16, 8], [17, 9], [33, 97], [5, 768], [128, 5], [300, 13]];

/// Positive, as a deviation is.
fn positive(len: usize) -> Input {
    given(&[len], random("positive", len).iter().map(|x| x.abs() + 0.1).collect())
}

#[test]
fn layer_norms() {
    for [rows, cols] in SHAPES {
        for x in [floats(&[rows, cols]), special(&[rows, cols])] {
            check(Op::LayerNorm(LayerNorm { eps: 1e-5 }), &[x.clone(), floats(&[cols]), special(&[cols])]);
            let moments = [floats(&[rows]), positive(rows)];
            let [mean, rstd] = moments;
            check(Op::LayerNormGrad(LayerNormGrad), &[x, floats(&[cols]), mean, rstd, floats(&[rows, cols])]);
        }
    }
}

#[test]
fn layer_norms_of_rows_in_more_axes_and_of_equal_numbers() {
    check(Op::LayerNorm(LayerNorm { eps: 1e-5 }), &[floats(&[3, 5, 33]), floats(&[33]), floats(&[33])]);
    let same = given(&[4, 19], vec![0.3; 4 * 19]);
    check(Op::LayerNorm(LayerNorm { eps: 0.0 }), &[same.clone(), floats(&[19]), floats(&[19])]);
    check(Op::LayerNorm(LayerNorm { eps: 1e-12 }), &[same, floats(&[19]), floats(&[19])]);
}

#[test]
fn layer_norms_gradients_are_added_along_the_tree() {
    for shards in [1, 2, 8] {
        for (rows, cols) in [(1, 3), (5, 17), (131, 9)] {
            let rows = rows * shards;
            let inputs = |dy| [floats(&[rows, cols]), floats(&[cols]), floats(&[rows]), positive(rows), dy];
            for dy in [floats(&[rows, cols]), special(&[rows, cols])] {
                check_shards(shards, Op::LayerNormGrad(LayerNormGrad), &inputs(dy));
            }
        }
    }
}

#[test]
fn rms_norms() {
    for [rows, cols] in SHAPES {
        for x in [floats(&[rows, cols]), special(&[rows, cols])] {
            check(Op::RmsNorm(RmsNorm { eps: 1e-6 }), &[x.clone(), special(&[cols])]);
            check(Op::RmsNormGrad(RmsNormGrad), &[x, floats(&[cols]), positive(rows), floats(&[rows, cols])]);
        }
    }
}

#[test]
fn rms_norms_gradients_are_added_along_the_tree() {
    for shards in [1, 2, 8] {
        for (rows, cols) in [(1, 3), (5, 17), (131, 9)] {
            let rows = rows * shards;
            for dy in [floats(&[rows, cols]), special(&[rows, cols])] {
                let inputs = [floats(&[rows, cols]), floats(&[cols]), positive(rows), dy];
                check_shards(shards, Op::RmsNormGrad(RmsNormGrad), &inputs);
            }
        }
    }
}

#[test]
fn softmaxes() {
    for [rows, cols] in SHAPES {
        let far = random("far", rows * cols).iter().map(|x| x * 200.0).collect();
        for x in [floats(&[rows, cols]), special(&[rows, cols]), given(&[rows, cols], far)] {
            for log in [false, true] {
                check(Op::Softmax(Softmax { log }), std::slice::from_ref(&x));
                check(Op::SoftmaxGrad(SoftmaxGrad { log }), &[x.clone(), floats(&[rows, cols])]);
            }
        }
    }
    for same in [f32::NEG_INFINITY, f32::NAN, -0.0] {
        let x = given(&[2, 3, 5], vec![same; 30]);
        check(Op::Softmax(Softmax { log: false }), std::slice::from_ref(&x));
        check(Op::Softmax(Softmax { log: true }), &[x]);
    }
}
