//! Causal attention and its gradient.

use crate::case::{Input, check, floats, given, random, special};
use elastic_tensor::ops::*;

/// (samples, tokens, heads, width): one, odd, on both sides of the processor's groups of 16 queries and of a tile of
/// 64, and of 32, 64 and 128 dimensions.
const SIZES: [[usize; 4]; 16] = [
    [0, 3, 1, 4],
    [2, 0, 1, 4],
    [2, 3, 1, 0],
    [1, 1, 1, 1],
    [2, 5, 3, 5],
    [1, 15, 2, 8],
    [1, 16, 1, 32],
    [1, 17, 2, 33],
    [1, 63, 1, 7],
    [2, 64, 1, 16],
    [1, 65, 2, 64],
    [1, 130, 2, 12],
    [1, 200, 1, 3],
    [1, 19, 1, 80],
    [1, 70, 1, 128],
    [1, 66, 1, 131],
];

fn values(name: &str, len: usize, size: f32) -> Vec<f32> {
    random(name, len).iter().map(|x| x * size).collect()
}

fn check_both([samples, tokens, heads, width]: [usize; 4], qkv: &Input, dy: &Input) {
    let op = CausalAttention { heads };
    check(Op::CausalAttention(op), std::slice::from_ref(qkv));
    let channels = heads * width;
    let sums = given(&[samples, heads, tokens], values("sums", samples * heads * tokens, 2.0));
    let inputs = [qkv.clone(), floats(&[samples, tokens, channels]), sums, dy.clone()];
    check(Op::CausalAttentionGrad(CausalAttentionGrad(op)), &inputs);
}

#[test]
fn attention_of_all_sizes() {
    for [samples, tokens, heads, width] in SIZES {
        let channels = heads * width;
        let qkv = values("qkv", samples * tokens * 3 * channels, 3.0);
        let dy = floats(&[samples, tokens, channels]);
        check_both([samples, tokens, heads, width], &given(&[samples, tokens, 3 * channels], qkv), &dy);
    }
}

/// Queries, keys and values of a case, the numbers of which `change` gives another value by (which, token, dimension).
fn changed(tokens: usize, width: usize, change: impl Fn(usize, usize, usize) -> Option<f32>) -> Input {
    let mut all = values("qkv", tokens * 3 * width, 2.0);
    for (i, x) in all.iter_mut().enumerate() {
        let (token, which, dim) = (i / (3 * width), i / width % 3, i % width);
        *x = change(which, token, dim).unwrap_or(*x);
    }
    given(&[1, tokens, 3 * width], all)
}

fn check_changed(tokens: usize, width: usize, change: impl Fn(usize, usize, usize) -> Option<f32>) {
    let qkv = changed(tokens, width, change);
    check_both([1, tokens, 1, width], &qkv, &floats(&[1, tokens, width]));
    check_both([1, tokens, 1, width], &qkv, &special(&[1, tokens, width]));
}

#[test]
fn a_value_that_is_not_finite_reaches_only_those_that_see_it() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 15, 40, 69] {
            check_changed(70, 20, |which, token, dim| (which == 2 && token == at && dim == 13).then_some(bad));
        }
    }
}

#[test]
fn keys_and_queries_that_are_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [17, 66] {
            check_changed(70, 20, |which, token, dim| (which == 1 && token == at && dim == 0).then_some(bad));
            check_changed(70, 20, |which, token, dim| (which == 0 && token == at && dim == 19).then_some(bad));
        }
    }
}

#[test]
fn sums_of_minus_zero_become_zero_where_they_do_on_the_processor() {
    // Behind a product that vanished a sum is -0 and stays so with -0 added. A row before the last of its group of
    // sixteen goes on to the last with a weight of 0, and then has 0.
    let value = |token: usize| match token {
        0 => -1e-45,
        15 => 0.5,
        _ => -0.0,
    };
    let qkv = changed(16, 20, |which, token, _| (which == 2).then(|| value(token)));
    check_both([1, 16, 1, 20], &qkv, &floats(&[1, 16, 20]));
    let op = Op::CausalAttention(CausalAttention { heads: 1 });
    check(op, &[changed(14, 20, |which, token, _| (which == 2).then(|| value(token)))]);
    let tiny = |token: usize, dim: usize| [-1e-45, -0.0, 1e-45, -1e-40][(token + dim) % 4];
    check_changed(70, 20, |which, token, dim| {
        (which > 0).then(|| tiny(token, dim) * if which == 1 { 1e6 } else { 1.0 })
    });
}

#[test]
fn scores_far_apart() {
    let qkv = values("qkv", 2 * 70 * 3 * 24, 60.0);
    check_both([2, 70, 3, 8], &given(&[2, 70, 3 * 24], qkv), &special(&[2, 70, 24]));
}
