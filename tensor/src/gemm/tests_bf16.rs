//! The promise of `gemm` for pairs of bf16: one chain of dots per element, whatever the shape of the call.

use super::*;
use crate::bf16::{Pair, dot};
use crate::mixed::Mixed;
use crate::ops::Work;
use crate::philox::{Stream, unit};

/// Numbers about 1, many zeros of both signs, and such whose products are denormal.
fn random(name: &str, len: usize) -> Vec<f32> {
    let stream = Stream::new(7, name);
    let number = |i: usize| {
        let words = stream.words([i as u32, 0, 0, 0]);
        let x = unit(words[0]) * 2.0 - 1.0;
        match words[1] % 16 {
            0..4 => 0.0,
            4 => -0.0,
            5 => x * 1e-18,
            6 => x * 1e-19,
            7 => x * 1e-39,
            _ => x,
        }
    };
    (0..len).map(number).collect()
}

/// The same with numbers that are not finite.
fn special(name: &str, len: usize) -> Vec<f32> {
    let mut numbers = random(name, len);
    for (at, x) in [(3, f32::INFINITY), (11, f32::from_bits(0xffc1_2345)), (29, f32::NEG_INFINITY), (47, 3.4e38)] {
        if let Some(number) = numbers.get_mut(at) {
            *number = x;
        }
    }
    numbers
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

/// Element (i, j) of a shard's product, from `sum` on.
fn chain(g: &Gemm<'_, f32>, shard: std::ops::Range<usize>, (i, j): (usize, usize), mut sum: f32) -> f32 {
    let a = |p: usize| if p < shard.end { g.a.data[i * g.a.row + p * g.a.col] } else { 0.0 };
    let b = |p: usize| if p < shard.end { g.b.data[p * g.b.row + j * g.b.col] } else { 0.0 };
    for p in shard.clone().step_by(2) {
        sum = dot(sum, Pair::new(a(p), a(p + 1)), Pair::new(b(p), b(p + 1)));
    }
    if sum.is_nan() && !shard.is_empty() { f32::NAN } else { sum }
}

/// The tree's sum of each shard's chains, then the bias.
fn expected(p: TeamGemm<'_, f32>, c: &mut [f32], stride: usize) {
    let k = p.gemm.k / p.shards;
    for (i, j) in (0..p.gemm.m).flat_map(|i| (0..p.gemm.n).map(move |j| (i, j))) {
        let at = &mut c[i * stride + j];
        let start = if p.gemm.start == Start::Go { *at } else { 0.0 };
        let mut sum = [start];
        crate::leaves::tree_sum(p.shards, &mut sum, &mut Vec::new(), |shard, out| {
            out[0] = chain(&p.gemm, shard * k..(shard + 1) * k, (i, j), start);
        });
        *at = sum[0] + p.bias.get(j).copied().unwrap_or(-0.0);
    }
}

const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 8), (15, 33, 264), (40, 70, 56), (130, 550, 24), (2, 600, 8), (5, 0, 8), (2, 3, 0)];

#[test]
fn every_instruction_set_and_team_gives_the_bits_of_the_chain_of_dots_and_of_the_shards_tree() {
    for ((m, n, k), numbers) in SIZES.into_iter().zip([random, special].into_iter().cycle()) {
        // With 8 shards k is 1, 3, 5 and 7 a shard as well: odd ones end with half a pair.
        for k in [k, k + k / 8 * 2, k / 8 * 5, k / 8 * 7] {
            let (a, b, bias) = (numbers("a", m * k + 1), numbers("b", n * k + 1), random("bias", n));
            let orders = [(false, true), (false, false), (true, false), (true, true)].map(|order| (order, 1));
            for (transposed, shards) in orders.into_iter().chain([2, 4, 8].map(|shards| ((true, false), shards))) {
                for (start, bias) in [(Start::Zero, &bias[..]), (Start::Zero, &[]), (Start::Go, &[])] {
                    if start == Start::Go && shards > 1 || k % shards > 0 {
                        continue;
                    }
                    let a = if transposed.0 { Mat::rows(&a, m).transposed() } else { Mat::rows(&a, k) };
                    let b = if transposed.1 { Mat::rows(&b, k).transposed() } else { Mat::rows(&b, n) };
                    let product = TeamGemm { gemm: Gemm { m, n, k, a, b, start }, shards, bias };
                    let stride = n + 2;
                    let before = random("c", m * stride);
                    let mut wanted = before.clone();
                    expected(product, &mut wanted, stride);
                    for isa in Isa::here() {
                        for threads in [1, 2, 3] {
                            let mut work = Work::<Mixed>::new(threads);
                            let mut got = before.clone();
                            shared::multiply(isa, product, &mut got, stride, &work.team, &mut work.rooms);
                            let what =
                                format!("{isa:?} {m} {n} {k} {transposed:?} {shards} {start:?} {threads} threads");
                            assert_eq!(bits(&got), bits(&wanted), "{what}");
                        }
                        if shards == 1 && bias.is_empty() {
                            let mut got = before.clone();
                            alone(isa, product.gemm, &mut got, stride, Pack::<Mixed>::default().alone());
                            // Without a bias nothing is added: the reference's -0 changes nothing either.
                            assert_eq!(bits(&got), bits(&wanted), "{isa:?} {m} {n} {k} {transposed:?} {start:?} alone");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let (n, k) = (37, 65);
    let (a, b) = (random("a", 64 * k), random("b", n * k));
    let mut whole = vec![0.0; 64 * n];
    let mut work = Work::<Mixed>::new(2);
    let gemm = |m, a| Gemm { m, n, k, a: Mat::rows(a, k), b: Mat::rows(&b, n), start: Start::Zero };
    let product = |m, a| TeamGemm { gemm: gemm(m, a), shards: 1, bias: &[] };
    shared::multiply(Isa::best(), product(64, &a), &mut whole, n, &work.team, &mut work.rooms);
    for i in 0..64 {
        let mut row = vec![0.0; n];
        shared::multiply(Isa::best(), product(1, &a[i * k..]), &mut row, n, &work.team, &mut work.rooms);
        assert_eq!(bits(&row), bits(&whole[i * n..][..n]), "row {i}");
    }
}
