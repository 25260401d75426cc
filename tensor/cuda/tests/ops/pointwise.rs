//! Functions of one or two numbers, element by element: sizes around what a thread takes, aligned and not.

use crate::case::{Input, check, floats, given, random, special};
use elastic_tensor::ops::*;

/// None, one, less than a quad, primes, more than a block's quads.
const COUNTS: [usize; 8] = [0, 1, 3, 4, 31, 64, 997, 5_003];

/// Of numbers that a function bends at, in -10 to 10.
fn wide(count: usize) -> Input {
    given(&[count], random("wide", count).into_iter().map(|x| x * 10.0).collect())
}

#[test]
fn products() {
    for count in COUNTS {
        // The second operand lies behind the first: aligned for every fourth count only.
        check(Op::Mul(Mul), &[floats(&[count]), special(&[count])]);
        check(Op::Mul(Mul), &[special(&[count]), wide(count)]);
        for factor in [0.1, -3.0, 1e300, 0.0] {
            check(Op::Scale(Scale { factor }), &[special(&[count])]);
        }
    }
    check(Op::Mul(Mul), &[floats(&[2, 3, 5, 7]), special(&[2, 3, 5, 7])]);
}

#[test]
fn relu_and_its_gradient() {
    for count in COUNTS {
        check(Op::Relu(Relu), &[special(&[count])]);
        check(Op::ReluGrad(ReluGrad), &[special(&[count]), wide(count)]);
        check(Op::ReluGrad(ReluGrad), &[floats(&[count]), special(&[count])]);
    }
}

#[test]
fn gelu_and_its_gradient() {
    for count in COUNTS {
        for x in [special(&[count]), wide(count)] {
            check(Op::Gelu(Gelu), std::slice::from_ref(&x));
            check(Op::GeluGrad(GeluGrad), &[x.clone(), floats(&[count])]);
            check(Op::GeluGrad(GeluGrad), &[x, special(&[count])]);
        }
    }
}
