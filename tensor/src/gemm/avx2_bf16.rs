//! The tile of `gemm` for pairs of bf16 with AVX2 and FMA: up to 6 rows by 16 columns of C.
//!
//! AVX2 has no instruction for pairs, so each link is two multiply-adds, flushed as `bf16::fused` flushes: a machine
//! without AVX-512's bf16 can take part in a job and makes the same bits, at about a third of its speed in f32.

use super::avx2::{one_nan, repeat};
use super::kernel::prefetch_to_write;
use super::{Start, Tile, Tree, indirect};
use crate::bf16::{self, Pair};
use std::arch::x86_64::*;

// The payload of a NaN is one of the operands', and which of them the sets do not agree on: `end` is `one_nan`.
kernels!(
    Pair, __m256, 8, "avx2,fma", [1 2 3 4 5 6], half: 3,
    zero: _mm256_setzero_ps, load: _mm256_loadu_ps, store: _mm256_storeu_ps, broadcast: repeat, link: dot,
    row: dots, begin: flushed, add: _mm256_add_ps, one_nan: one_nan, end: one_nan,
);

/// # Safety
/// The machine has avx2 and fma, and `x` points to a pair.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn dots(row: &mut [__m256; 2], b: [__m256; 2], x: *const Pair) {
    // SAFETY: as the caller promises; a pair has the bits of some f32.
    let x = repeat(unsafe { &*x.cast::<f32>() });
    *row = [dot(row[0], x, b[0]), dot(row[1], x, b[1])];
}

/// `bf16::dot` of eight pairs.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn dot(sum: __m256, a: __m256, b: __m256) -> __m256 {
    let second = |x| _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(-0x1_0000)));
    let first = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
    fused(first(a), first(b), fused(second(a), second(b), sum))
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn fused(a: __m256, b: __m256, c: __m256) -> __m256 {
    let y = _mm256_fmadd_ps(a, b, c);
    let edge = _mm256_cmp_ps::<_CMP_EQ_OQ>(size(y), _mm256_set1_ps(f32::MIN_POSITIVE));
    if _mm256_movemask_ps(edge) != 0 { settle(a, b, c, y) } else { flushed(y) }
}

/// Some elements may have been rounded up to the smallest normal number.
#[cold]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn settle(a: __m256, b: __m256, c: __m256, y: __m256) -> __m256 {
    let array = |x: __m256| {
        let mut array = [0.0f32; 8];
        // SAFETY: eight floats are written to an array of as many.
        unsafe { _mm256_storeu_ps(array.as_mut_ptr(), x) };
        array
    };
    let ([a, b, c], mut y) = ([a, b, c].map(array), array(flushed(y)));
    for (i, y) in y.iter_mut().enumerate().filter(|(_, y)| y.abs() == f32::MIN_POSITIVE) {
        *y = bf16::settle(a[i], b[i], c[i], *y);
    }
    // SAFETY: eight floats are read of an array of as many.
    unsafe { _mm256_loadu_ps(y.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn size(x: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)
}

/// Zeros of their sign for denormal numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn flushed(x: __m256) -> __m256 {
    let keep = _mm256_cmp_ps::<_CMP_NLT_UQ>(size(x), _mm256_set1_ps(f32::MIN_POSITIVE));
    _mm256_and_ps(x, _mm256_or_ps(keep, _mm256_set1_ps(-0.0)))
}
