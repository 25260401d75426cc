//! Causal attention on tensor cores against the processor's in bf16.
//!
//! Both round the same operands, and the weights P (in the gradient also dS) as they enter a product. They differ in
//! the order of f32 sums, and so a little in the scores and in what is rounded:
//!
//! - Forward, the processor divides exponentials by the row's largest, the GPU by the next power of two. So each weight
//!   is rounded apart, off by at most 2^-8 of itself, as if by chance: six standard deviations of the sum of such errors.
//! - In the gradient both make the same P, and round it apart only where it lies at the edge of two bf16: as much as
//!   three of the largest terms, rounded the other way.
//! - Besides, what f32 sums of as many terms may be off by.
//!
//! The size of terms is found by attention in f64.

use crate::case::{CALL, Case, Input, floats, given, random};
use elastic_spec::job::Dtype;
use elastic_tensor::bf16::Pair;
use elastic_tensor::mixed::Mixed;
use elastic_tensor::ops::*;

#[derive(Clone, Copy, Debug)]
struct Shape {
    samples: usize,
    tokens: usize,
    heads: usize,
    width: usize,
}

impl Shape {
    fn op(self) -> CausalAttention {
        CausalAttention { heads: self.heads }
    }

    fn channels(self) -> usize {
        self.heads * self.width
    }

    fn qkv(self) -> [usize; 3] {
        [self.samples, self.tokens, 3 * self.channels()]
    }

    fn y(self) -> [usize; 3] {
        [self.samples, self.tokens, self.channels()]
    }

    /// First number of a token's part in (sample, token, parts · channel).
    fn at(self, sample: usize, head: usize, token: usize, (part, parts): (usize, usize)) -> usize {
        (((sample * self.tokens + token) * parts + part) * self.heads + head) * self.width
    }

    fn all_heads(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.samples).flat_map(move |sample| (0..self.heads).map(move |head| (sample, head)))
    }
}

/// Rows of one head in f64, rounded to bf16 first.
fn rows(x: &[f32], shape: Shape, (sample, head): (usize, usize), part: (usize, usize)) -> Vec<Vec<f64>> {
    let row = |token| {
        let row = &x[shape.at(sample, head, token, part)..][..shape.width];
        row.iter().map(|x| Pair::new(*x, 0.0).first() as f64).collect()
    };
    (0..shape.tokens).map(row).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn dot_of_sizes(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a * b).abs()).sum()
}

/// Softmax of a row of scores, of the tokens it sees.
fn weights(q: &[Vec<f64>], k: &[Vec<f64>], token: usize, scale: f64) -> Vec<f64> {
    let scores: Vec<f64> = k[..=token].iter().map(|k| dot(&q[token], k) * scale).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
    scores.iter().map(|s| (s - top).exp() / total).collect()
}

/// What a relative error of the weights may be, from scores that are sums in f32.
fn slack(q: &[f64], k: &[Vec<f64>], scale: f64) -> f64 {
    let largest = k.iter().map(|k| dot_of_sizes(q, k)).fold(0.0, f64::max);
    (q.len() + 8) as f64 * f32::EPSILON as f64 * (1.0 + largest * scale) * 2.0
}

const BF16: f64 = 1.0 / 256.0;

fn assert_near(what: &str, got: f32, wanted: f32, bound: f64) {
    assert!((got as f64 - wanted as f64).abs() <= bound, "{what}: {got:e}, not {wanted:e} within {bound:e}");
}

fn check_forward(shape: Shape, qkv: &[f32]) -> Vec<f32> {
    let case = Case::new(CALL, Op::CausalAttention(shape.op()), &[given(&shape.qkv(), qkv.to_vec())]);
    let (got, wanted) = (case.on_gpu(Dtype::Bf16), case.on_processor::<Mixed>());
    let scale = 1.0 / (shape.width as f64).sqrt();
    for (sample, head) in shape.all_heads() {
        let [q, k, v] = [0, 1, 2].map(|part| rows(qkv, shape, (sample, head), (part, 3)));
        for token in 0..shape.tokens {
            let p = weights(&q, &k, token, scale);
            let slack = slack(&q[token], &k[..=token], scale) + (token + 2) as f64 * f32::EPSILON as f64;
            for column in 0..shape.width {
                let terms = p.iter().zip(&v).map(|(p, v)| p * v[column]);
                let deviation = (terms.clone().map(|x| x * x).sum::<f64>() * 2.0 / 3.0).sqrt() * BF16;
                let bound = 6.0 * deviation + slack * terms.map(f64::abs).sum::<f64>();
                let at = shape.at(sample, head, token, (0, 1)) + column;
                let what = format!("{shape:?}: head {head} of sample {sample}, token {token}, column {column}");
                assert_near(&what, got[at], wanted[at], bound + 1e-30);
            }
        }
    }
    let (got_sums, wanted_sums) = (case.output(&got, 1), case.output(&wanted, 1));
    for (got, wanted) in got_sums.iter().zip(wanted_sums) {
        assert_near("log2 of a sum", *got, *wanted, 1e-5 * (1.0 + wanted.abs() as f64));
    }
    wanted
}

