//! The tiles of `gemm` with AVX-512: up to 14 rows by 32 columns of C in 28 registers.

use super::kernel::prefetch_to_write;
use super::{Start, Tile, Tree, indirect};
use crate::real::Real;
use std::arch::x86_64::*;

kernels!(
    f32, __m512, 16, "avx512f", [1 2 3 4 5 6 7 8 9 10 11 12 13 14], half: 7,
    zero: _mm512_setzero_ps, load: _mm512_loadu_ps, store: _mm512_storeu_ps, broadcast: repeat, link: fused,
    row: multiply_add, begin: same, add: _mm512_add_ps, one_nan: one_nan, end: same,
);

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn repeat(x: &f32) -> __m512 {
    _mm512_set1_ps(*x)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn fused(sum: __m512, x: __m512, b: __m512) -> __m512 {
    _mm512_fmadd_ps(x, b, sum)
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn same(sum: __m512) -> __m512 {
    sum
}

/// Quiet and signalling NaN become the one, all else stays.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn one_nan(sum: __m512) -> __m512 {
    let (nan, keep) = (_mm512_set1_ps(<f32 as Real>::NAN), _mm512_set1_epi32(0x1111_1100));
    _mm512_fixupimm_ps::<0>(nan, sum, keep)
}

/// row += x b, as instructions: left to itself the compiler interleaves two steps and spills a third of the sums.
///
/// # Safety
/// The machine has avx512f, and `x` points to a float.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn multiply_add(row: &mut [__m512; 2], b: [__m512; 2], x: *const f32) {
    // SAFETY: two multiply-adds in registers, whose operand in memory is the float that the caller promises.
    unsafe {
        std::arch::asm!(
            "vbroadcastss {x}, dword ptr [{at}]",
            "vfmadd231ps {c0}, {b0}, {x}",
            "vfmadd231ps {c1}, {b1}, {x}",
            c0 = inout(zmm_reg) row[0],
            c1 = inout(zmm_reg) row[1],
            b0 = in(zmm_reg) b[0],
            b1 = in(zmm_reg) b[1],
            x = out(zmm_reg) _,
            at = in(reg) x,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
