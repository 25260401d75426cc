//! Ops that only choose and place elements, over odd shapes.

use crate::case::{Input, check, floats, special};
use elastic_tensor::ops::*;

#[test]
fn constants() {
    for shape in [&[][..], &[0], &[1], &[7, 143], &[3, 5, 64]] {
        for value in [0.0, -0.0, 0.1, 1e300, f64::NAN] {
            check(Op::Fill(Fill { shape: shape.to_vec(), value }), &[]);
        }
    }
}

#[test]
fn values_are_repeated() {
    for (x, y) in [
        (&[][..], &[][..]),
        (&[], &[5, 7]),
        (&[1], &[0, 3]),
        (&[7], &[7]),
        (&[7], &[3, 7]),
        (&[8], &[1031, 8]),
        (&[13, 1], &[13, 67]),
        (&[3, 1, 5], &[2, 3, 4, 5]),
        (&[2, 1, 3, 1, 4], &[2, 5, 3, 2, 4]),
        (&[2, 3, 1, 1], &[2, 3, 5, 8]),
    ] {
        check(Op::BroadcastTo(BroadcastTo { shape: y.to_vec() }), &[special(x)]);
    }
}

#[test]
fn axes_in_any_order() {
    let permute = |x: &[usize], axes: &[usize]| check(Op::Permute(Permute { axes: axes.to_vec() }), &[floats(x)]);
    permute(&[], &[]);
    permute(&[5], &[0]);
    for axes in [[0, 1], [1, 0]] {
        // Around the size of a tile, and far from square.
        for x in
            [[1, 1], [1, 37], [37, 1], [0, 5], [3, 129], [129, 3], [8, 8], [32, 32], [31, 33], [64, 100], [101, 211]]
        {
            permute(&x, &axes);
        }
    }
    for axes in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        for x in [[1, 3, 1], [2, 3, 5], [5, 33, 40], [34, 3, 70], [16, 40, 4], [3, 0, 2]] {
            permute(&x, &axes);
        }
    }
    // Heads of attention, there and back, and of keys.
    for axes in [[0, 2, 1, 3], [0, 2, 3, 1], [3, 1, 2, 0], [3, 2, 1, 0]] {
        permute(&[2, 19, 3, 16], &axes);
        permute(&[9, 2, 35, 10], &axes);
    }
    permute(&[2, 3, 2, 5, 7], &[4, 2, 0, 3, 1]);
    permute(&[2, 1, 3, 2, 1, 2, 3, 2], &[7, 6, 5, 4, 3, 2, 1, 0]);
}

fn range(start: usize, step: isize, len: usize) -> Range {
    Range { start, step, len }
}

/// A part and its gradient.
fn part(whole: &[usize], ranges: &[Range]) {
    let slice = Slice { ranges: ranges.to_vec() };
    check(Op::Slice(slice.clone()), &[special(whole)]);
    let of_part: Vec<usize> = ranges.iter().map(|range| range.len).collect();
    check(Op::SliceGrad(SliceGrad { slice, shape: whole.to_vec() }), &[special(&of_part)]);
}

#[test]
fn parts_and_their_gradients() {
    part(&[10], &[range(0, 1, 10)]);
    part(&[10], &[range(3, 1, 5)]);
    part(&[1001], &[range(1000, -1, 1001)]);
    part(&[1001], &[range(999, -7, 100)]);
    part(&[10], &[range(10, 1, 0)]);
    part(&[8, 12], &[range(1, 2, 3), range(4, 1, 8)]);
    part(&[8, 12], &[range(7, -1, 8), range(0, 1, 12)]);
    part(&[8, 12], &[range(0, 1, 8), range(11, -3, 4)]);
    part(&[37, 5, 16], &[range(2, 1, 33), range(2, 1, 1), range(0, 1, 16)]);
    part(&[3, 5, 7, 11], &[range(0, 2, 2), range(4, -2, 3), range(1, 1, 6), range(3, 3, 3)]);
    part(&[2, 3, 2, 5, 9], &[range(0, 1, 2), range(1, 1, 2), range(1, -1, 2), range(0, 4, 2), range(1, 1, 7)]);
}

#[test]
fn values_one_behind_the_other() {
    let concat = |axis: usize, shapes: &[&[usize]]| {
        let x: Vec<Input> = shapes.iter().map(|shape| floats(shape)).collect();
        check(Op::Concat(Concat { axis }), &x);
    };
    concat(0, &[&[5]]);
    concat(0, &[&[5], &[0], &[1], &[1009]]);
    concat(0, &[&[3, 7], &[2, 7]]);
    concat(1, &[&[3, 7], &[3, 2]]);
    concat(1, &[&[3, 8], &[3, 4], &[3, 12]]);
    concat(1, &[&[2, 3, 5], &[2, 1, 5], &[2, 4, 5]]);
    concat(2, &[&[2, 3, 5], &[2, 3, 1]]);
    concat(2, &[&[2, 3, 5, 2], &[2, 3, 1, 2]]);
    concat(1, &[&[31, 1], &[31, 1], &[31, 2], &[31, 3], &[31, 5], &[31, 8], &[31, 1], &[31, 4]]);
}
