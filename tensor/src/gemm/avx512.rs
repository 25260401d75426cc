//! The tiles of `gemm` with AVX-512: up to 14 rows by 32 columns of C in 28 registers.

use super::{Start, Tile, indirect};
use crate::real::Real;
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx512f, and `Tile::check(32)` held.
pub(super) unsafe fn run(tile: Tile<'_>) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows, rows(tile), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14) }
}

/// # Safety
/// As `run`, and `tile.rows == R`.
#[target_feature(enable = "avx512f")]
unsafe fn rows<const R: usize>(tile: Tile<'_>) {
    let mut c = [[_mm512_setzero_ps(); 2]; R];
    let (mut a, mut b) = (tile.a.as_ptr(), tile.b.as_ptr());
    let out = tile.c;
    // SAFETY: `Tile::check` made sure that a holds k * R floats, b reaches 32 floats into its last row, left
    // siblings are R * 32 floats long and c reaches 32 floats into row R - 1; the pointers walk exactly these (and end one stride behind b's
    // last row, computed by wrapping_add and not read).
    unsafe {
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = _mm512_loadu_ps(out.add(r * tile.c_stride));
                row[1] = _mm512_loadu_ps(out.add(r * tile.c_stride + 16));
            }
        }
        for _ in 0..tile.k {
            let (left, right) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (r, row) in c.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r));
                row[0] = _mm512_fmadd_ps(x, left, row[0]);
                row[1] = _mm512_fmadd_ps(x, right, row[1]);
            }
            a = a.wrapping_add(R);
            b = b.wrapping_add(tile.b_stride);
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm512_storeu_ps(out.add(r * tile.c_stride), row[0]);
            _mm512_storeu_ps(out.add(r * tile.c_stride + 16), row[1]);
        }
    }
}

/// The left siblings of a sum over shards, added one after the other.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn add_left<const R: usize>(c: &mut [[__m512; 2]; R], left: &[f32]) {
    for left in left.chunks_exact(R * 32) {
        for (row, left) in c.iter_mut().zip(left.as_chunks::<32>().0) {
            for (sum, left) in row.iter_mut().zip(left.as_chunks::<16>().0) {
                // SAFETY: an array of sixteen floats is read.
                *sum = one_nan(_mm512_add_ps(unsafe { _mm512_loadu_ps(left.as_ptr()) }, *sum));
            }
        }
    }
}

/// Quiet and signalling NaN become the one, all else stays.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn one_nan(sum: __m512) -> __m512 {
    let (nan, keep) = (_mm512_set1_ps(<f32 as Real>::NAN), _mm512_set1_epi32(0x1111_1100));
    _mm512_fixupimm_ps::<0>(nan, sum, keep)
}

/// # Safety
/// The machine has avx512f, and `indirect::Tile::check(14, 32)` held.
pub(super) unsafe fn run_indirect(tile: indirect::Tile<'_, f32, f32>, c: &mut [f32]) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows.len(), indirect_rows(tile, c), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14) }
}

/// # Safety
/// As `run_indirect`, and the tile has R rows.
#[target_feature(enable = "avx512f")]
unsafe fn indirect_rows<const R: usize>(tile: indirect::Tile<'_, f32, f32>, out: &mut [f32]) {
    let mut c = [[_mm512_setzero_ps(); 2]; R];
    let out = out.as_mut_ptr();
    // SAFETY: `Tile::check` made sure that every row's start plus every step lies in a, that b holds 32 floats a step,
    // and that c holds R rows of 32; the pointers walk exactly these.
    unsafe {
        let starts: [*const f32; R] = std::array::from_fn(|r| tile.a.as_ptr().add(tile.rows[r] as usize));
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = _mm512_loadu_ps(out.add(r * 32));
                row[1] = _mm512_loadu_ps(out.add(r * 32 + 16));
            }
        }
        let mut b = tile.b.as_ptr();
        for step in tile.steps.list() {
            let (left, right) = (_mm512_loadu_ps(b), _mm512_loadu_ps(b.add(16)));
            for (start, row) in starts.iter().zip(&mut c) {
                multiply_add(row, [left, right], start.wrapping_add(*step as usize));
            }
            b = b.add(32);
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm512_storeu_ps(out.add(r * 32), row[0]);
            _mm512_storeu_ps(out.add(r * 32 + 16), row[1]);
        }
    }
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
