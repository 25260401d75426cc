//! Batch norm with what a plan puts behind it, and its gradient.

use crate::case::{CALL, Call, Input, check, check_with, floats, given, ints, random, special};
use elastic_spec::batch::IGNORE;
use elastic_tensor::ops::*;

const SQUARES: Option<MaxPool> = Some(MaxPool { kernel: 2, stride: 2 });

fn positive(len: usize) -> Input {
    given(&[len], random("positive", len).iter().map(|x| x.abs() + 0.1).collect())
}

/// Targets of so many a sample; every third sample has none that counts, every fourth only its last.
fn targets(samples: usize, each: usize) -> Input {
    let counts = |sample: usize, i: usize| sample % 3 != 1 && (sample % 4 != 2 || i + 1 == each);
    let all = (0..samples * each).map(|n| if counts(n / each, n % each) { (n % 7) as i32 } else { IGNORE });
    ints(&[samples, each], &all.collect::<Vec<_>>())
}

fn check_both(x: &Input, dy_shape: &[usize], targets: &Input, (relu, pool): (bool, Option<MaxPool>)) {
    let Input::Floats { shape, .. } = x else { unreachable!("x is of floats") };
    let channels = shape[1];
    let of_channel = || floats(&[channels]);
    let inputs = [x.clone(), of_channel(), special(&[channels]), of_channel(), targets.clone()];
    check(Op::BatchNorm(BatchNorm { eps: 1e-5, relu, pool }), &inputs);
    for dy in [floats(dy_shape), special(dy_shape)] {
        let rstd = positive(channels);
        let inputs = [x.clone(), of_channel(), of_channel(), rstd, dy, targets.clone(), of_channel()];
        check(Op::BatchNormGrad(BatchNormGrad { relu, pool }), &inputs);
    }
}

#[test]
fn batch_norms() {
    let shapes: [&[usize]; 8] =
        [&[0, 3, 2], &[2, 0, 4], &[1, 1], &[70, 5], &[9, 3, 17], &[5, 2, 4, 5], &[4, 1, 1500], &[66, 2, 16]];
    for shape in shapes {
        for (relu, x) in [(false, floats(shape)), (true, floats(shape)), (true, special(shape))] {
            check_both(&x, shape, &targets(shape[0], 1), (relu, None));
        }
    }
}

#[test]
fn batch_norms_with_a_pool_behind_them() {
    for [height, width] in [[2, 2], [5, 7], [8, 6], [3, 41]] {
        let (shape, out) = ([5, 3, height, width], [5, 3, height / 2, width / 2]);
        for (relu, x) in [(false, floats(&shape)), (true, floats(&shape)), (true, special(&shape))] {
            check_both(&x, &out, &targets(5, 1), (relu, SQUARES));
        }
    }
    let equal = given(&[2, 1, 4, 4], vec![0.25; 32]);
    check_both(&equal, &[2, 1, 2, 2], &targets(2, 1), (true, SQUARES));
}

#[test]
fn samples_without_a_target_do_not_move_the_others() {
    for each in [1, 3, 300] {
        check_both(&special(&[7, 2, 20]), &[7, 2, 20], &targets(7, each), (true, None));
    }
    let nothing = ints(&[4], &[IGNORE; 4]);
    check_both(&floats(&[4, 3, 10]), &[4, 3, 10], &nothing, (true, None));
    let one = ints(&[4], &[IGNORE, 2, IGNORE, IGNORE]);
    check_both(&floats(&[4, 3]), &[4, 3], &one, (false, None));
}

#[test]
fn moments_are_weighted_by_the_scale() {
    for scale in [1.0, 0.25, 0.013] {
        let inputs = [floats(&[6, 4, 9]), floats(&[4]), floats(&[4]), floats(&[4]), targets(6, 2)];
        let op = Op::BatchNorm(BatchNorm { eps: 1e-3, relu: false, pool: None });
        check_with(Call { scale, ..CALL }, op, &inputs);
    }
}

#[test]
fn batch_norms_for_evaluation() {
    let shapes: [&[usize]; 5] = [&[0, 3, 2], &[1, 1], &[7, 5], &[3, 2, 33], &[2, 3, 5, 450]];
    for shape in shapes {
        let channels = shape[1];
        for x in [floats(shape), special(shape)] {
            let inputs = [x, floats(&[channels]), special(&[channels]), floats(&[channels]), positive(channels)];
            check(Op::BatchNormEval(BatchNormEval { eps: 1e-5 }), &inputs);
        }
    }
}
