//! The tile of `gemm` for pairs of bf16 with AVX-512: up to 14 rows by 32 columns of C in 28 registers.
//!
//! A link of the chain is one `vdpbf16ps`, two multiply-adds in the time of one.

use super::avx512::{add_left, one_nan};
use super::{Start, Tile, indirect};
use crate::bf16::Pair;
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx512f and avx512bf16, and `Tile::check(32)` held.
pub(super) unsafe fn run(tile: Tile<'_, Pair>) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows, rows(tile), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14) }
}

/// # Safety
/// As `run`, and `tile.rows == R`.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const R: usize>(tile: Tile<'_, Pair>) {
    let mut c = [[_mm512_setzero_ps(); 2]; R];
    let (mut a, mut b) = (tile.a.as_ptr(), tile.b.as_ptr());
    let out = tile.c;
    // SAFETY: `Tile::check` made sure that a holds k * R pairs, b reaches 32 pairs into its last row, left
    // siblings are R * 32 floats long and c reaches 32 floats into row R - 1; the pointers walk exactly these (and end
    // one stride behind b's last row, computed by wrapping_add and not read).
    unsafe {
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = _mm512_loadu_ps(out.add(r * tile.c_stride));
                row[1] = _mm512_loadu_ps(out.add(r * tile.c_stride + 16));
            }
        }
        for _ in 0..tile.k {
            let (left, right) = (_mm512_loadu_ps(b.cast()), _mm512_loadu_ps(b.add(16).cast()));
            for (r, row) in c.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r).cast::<f32>());
                row[0] = dot(row[0], x, left);
                row[1] = dot(row[1], x, right);
            }
            a = a.wrapping_add(R);
            b = b.wrapping_add(tile.b_stride);
        }
        if tile.left.is_empty() {
            // The payload of a NaN is one of the operands', and which of them the sets do not agree on.
            c.as_flattened_mut().iter_mut().for_each(|sum| *sum = one_nan(*sum));
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm512_storeu_ps(out.add(r * tile.c_stride), row[0]);
            _mm512_storeu_ps(out.add(r * tile.c_stride + 16), row[1]);
        }
    }
}

/// # Safety
/// The machine has avx512f and avx512bf16, and `indirect::Tile::check(14, 32)` held.
pub(super) unsafe fn run_indirect(tile: indirect::Tile<'_, Pair, f32>, c: &mut [f32]) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows.len(), indirect_rows(tile, c), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14) }
}

/// # Safety
/// As `run_indirect`, and the tile has R rows.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn indirect_rows<const R: usize>(tile: indirect::Tile<'_, Pair, f32>, out: &mut [f32]) {
    let mut c = [[_mm512_setzero_ps(); 2]; R];
    let out = out.as_mut_ptr();
    // SAFETY: `Tile::check` made sure that every row's start plus every step lies in a, that b holds 32 pairs a step,
    // and that c holds R rows of 32; the pointers walk exactly these.
    unsafe {
        let starts: [*const Pair; R] = std::array::from_fn(|r| tile.a.as_ptr().add(tile.rows[r] as usize));
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = _mm512_loadu_ps(out.add(r * 32));
                row[1] = _mm512_loadu_ps(out.add(r * 32 + 16));
            }
        }
        let mut b = tile.b.as_ptr();
        for step in tile.steps.list() {
            let (left, right) = (_mm512_loadu_ps(b.cast()), _mm512_loadu_ps(b.add(16).cast()));
            for (start, row) in starts.iter().zip(&mut c) {
                dot_in_place(row, [left, right], start.wrapping_add(*step as usize));
            }
            b = b.add(32);
        }
        if tile.left.is_empty() {
            // The payload of a NaN is one of the operands', and which of them the sets do not agree on.
            c.as_flattened_mut().iter_mut().for_each(|sum| *sum = one_nan(*sum));
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm512_storeu_ps(out.add(r * 32), row[0]);
            _mm512_storeu_ps(out.add(r * 32 + 16), row[1]);
        }
    }
}

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
