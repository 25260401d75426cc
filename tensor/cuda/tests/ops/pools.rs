//! Pools over windows.

use crate::case::{check, floats, given, random, special};
use elastic_tensor::ops::*;

/// (image, kernel, stride): apart, side by side, overlapping, with a rest, wider than a line of the processor's.
const CASES: [([usize; 4], usize, usize); 10] = [
    ([1, 1, 1, 1], 1, 1),
    ([0, 3, 4, 4], 2, 2),
    ([2, 3, 4, 6], 2, 2),
    ([1, 2, 5, 7], 2, 2),
    ([2, 1, 7, 9], 3, 2),
    ([1, 3, 7, 5], 3, 1),
    ([1, 1, 9, 8], 2, 3),
    ([1, 2, 11, 13], 5, 2),
    ([3, 1, 4, 4], 4, 4),
    ([1, 1, 3, 70], 2, 1),
];

/// Whole numbers with many equal ones among them.
fn equal(shape: &[usize]) -> crate::case::Input {
    let values = random("equal", shape.iter().product());
    given(shape, values.iter().map(|x| (x * 2.0).round()).collect())
}

#[test]
fn the_largest_of_each_window() {
    for (shape, kernel, stride) in CASES {
        for x in [floats(&shape), special(&shape), equal(&shape)] {
            check(Op::MaxPool(MaxPool { kernel, stride }), &[x]);
        }
    }
}

#[test]
fn the_winner_gets_its_windows_gradient() {
    for (shape, kernel, stride) in CASES {
        let pool = MaxPool { kernel, stride };
        let out = out(shape, kernel, stride);
        for x in [floats(&shape), special(&shape), equal(&shape)] {
            for dy in [floats(&out), special(&out)] {
                check(Op::MaxPoolGrad(MaxPoolGrad(pool)), &[x.clone(), dy]);
            }
        }
    }
}

#[test]
fn the_mean_of_each_window_and_its_shares() {
    for (shape, kernel, stride) in CASES {
        let (pool, out) = (AvgPool { kernel, stride }, out(shape, kernel, stride));
        for x in [floats(&shape), special(&shape)] {
            check(Op::AvgPool(pool), &[x]);
        }
        for dy in [floats(&out), special(&out)] {
            check(Op::AvgPoolGrad(AvgPoolGrad { pool, image: shape.to_vec() }), &[dy]);
        }
    }
}

fn out([samples, channels, height, width]: [usize; 4], kernel: usize, stride: usize) -> [usize; 4] {
    [samples, channels, (height - kernel) / stride + 1, (width - kernel) / stride + 1]
}
