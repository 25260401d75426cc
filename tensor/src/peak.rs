//! The machine's peak in f32: multiply-adds on registers alone, no memory.

use std::time::Instant;

/// Independent sums: more than latency times width of every core there is.
const SUMS: usize = 24;
const ROUNDS: usize = 4_000_000;

/// GFLOP/s of `threads` together, the best of five, with the widest vectors of the machine.
pub fn measure(threads: usize) -> f64 {
    let once = || {
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one_thread)).collect();
            threads.into_iter().map(|thread| thread.join().expect("a loop ends")).sum()
        })
    };
    (0..5).map(|_| once()).fold(0.0, f64::max)
}

fn one_thread() -> f64 {
    let begin = Instant::now();
    let lanes = loops();
    (2 * lanes * SUMS * ROUNDS) as f64 / begin.elapsed().as_secs_f64() / 1e9
}

/// Runs the loop with the widest vectors there are; their lanes.
fn loops() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has avx512f: it was asked just now.
            unsafe { with_avx512() };
            return 16;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has avx2 and fma: it was asked just now.
            unsafe { with_avx2() };
            return 8;
        }
    }
    let mut sums = [1.0f32; SUMS];
    for _ in 0..ROUNDS {
        sums.iter_mut().for_each(|sum| *sum = std::hint::black_box(*sum) * 0.5 + 0.5);
    }
    std::hint::black_box(sums);
    1
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn with_avx512() {
    use std::arch::x86_64::*;
    let half = _mm512_set1_ps(std::hint::black_box(0.5));
    let mut sums = [_mm512_set1_ps(1.0); SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, half, half);
        }
    }
    std::hint::black_box(sums);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2() {
    use std::arch::x86_64::*;
    let half = _mm256_set1_ps(std::hint::black_box(0.5));
    // Sixteen registers hold a factor and twelve sums; two rounds of twelve make the same count.
    let mut sums = [_mm256_set1_ps(1.0); SUMS / 2];
    for _ in 0..2 * ROUNDS {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, half, half);
        }
    }
    std::hint::black_box(sums);
}