#[test]
fn attention_is_the_processors_but_for_the_order_of_sums() {
    for (samples, tokens, heads, width) in
        [(1, 1, 1, 1), (2, 5, 2, 3), (1, 64, 1, 16), (1, 130, 2, 64), (2, 67, 1, 32), (1, 201, 1, 80), (1, 129, 1, 128)]
    {
        let shape = Shape { samples, tokens, heads, width };
        check_forward(shape, &random("qkv", shape.qkv().iter().product()));
    }
}

#[test]
fn attention_with_scores_of_thousands_picks_the_largest() {
    let shape = Shape { samples: 1, tokens: 140, heads: 1, width: 16 };
    let mut qkv = random("qkv", shape.qkv().iter().product());
    // Only whole numbers, so that scores are exact, and far apart.
    for (i, x) in qkv.iter_mut().enumerate() {
        *x = if i % 48 < 32 { (*x * 40.0).round() } else { *x };
    }
    check_forward(shape, &qkv);
}

#[test]
fn nothing_is_attended_to_without_channels_or_tokens() {
    for shape in [[2, 5, 0], [2, 0, 12], [0, 3, 12]] {
        let case = Case::new(CALL, Op::CausalAttention(CausalAttention { heads: 2 }), &[floats(&shape)]);
        let (got, wanted) = (case.on_gpu(Dtype::Bf16), case.on_processor::<Mixed>());
        assert_eq!(got, wanted, "{shape:?}");
    }
}

#[test]
fn a_value_that_is_not_finite_spoils_the_queries_that_see_it_and_no_earlier_one() {
    let shape = Shape { samples: 2, tokens: 150, heads: 2, width: 16 };
    let mut qkv = random("qkv", shape.qkv().iter().product());
    for (token, column, value) in [(70, 3, f32::NAN), (10, 5, f32::INFINITY), (140, 5, f32::NEG_INFINITY)] {
        qkv[shape.at(1, 0, token, (2, 3)) + column] = value;
    }
    // And a key, whose scores are hidden from those before it.
    qkv[shape.at(0, 1, 99, (1, 3))] = f32::NAN;
    let case = Case::new(CALL, Op::CausalAttention(shape.op()), &[given(&shape.qkv(), qkv)]);
    let (got, wanted) = (case.on_gpu(Dtype::Bf16), case.on_processor::<Mixed>());
    for (i, (got, wanted)) in case.output(&got, 0).iter().zip(case.output(&wanted, 0)).enumerate() {
        let is_same = got == wanted || (got.is_nan() && wanted.is_nan()) || (got - wanted).abs() < 0.01;
        assert!(is_same, "number {i} is {got}, not {wanted}");
    }
}

/// The terms of one sum of the gradient.
#[derive(Clone, Copy, Default)]
struct Terms {
    largest: f64,
    /// Sum of what each may be off by before it is rounded.
    slack: f64,
}

impl Terms {
    fn add(&mut self, term: f64, slack: f64) {
        self.largest = self.largest.max(term.abs());
        self.slack += slack;
    }

    fn bound(self) -> f64 {
        3.0 * 2.0 * BF16 * self.largest + self.slack + 1e-30
    }
}

