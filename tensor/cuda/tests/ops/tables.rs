//! Embeddings, and what else reads rows by index.

use crate::case::{CALL, Case, Input, check, check_shards, floats, given, ints, random, special};
use elastic_spec::job::Dtype;
use elastic_tensor::ops::*;

/// Tokens under `rows` in no order, small ones more often.
fn tokens(shape: &[usize], rows: usize) -> Input {
    let of = |x: &f32| (x * x * rows as f32) as i32;
    let values: Vec<i32> = random(&format!("tokens {shape:?}"), shape.iter().product()).iter().map(of).collect();
    ints(shape, &values)
}

#[test]
fn an_embedding_is_the_rows_that_the_tokens_name() {
    for (rows, channels, shape) in [
        (1, 1, &[1][..]),
        (7, 5, &[3, 5]),
        (50, 8, &[2, 13]),
        (3, 0, &[2]),
        (11, 132, &[67]),
        (13, 129, &[5, 3]),
        (2, 4, &[0]),
    ] {
        check(Op::Embedding(Embedding), &[special(&[rows, channels]), tokens(shape, rows)]);
    }
}

#[test]
fn a_table_gets_the_sums_of_its_rows_uses() {
    let op = |rows| Op::EmbeddingGrad(EmbeddingGrad { rows });
    for (rows, channels, count) in [
        (1, 1, 1),
        (7, 5, 15),
        (50, 8, 26),
        (3, 0, 2),
        (11, 132, 67),
        (300, 33, 301),
        (5, 4, 0),
        (0, 3, 0),
        (257, 3, 2500),
    ] {
        check(op(rows), &[floats(&[count, channels]), tokens(&[count], rows)]);
        check(op(rows), &[special(&[count, channels]), tokens(&[count], rows)]);
    }
}

/// A run of uses of one row may end anywhere among the multiples of 32 at which long ones are looked for.
#[test]
fn rows_that_are_used_often_add_in_the_same_order() {
    let op = |rows| Op::EmbeddingGrad(EmbeddingGrad { rows });
    for (first, often) in [(0, 31), (1, 32), (31, 33), (32, 64), (5, 65), (33, 300)] {
        let values: Vec<i32> = (0..first).map(|_| 0).chain((0..often).map(|_| 1)).chain([2, 3, 2]).collect();
        check(op(4), &[floats(&[values.len(), 37]), ints(&[values.len()], &values)]);
        // The same uses out of order.
        let turned: Vec<i32> = (0..values.len()).map(|i| values[i * 101 % values.len()]).collect();
        check(op(4), &[floats(&[values.len(), 8]), ints(&[values.len()], &turned)]);
    }
}

#[test]
fn a_tables_gradient_adds_shards_along_the_tree() {
    let op = |rows| Op::EmbeddingGrad(EmbeddingGrad { rows });
    for shards in [1, 2, 8, 32] {
        for (rows, channels, count) in [(3, 5, 7), (40, 12, 16), (2, 3, 70), (900, 4, 33)] {
            let count = shards * count;
            check_shards(shards, op(rows), &[floats(&[count, channels]), tokens(&[count], rows)]);
            check_shards(shards, op(rows), &[special(&[count, channels]), tokens(&[count], rows)]);
        }
        check_shards(shards, op(3), &[floats(&[0, 2]), ints(&[0], &[])]);
    }
}

/// Rows that only some shards use: their place in the tree is the shards' own.
#[test]
fn shards_without_a_row_leave_its_place_in_the_tree() {
    let shards = 16;
    for used in 0..64u32 {
        let mask = used.wrapping_mul(0x9e37_79b1) >> 16;
        let values: Vec<i32> = (0..shards).map(|shard| (mask >> shard & 1) as i32).collect();
        let dy = given(&[shards, 1], random(&format!("{used}"), shards).iter().map(|x| x * 1e3).collect());
        check_shards(shards, Op::EmbeddingGrad(EmbeddingGrad { rows: 2 }), &[dy, ints(&[shards], &values)]);
    }
}

/// The processor stops at such a token; a GPU reads and writes nothing for it, and NaN says that something is wrong.
#[test]
fn a_token_outside_of_the_table_touches_nothing_and_is_nan() {
    let tokens = ints(&[6], &[1, 3, -1, 2, i32::MAX, i32::MIN]);
    let table = random("table", 15);
    let y = Case::new(CALL, Op::Embedding(Embedding), &[given(&[3, 5], table.clone()), tokens.clone()]);
    let y = y.on_gpu(Dtype::F32);
    assert_eq!((&y[..5], &y[15..20]), (&table[5..10], &table[10..]));
    assert!(y[5..15].iter().chain(&y[20..]).all(|x| x.is_nan()), "{y:?}");
    let dy = random("dy", 30);
    let dx = Case::new(CALL, Op::EmbeddingGrad(EmbeddingGrad { rows: 3 }), &[given(&[6, 5], dy.clone()), tokens]);
    assert_eq!(dx.on_gpu(Dtype::F32), [&[0.0; 5], &dy[..5], &dy[15..20]].concat());
}
