//! GFLOP/s of matrix products as training uses them, on one thread and on two: the fastest of many runs.
//!
//! One shard: x Wᵀ as in a forward pass. Several: dyᵀ x as in a weight's gradient, summed over the shards.
//! `cargo run --release -p elastic-tensor --example products`

use elastic_tensor::gemm::{Gemm, Mat, Start, TeamGemm};
use elastic_tensor::ops::Work;
use elastic_tensor::real::Real;
use std::time::{Duration, Instant};

fn main() {
    for (m, n, k, shards) in [
        (512, 512, 512, 1),
        (1024, 1024, 1024, 1),
        (256, 3072, 768, 1),
        (64, 128, 784, 1),
        (64, 512, 784, 1),
        (2048, 256, 256, 1),
        (512, 784, 64, 1),
        (512, 784, 64, 8),
        (512, 784, 64, 16),
        (1024, 256, 2048, 1),
        (1024, 256, 2048, 8),
    ] {
        let gflops = [1, 2].map(|threads| measure([m, n, k], shards, threads));
        println!("{m} x {n} x {k}, {shards} shards: {:.0} / {:.0} GFLOP/s", gflops[0], gflops[1]);
    }
}

fn measure([m, n, k]: [usize; 3], shards: usize, threads: usize) -> f64 {
    let value = |i: usize| (i * 37 % 101) as f32 / 101.0 - 0.5;
    let (a, b): (Vec<f32>, Vec<f32>) = ((0..m * k).map(value).collect(), (0..n * k).map(value).collect());
    let (mut c, mut work) = (vec![0.0; m * n], Work::new(threads));
    let (a, b) = match shards {
        1 => (Mat::rows(&a, k), Mat::rows(&b, k).transposed()),
        _ => (Mat::rows(&a, m).transposed(), Mat::rows(&b, n)),
    };
    let gemm = Gemm { m, n, k, a, b, start: Start::Zero };
    let (mut best, start) = (f64::INFINITY, Instant::now());
    while start.elapsed() < Duration::from_millis(400) {
        let begin = Instant::now();
        f32::product(TeamGemm { gemm, shards, bias: &[] }, &mut c, n, &mut work);
        best = best.min(begin.elapsed().as_secs_f64());
    }
    2.0 * (m * n * k) as f64 / best / 1e9
}
