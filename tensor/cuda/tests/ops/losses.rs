//! Softmax, cross-entropy and their gradients.

use crate::case::{CALL, Call, Input, check_with, floats, given, ints, random, special};
use elastic_spec::batch::IGNORE;
use elastic_tensor::ops::*;

/// Classes in turn, and rows that count as nothing among them.
fn targets(rows: usize, classes: usize) -> Input {
    let target = |row: usize| if row % 5 == 3 { IGNORE } else { (row * 7 % classes) as i32 };
    ints(&[rows], &(0..rows).map(target).collect::<Vec<_>>())
}

fn check_losses(logits: &Input, targets: &Input) {
    for label_smoothing in [0.0, 0.1] {
        let call = Call { label_smoothing, ..CALL };
        check_with(call, Op::CrossEntropy(CrossEntropy), &[logits.clone(), targets.clone()]);
        let Input::Ints { shape, .. } = targets else { unreachable!("targets are integers") };
        let inputs = [logits.clone(), targets.clone(), special(shape), floats(shape)];
        check_with(call, Op::CrossEntropyGrad(CrossEntropyGrad), &inputs);
    }
}

#[test]
fn cross_entropies() {
    for (rows, classes) in [(0, 3), (1, 1), (5, 2), (17, 10), (16, 16), (3, 257), (33, 97), (2, 5003)] {
        for logits in [floats(&[rows, classes]), special(&[rows, classes])] {
            check_losses(&logits, &targets(rows, classes));
        }
    }
}

#[test]
fn the_first_of_equal_logits_is_the_one_that_counts() {
    // Few values, so that the largest comes several times in a row of 40; zeros of both signs are equal.
    let values = random("few", 64 * 40).iter().map(|x| if *x > 0.5 { 0.0 } else { -0.0 }).collect();
    let of_row = |row: usize| (row % 40) as i32;
    check_losses(&given(&[64, 40], values), &ints(&[64], &(0..64).map(of_row).collect::<Vec<_>>()));
    let first = [0, 1, 15, 16, 17, 39, 0, 1];
    check_losses(&given(&[8, 40], vec![1.5; 8 * 40]), &ints(&[8], &first));
    check_losses(&given(&[8, 40], vec![f32::NEG_INFINITY; 8 * 40]), &ints(&[8], &first));
    check_losses(&given(&[8, 40], vec![f32::NAN; 8 * 40]), &ints(&[8], &first));
}

#[test]
fn logits_far_apart_have_exponentials_of_nothing() {
    let values = random("far", 9 * 50).iter().map(|x| x * 300.0).collect();
    check_losses(&given(&[9, 50], values), &targets(9, 50));
}
