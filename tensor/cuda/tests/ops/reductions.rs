//! Sums, means, largest and smallest along axes, and their indices.

use crate::case::{Input, check, floats, given, random, special};
use elastic_tensor::ops::*;

const KINDS: [ReduceKind; 4] = [ReduceKind::Sum, ReduceKind::Mean, ReduceKind::Max, ReduceKind::Min];

fn reduce(shape: &[usize], from: usize, to: usize) {
    let n: usize = shape[from..to].iter().product();
    for kind in KINDS.into_iter().filter(|kind| n > 0 || matches!(kind, ReduceKind::Sum | ReduceKind::Mean)) {
        for x in [floats(shape), special(shape), zeros(shape)] {
            check(Op::Reduce(Reduce { kind, from, to }), &[x]);
        }
    }
}

/// Zeros of both signs: which of them comes out hangs on the order.
fn zeros(shape: &[usize]) -> Input {
    let values = random("zeros", shape.iter().product());
    given(shape, values.iter().map(|x| 0.0f32.copysign(*x)).collect())
}

#[test]
fn lines_side_by_side() {
    for shape in [&[1, 1][..], &[0, 3], &[3, 0], &[5, 7], &[3, 16], &[2, 17], &[7, 131], &[1, 1000]] {
        reduce(shape, 1, 2);
    }
    reduce(&[3, 4, 5], 0, 3);
    reduce(&[3, 4, 5], 1, 1);
}

#[test]
fn long_lines_are_closed_every_4096_numbers() {
    for n in [4095, 4096, 4097, 3 * 4096 + 5] {
        reduce(&[3, n], 1, 2);
    }
    // More blocks than running results.
    let x = floats(&[17 * 4096 + 1]);
    check(Op::Reduce(Reduce { kind: ReduceKind::Sum, from: 0, to: 1 }), &[x]);
}

#[test]
fn columns_of_few_and_of_many_numbers() {
    for shape in
        [&[1, 1, 2][..], &[2, 0, 3], &[0, 2, 3], &[2, 3, 0], &[3, 5, 7], &[2, 64, 33], &[2, 65, 33], &[1, 131, 31]]
    {
        reduce(shape, 1, 2);
    }
    reduce(&[2, 3, 4, 5], 1, 3);
    reduce(&[4097, 3], 0, 1);
    let x = floats(&[2, 2 * 4096 + 77, 20]);
    check(Op::Reduce(Reduce { kind: ReduceKind::Sum, from: 1, to: 2 }), &[x]);
}

#[test]
fn the_first_of_the_best_has_the_index() {
    for (shape, axis) in [
        (&[1][..], 0),
        (&[5, 7], 1),
        (&[5, 7], 0),
        (&[0, 3], 1),
        (&[3, 0], 0),
        (&[3, 700], 1),
        (&[1, 9000], 1),
        (&[2, 45, 3], 1),
        (&[3, 5, 67], 1),
        (&[2, 300, 2], 1),
    ] {
        for smallest in [false, true] {
            for x in [floats(shape), special(shape), zeros(shape), equal(shape), without_nan(shape)] {
                check(Op::ArgMax(ArgMax { axis, smallest }), &[x]);
            }
        }
    }
}

/// Whole numbers with many equal ones among them.
fn equal(shape: &[usize]) -> Input {
    let values = random("equal", shape.iter().product());
    given(shape, values.iter().map(|x| (x * 3.0).round()).collect())
}

fn without_nan(shape: &[usize]) -> Input {
    let Input::Floats { shape, values } = special(shape) else { unreachable!("special floats are floats") };
    given(&shape, values.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect())
}
