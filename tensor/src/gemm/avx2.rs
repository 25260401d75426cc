//! The tiles of `gemm` with AVX2 and FMA: up to 6 rows by 16 columns of C in 12 registers.

use super::kernel::prefetch_to_write;
use super::{Start, Tile, Tree, indirect};
use crate::real::Real;
use std::arch::x86_64::*;

kernels!(
    f32, __m256, 8, "avx2,fma", [1 2 3 4 5 6], half: 3,
    zero: _mm256_setzero_ps, load: _mm256_loadu_ps, store: _mm256_storeu_ps, broadcast: repeat, link: fused,
    row: multiply_add, begin: same, add: _mm256_add_ps, one_nan: one_nan, end: same,
);

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn repeat(x: &f32) -> __m256 {
    _mm256_set1_ps(*x)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn fused(sum: __m256, x: __m256, b: __m256) -> __m256 {
    _mm256_fmadd_ps(x, b, sum)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn same(sum: __m256) -> __m256 {
    sum
}

/// # Safety
/// The machine has avx2 and fma, and `x` points to a float.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn multiply_add(row: &mut [__m256; 2], b: [__m256; 2], x: *const f32) {
    // SAFETY: as the caller promises.
    let x = repeat(unsafe { &*x });
    *row = [fused(row[0], x, b[0]), fused(row[1], x, b[1])];
}

/// Every NaN becomes the one, all else stays.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn one_nan(sum: __m256) -> __m256 {
    let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum);
    _mm256_blendv_ps(sum, _mm256_set1_ps(<f32 as Real>::NAN), is_nan)
}
