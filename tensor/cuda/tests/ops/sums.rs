//! Sums over leading axes.

use crate::case::{check, check_shards, floats, special};
use elastic_tensor::ops::*;

#[test]
fn columns_add_their_rows_in_ascending_order() {
    let op = || Op::SumLeading(SumLeading { keep: 1 });
    for shape in [&[0, 5][..], &[5, 0], &[1, 1], &[7, 13], &[3, 5, 33], &[131, 31], &[600, 65]] {
        check(op(), &[floats(shape)]);
        check(op(), &[special(shape)]);
    }
    check(Op::SumLeading(SumLeading { keep: 0 }), &[floats(&[5, 211])]);
    check(Op::SumLeading(SumLeading { keep: 2 }), &[floats(&[11, 3, 7])]);
}

/// Blocks are as wide as there are columns for enough of them.
#[test]
fn wide_and_narrow_blocks_have_the_same_chains() {
    let op = || Op::SumLeading(SumLeading { keep: 1 });
    check(op(), &[floats(&[3, 8500])]);
    check(op(), &[floats(&[3, 4300])]);
    // More rows than a tile of narrow blocks has.
    check(op(), &[floats(&[1300, 9])]);
}

#[test]
fn shards_of_rows_are_added_along_the_tree() {
    for shards in [1, 2, 8] {
        let op = || Op::SumLeading(SumLeading { keep: 1 });
        check_shards(shards, op(), &[floats(&[shards * 5, 37])]);
        check_shards(shards, op(), &[special(&[shards * 2, 3, 11])]);
        check_shards(shards, op(), &[floats(&[0, 4])]);
    }
}
