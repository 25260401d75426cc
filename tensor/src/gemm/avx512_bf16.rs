//! The tile of `gemm` for pairs of bf16 with AVX-512: up to 14 rows by 32 columns of C in 28 registers.
//!
//! A link of the chain is one `vdpbf16ps`, two multiply-adds in the time of one.

use super::avx512::{one_nan, repeat, same};
use super::kernel::prefetch_to_write;
use super::{Start, Tile, Tree, indirect};
use crate::bf16::Pair;
use std::arch::x86_64::*;

// The payload of a NaN is one of the operands', and which of them the sets do not agree on: `end` is `one_nan`.
kernels!(
    Pair, __m512, 16, "avx512f,avx512bf16", [1 2 3 4 5 6 7 8 9 10 11 12 13 14], half: 7,
    zero: _mm512_setzero_ps, load: _mm512_loadu_ps, store: _mm512_storeu_ps, broadcast: repeat, link: dot,
    row: dot_in_place, begin: same, add: _mm512_add_ps, one_nan: one_nan, end: one_nan,
);

/// row += x b, as instructions, for the reason that `avx512::multiply_add` has.
///
/// # Safety
/// The machine has avx512f and avx512bf16, and `x` points to a pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dot_in_place(row: &mut [__m512; 2], b: [__m512; 2], x: *const Pair) {
    // SAFETY: two dots in registers, whose operand in memory is the pair that the caller promises.
    unsafe {
        std::arch::asm!(
            "vbroadcastss {x}, dword ptr [{at}]",
            "vdpbf16ps {c0}, {b0}, {x}",
            "vdpbf16ps {c1}, {b1}, {x}",
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

/// `bf16::dot` of sixteen pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) fn dot(sum: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: the same 512 bits, of which any are thirty-two bf16.
    unsafe {
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b))
    }
}
