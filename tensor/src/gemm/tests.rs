//! The promise of `gemm`: one chain per element, whatever the shape of the call.

use super::*;
use crate::philox::{Stream, unit};

fn random(name: &str, len: usize) -> Vec<f32> {
    let stream = Stream::new(7, name);
    (0..len).map(|i| unit(stream.words([i as u32, 0, 0, 0])[0]) * 2.0 - 1.0).collect()
}

/// The chain as the module's head says it.
fn chain(g: Gemm<'_, f32>, c: &mut [f32], stride: usize) {
    for i in 0..g.m {
        for j in 0..g.n {
            let mut sum = if g.start == Start::Go { c[i * stride + j] } else { 0.0 };
            for p in 0..g.k {
                sum = g.a.data[i * g.a.row + p * g.a.col].mul_add(g.b.data[p * g.b.row + j * g.b.col], sum);
            }
            c[i * stride + j] = sum;
        }
    }
}

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn every_instruction_set_gives_the_bits_of_the_plain_chain() {
    let mut pack = Pack::default();
    for (m, n, k) in [
        (1, 1, 1),
        (3, 5, 7),
        (14, 32, 16),
        (15, 33, 257),
        (4, 128, 64),
        (40, 70, 300),
        (2, 600, 3),
        (5, 0, 2),
        (2, 3, 0),
    ] {
        let (a, b) = (random("a", m * k + 1), random("b", n * k + 1));
        for transposed in [(false, false), (true, false), (false, true), (true, true)] {
            for start in [Start::Zero, Start::Go] {
                let a = if transposed.0 { Mat::rows(&a, m).transposed() } else { Mat::rows(&a, k) };
                let b = if transposed.1 { Mat::rows(&b, k).transposed() } else { Mat::rows(&b, n) };
                let g = Gemm { m, n, k, a, b, start };
                let stride = n + 2;
                let before = random("c", m * stride);
                let mut expected = before.clone();
                chain(g, &mut expected, stride);
                for isa in Isa::here() {
                    let mut got = before.clone();
                    fast_on(isa, g, &mut got, stride, &mut pack);
                    assert_eq!(bits(&got), bits(&expected), "{isa:?} {m} {n} {k} {transposed:?} {start:?}");
                }
            }
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let (n, k) = (37, 65);
    let (a, b) = (random("a", 64 * k), random("b", n * k));
    let mut pack = Pack::default();
    let mut whole = vec![0.0; 64 * n];
    let g = |m, a| Gemm { m, n, k, a: Mat::rows(a, k), b: Mat::rows(&b, n), start: Start::Zero };
    fast(g(64, &a), &mut whole, n, &mut pack);
    for i in 0..64 {
        let mut row = vec![0.0; n];
        fast(g(1, &a[i * k..]), &mut row, n, &mut pack);
        assert_eq!(bits(&row), bits(&whole[i * n..][..n]), "row {i}");
    }
}

#[test]
fn zeros_keep_their_signs_as_the_chain_from_plus_zero_says() {
    let mut pack = Pack::default();
    for isa in Isa::here() {
        let mut c = [9.0f32];
        let g = Gemm { m: 1, n: 1, k: 1, a: Mat::rows(&[-0.0], 1), b: Mat::rows(&[1.0], 1), start: Start::Zero };
        fast_on(isa, g, &mut c, 1, &mut pack);
        assert_eq!(c[0].to_bits(), 0, "{isa:?}: +0 + -0 is +0");
    }
}

/// The tree's sum of each shard's chains, then the bias.
fn tree_of_chains(p: TeamGemm<'_, f32>, c: &mut [f32], stride: usize) {
    let k = p.gemm.k / p.shards;
    let mut leaves: Vec<Vec<f32>> = vec![c.to_vec(); p.shards];
    for (shard, leaf) in leaves.iter_mut().enumerate() {
        let shift = |mat: Mat<'_, f32>, along: usize| {
            (0..mat.data.len()).map(|i| mat.data.get(i + shard * k * along).copied().unwrap_or(0.0)).collect::<Vec<_>>()
        };
        let (a, b) = (shift(p.gemm.a, p.gemm.a.col), shift(p.gemm.b, p.gemm.b.row));
        chain(Gemm { k, a: Mat { data: &a, ..p.gemm.a }, b: Mat { data: &b, ..p.gemm.b }, ..p.gemm }, leaf, stride);
    }
    let mut room = Vec::new();
    let is_in_c = |at: usize| at % stride < p.gemm.n && at / stride < p.gemm.m;
    let mut sum = c.to_vec();
    crate::leaves::tree_sum(p.shards, &mut sum, &mut room, |shard, out| out.copy_from_slice(&leaves[shard]));
    for (at, c) in c.iter_mut().enumerate().filter(|(at, _)| is_in_c(*at)) {
        *c = sum[at] + p.bias.get(at % stride).copied().unwrap_or(-0.0);
    }
}

#[test]
fn a_teams_product_has_the_bits_of_the_plain_chain_and_of_the_shards_tree() {
    for (m, n, k) in [(1, 1, 8), (15, 33, 264), (40, 70, 304), (130, 550, 24), (2, 600, 8), (5, 0, 8), (2, 3, 0)] {
        let (a, b, bias) = (random("a", m * k + 1), random("b", n * k + 1), random("bias", n));
        for (transposed, shards) in [((false, true), 1), ((false, false), 1), ((true, false), 1), ((true, true), 1)]
            .into_iter()
            .chain([1, 2, 4, 8].map(|shards| ((true, false), shards)))
        {
            for (start, bias) in [(Start::Zero, &bias[..]), (Start::Zero, &[]), (Start::Go, &[])] {
                if start == Start::Go && shards > 1 {
                    continue;
                }
                let a = if transposed.0 { Mat::rows(&a, m).transposed() } else { Mat::rows(&a, k) };
                let b = if transposed.1 { Mat::rows(&b, k).transposed() } else { Mat::rows(&b, n) };
                let product = TeamGemm { gemm: Gemm { m, n, k, a, b, start }, shards, bias };
                let stride = n + 2;
                let before = random("c", m * stride);
                let mut expected = before.clone();
                tree_of_chains(product, &mut expected, stride);
                for isa in Isa::here() {
                    for threads in [1, 2, 3] {
                        let mut work = crate::ops::Work::<f32>::new(threads);
                        let mut got = before.clone();
                        shared::multiply(isa, product, &mut got, stride, &work.team, &mut work.rooms);
                        let what = format!("{isa:?} {m} {n} {k} {transposed:?} {shards} {start:?} {threads} threads");
                        assert_eq!(bits(&got), bits(&expected), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_sum_over_shards_has_one_nan_and_the_trees_zeros() {
    let a = [-0.0, 1.0, f32::from_bits(0xffc1_2345), f32::INFINITY, -0.0, 1.0, 1.0, f32::NEG_INFINITY];
    for isa in Isa::here() {
        let mut work = crate::ops::Work::<f32>::new(1);
        let mut c = [9.0f32; 4];
        let gemm =
            Gemm { m: 4, n: 1, k: 2, a: Mat::rows(&a, 4).transposed(), b: Mat::rows(&[1.0; 2], 1), start: Start::Zero };
        shared::multiply(isa, TeamGemm { gemm, shards: 2, bias: &[] }, &mut c, 1, &work.team, &mut work.rooms);
        assert_eq!(bits(&c), [0, 0x4000_0000, 0x7fc0_0000, 0x7fc0_0000], "{isa:?}");
    }
}
