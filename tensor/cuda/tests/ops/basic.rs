//! Copies, sums, and leaves along the tree.

use crate::case::{check, floats, special};
use elastic_tensor::ops::*;

#[test]
fn sums_and_copies() {
    for shape in [&[0][..], &[1], &[7, 13], &[3, 5, 257]] {
        check(Op::Add(Add), &[floats(shape), special(shape)]);
        check(Op::Copy(Copy), &[special(shape)]);
        check(Op::Seed(Seed { shape: shape.to_vec() }), &[]);
    }
    for (a, b) in
        [(&[7, 13][..], &[13][..]), (&[3, 5, 12], &[5, 12]), (&[0, 3], &[3]), (&[9, 1], &[1]), (&[33, 64], &[64])]
    {
        check(Op::Add(Add), &[floats(a), special(b)]);
    }
}

#[test]
fn leaves_are_added_along_the_tree() {
    for shards in [1, 2, 8, 64] {
        check(Op::SumLeaves(SumLeaves { shards, shape: vec![37] }), &[special(&[shards * 37])]);
    }
}