/// The terms of dqkv.
fn terms(shape: Shape, qkv: &[f32], y: &[f32], dy: &[f32]) -> Vec<Terms> {
    let mut all = vec![Terms::default(); qkv.len()];
    let scale = 1.0 / (shape.width as f64).sqrt();
    for (sample, head) in shape.all_heads() {
        let [q, k, v] = [0, 1, 2].map(|part| rows(qkv, shape, (sample, head), (part, 3)));
        let [y, dy] = [y, dy].map(|x| rows(x, shape, (sample, head), (0, 1)));
        let at = |token, part| shape.at(sample, head, token, (part, 3));
        for query in 0..shape.tokens {
            let p = weights(&q, &k, query, scale);
            let of_p = slack(&q[query], &k[..=query], scale) + shape.tokens as f64 * f32::EPSILON as f64;
            let along = dot(&y[query], &dy[query]);
            for (key, p) in p.into_iter().enumerate() {
                let ds = p * (dot(&dy[query], &v[key]) - along) * scale;
                let sizes = dot_of_sizes(&dy[query], &v[key]) + dot_of_sizes(&y[query], &dy[query]);
                let of_ds = ds.abs() * of_p + p * sizes * scale * (shape.width + 8) as f64 * f32::EPSILON as f64;
                for column in 0..shape.width {
                    let (q, k, dy) = (q[query][column], k[key][column], dy[query][column]);
                    all[at(query, 0) + column].add(ds * k, of_ds * k.abs());
                    all[at(key, 1) + column].add(ds * q, of_ds * q.abs());
                    all[at(key, 2) + column].add(p * dy, p * of_p * dy.abs());
                }
            }
        }
    }
    all
}

fn check_gradient(shape: Shape) {
    let qkv = random("qkv", shape.qkv().iter().product());
    let forward = Case::new(CALL, Op::CausalAttention(shape.op()), &[given(&shape.qkv(), qkv.clone())]);
    let out = forward.on_processor::<Mixed>();
    let (y, sums) = (forward.output(&out, 0).to_vec(), forward.output(&out, 1).to_vec());
    let dy = random("dy", y.len());
    let inputs = [
        given(&shape.qkv(), qkv.clone()),
        given(&shape.y(), y.clone()),
        given(&[shape.samples, shape.heads, shape.tokens], sums),
        given(&shape.y(), dy.clone()),
    ];
    let case = Case::new(CALL, Op::CausalAttentionGrad(CausalAttentionGrad(shape.op())), &inputs);
    let (got, wanted) = (case.on_gpu(Dtype::Bf16), case.on_processor::<Mixed>());
    for (i, terms) in terms(shape, &qkv, &y, &dy).into_iter().enumerate() {
        assert_near(&format!("{shape:?}: number {i}"), got[i], wanted[i], terms.bound());
    }
}

#[test]
fn its_gradient_is_the_processors_but_for_the_order_of_sums() {
    for (samples, tokens, heads, width) in
        [(1, 1, 1, 1), (2, 5, 2, 3), (1, 64, 1, 16), (1, 130, 2, 64), (2, 67, 1, 32), (1, 201, 1, 80), (1, 129, 1, 128)]
    {
        check_gradient(Shape { samples, tokens, heads, width });
    }
}

#[test]
fn a_sample_has_the_same_bits_alone_and_among_others() {
    let shape = Shape { samples: 3, tokens: 70, heads: 2, width: 16 };
    let qkv = random("qkv", shape.qkv().iter().product());
    let run = |samples: std::ops::Range<usize>| {
        let len = qkv.len() / 3;
        let part = qkv[samples.start * len..samples.end * len].to_vec();
        let (alone, shape) = (samples.len(), Shape { samples: samples.len(), ..shape });
        let forward = Case::new(CALL, Op::CausalAttention(shape.op()), &[given(&shape.qkv(), part.clone())]);
        let out = forward.on_gpu(Dtype::Bf16);
        let (y, sums) = (forward.output(&out, 0).to_vec(), forward.output(&out, 1).to_vec());
        let sums_shape = [alone, shape.heads, shape.tokens];
        let inputs = [given(&shape.qkv(), part), given(&shape.y(), y.clone()), given(&sums_shape, sums.clone())];
        let dy: Input = given(&shape.y(), y.iter().map(|y| y * 0.5).collect());
        let inputs: Vec<Input> = inputs.into_iter().chain([dy]).collect();
        let grad = Case::new(CALL, Op::CausalAttentionGrad(CausalAttentionGrad(shape.op())), &inputs);
        [y, sums, grad.on_gpu(Dtype::Bf16)].map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>())
    };
    let all = run(0..3);
    for sample in 0..3 {
        for (alone, all) in run(sample..sample + 1).iter().zip(&all) {
            let len = all.len() / 3;
            assert_eq!(alone[..], all[sample * len..][..len], "sample {sample}");
        }
    }
}
