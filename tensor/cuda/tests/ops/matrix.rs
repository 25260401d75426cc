//! Matrix products, linear layers and their weight gradients.

use crate::case::{check, check_shards, floats, given, special};
use elastic_tensor::ops::*;

const WAYS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn shapes((a_transposed, b_transposed): (bool, bool), (m, k, n): (usize, usize, usize)) -> [[usize; 2]; 2] {
    let turned = |yes, rows, columns| if yes { [columns, rows] } else { [rows, columns] };
    [turned(a_transposed, m, k), turned(b_transposed, k, n)]
}

fn matmul((a_transposed, b_transposed): (bool, bool)) -> Op {
    Op::MatMul(MatMul { a_transposed, b_transposed })
}

/// (m, k, n), read in each of the four ways.
fn check_products(size: (usize, usize, usize)) {
    for way in WAYS {
        let [a, b] = shapes(way, size);
        check(matmul(way), &[floats(&a), floats(&b)]);
    }
}

/// Sizes that are small tiles: nothing, one, primes, a whole tile, a slab of links and one more or less.
#[test]
fn products_of_small_matrices() {
    for size in [
        (0, 3, 2),
        (3, 3, 0),
        (2, 0, 3),
        (1, 1, 1),
        (1, 7, 16),
        (16, 8, 1),
        (16, 64, 16),
        (17, 65, 31),
        (37, 63, 19),
        (48, 128, 32),
        (4, 200, 4),
        (13, 129, 53),
        (20, 36, 12),
    ] {
        check_products(size);
    }
}

/// As many elements as it takes for tiles of 64 by 64, with rows and columns that end between and on multiples of four.
#[test]
fn products_of_middling_matrices() {
    check_products((577, 17, 613));
    check(matmul((false, false)), &[floats(&[580, 36]), floats(&[36, 612])]);
    check(matmul((true, true)), &[floats(&[36, 580]), floats(&[612, 36])]);
}

/// And for tiles of 128 by 128.
#[test]
fn products_of_large_matrices() {
    for way in WAYS {
        let [a, b] = shapes(way, (1259, 9, 1277));
        check(matmul(way), &[floats(&a), floats(&b)]);
        let [a, b] = shapes(way, (1260, 16, 1276));
        check(matmul(way), &[floats(&a), floats(&b)]);
    }
}

#[test]
fn products_of_special_numbers() {
    for way in WAYS {
        let [a, b] = shapes(way, (19, 29, 23));
        check(matmul(way), &[special(&a), floats(&b)]);
        check(matmul(way), &[floats(&a), special(&b)]);
        check(matmul(way), &[special(&a), special(&b)]);
    }
}

/// A sum that is -0 stays it behind its last link, and one link more would make it +0.
#[test]
fn a_sum_of_minus_zero_stays_it() {
    for way in WAYS {
        for k in [1, 3, 8, 9] {
            let [a, b] = shapes(way, (5, k, 6));
            let fill = |shape: &[usize], x: f32| given(shape, vec![x; shape.iter().product()]);
            check(matmul(way), &[fill(&a, -1e-30), fill(&b, 1e-30)]);
        }
    }
}

#[test]
fn linear_layers_add_their_bias_to_the_finished_sum() {
    for (rows, inner, out) in [(0, 3, 2), (1, 1, 1), (5, 0, 7), (33, 17, 10), (64, 40, 20)] {
        let (x, w) = (floats(&[rows, inner]), floats(&[out, inner]));
        check(Op::Linear(Linear), &[x.clone(), w.clone()]);
        check(Op::Linear(Linear), &[x, w, special(&[out])]);
    }
    check(Op::Linear(Linear), &[special(&[3, 5, 12]), floats(&[9, 12]), floats(&[9])]);
    check(Op::Linear(Linear), &[floats(&[577, 7]), floats(&[613, 7]), floats(&[613])]);
    check(Op::Linear(Linear), &[floats(&[1276, 7]), floats(&[1260, 7]), floats(&[1260])]);
}

fn check_gradient(shards: usize, (rows, out, inner): (usize, usize, usize)) {
    let inputs = [floats(&[shards * rows, out]), floats(&[shards * rows, inner])];
    check_shards(shards, Op::LinearGradWeight(LinearGradWeight), &inputs);
}

/// Their leaves stand side by side.
#[test]
fn weight_gradients_of_few_elements() {
    for shards in [1, 2, 8] {
        for size in [(0, 3, 2), (1, 1, 1), (3, 17, 10), (65, 16, 33), (4, 40, 36)] {
            check_gradient(shards, size);
        }
        let (dy, x) = (special(&[shards * 5, 18]), special(&[shards * 5, 7]));
        check_shards(shards, Op::LinearGradWeight(LinearGradWeight), &[dy, x]);
    }
    check_gradient(64, (2, 5, 3));
}

/// Blocks walk from shard to shard; of each size of tiles.
#[test]
fn weight_gradients_of_many_elements() {
    check_gradient(2, (9, 261, 267));
    check_gradient(8, (3, 277, 281));
    check_gradient(2, (17, 691, 701));
    check_gradient(2, (8, 1268, 1272));
    check_gradient(4, (3, 1259, 1277));
    let (dy, x) = (special(&[4 * 3, 261]), special(&[4 * 3, 267]));
    check_shards(4, Op::LinearGradWeight(LinearGradWeight), &[dy, x]);
}

#[test]
fn products_of_batches() {
    for (a_transposed, b_transposed) in WAYS {
        let op = || Op::BatchMatMul(BatchMatMul { a_transposed, b_transposed });
        for (batch, size) in [(0, (2, 3, 4)), (1, (3, 5, 7)), (7, (17, 13, 19)), (3, (8, 72, 12)), (2, (4, 0, 3))] {
            let [a, b] = shapes((a_transposed, b_transposed), size);
            let (a, b) = ([&[batch][..], &a].concat(), [&[batch][..], &b].concat());
            check(op(), &[floats(&a), floats(&b)]);
            check(op(), &[special(&a), floats(&b)]);
        }
    }
    // More than a grid has rows of blocks.
    check(Op::BatchMatMul(BatchMatMul::default()), &[floats(&[65_537, 1, 2]), floats(&[65_537, 2, 1])]);
    // Tiles of 64 by 64.
    check(Op::BatchMatMul(BatchMatMul::default()), &[floats(&[130, 60, 9]), floats(&[130, 9, 63])]);
}
