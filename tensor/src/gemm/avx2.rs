//! The tiles of `gemm` with AVX2 and FMA: up to 6 rows by 16 columns of C in 12 registers.

use super::{Start, Tile, indirect};
use crate::real::Real;
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx2 and fma, and `Tile::check(16)` held.
pub(super) unsafe fn run(tile: Tile<'_>) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows, rows(tile), 1, 2, 3, 4, 5, 6) }
}

/// # Safety
/// As `run`, and `tile.rows == R`.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const R: usize>(tile: Tile<'_>) {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    let (mut a, mut b) = (tile.a.as_ptr(), tile.b.as_ptr());
    let out = tile.c;
    // SAFETY: `Tile::check` made sure that a holds k * R floats, b reaches 16 floats into its last row, left
    // siblings are R * 16 floats long and c reaches 16 floats into row R - 1; the pointers walk exactly these (and end one stride behind b's
    // last row, computed by wrapping_add and not read).
    unsafe {
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = _mm256_loadu_ps(out.add(r * tile.c_stride));
                row[1] = _mm256_loadu_ps(out.add(r * tile.c_stride + 8));
            }
        }
        for _ in 0..tile.k {
            let (left, right) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (r, row) in c.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(r));
                row[0] = _mm256_fmadd_ps(x, left, row[0]);
                row[1] = _mm256_fmadd_ps(x, right, row[1]);
            }
            a = a.wrapping_add(R);
            b = b.wrapping_add(tile.b_stride);
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm256_storeu_ps(out.add(r * tile.c_stride), row[0]);
            _mm256_storeu_ps(out.add(r * tile.c_stride + 8), row[1]);
        }
    }
}

/// The left siblings of a sum over shards, added one after the other.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn add_left<const R: usize>(c: &mut [[__m256; 2]; R], left: &[f32]) {
    for left in left.chunks_exact(R * 16) {
        for (row, left) in c.iter_mut().zip(left.as_chunks::<16>().0) {
            for (sum, left) in row.iter_mut().zip(left.as_chunks::<8>().0) {
                // SAFETY: an array of eight floats is read.
                *sum = one_nan(_mm256_add_ps(unsafe { _mm256_loadu_ps(left.as_ptr()) }, *sum));
            }
        }
    }
}

/// Every NaN becomes the one, all else stays.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(crate) fn one_nan(sum: __m256) -> __m256 {
    let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(sum, sum);
    _mm256_blendv_ps(sum, _mm256_set1_ps(<f32 as Real>::NAN), is_nan)
}

/// # Safety
/// The machine has avx2 and fma, and `indirect::Tile::check(6, 16)` held.
pub(super) unsafe fn run_indirect(tile: indirect::Tile<'_, f32, f32>, c: &mut [f32]) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows.len(), indirect_rows(tile, c), 1, 2, 3, 4, 5, 6) }
}

/// # Safety
/// As `run_indirect`, and the tile has R rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn indirect_rows<const R: usize>(tile: indirect::Tile<'_, f32, f32>, out: &mut [f32]) {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    let out = out.as_mut_ptr();
    // SAFETY: `Tile::check` made sure that every row's start plus every step lies in a, that b holds 16 floats a step,
    // and that c holds R rows of 16; the pointers walk exactly these.
    unsafe {
        let starts: [*const f32; R] = std::array::from_fn(|r| tile.a.as_ptr().add(tile.rows[r] as usize));
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = _mm256_loadu_ps(out.add(r * 16));
                row[1] = _mm256_loadu_ps(out.add(r * 16 + 8));
            }
        }
        let mut b = tile.b.as_ptr();
        for step in tile.steps.list() {
            let (left, right) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for (start, row) in starts.iter().zip(&mut c) {
                let x = _mm256_set1_ps(*start.add(*step as usize));
                row[0] = _mm256_fmadd_ps(x, left, row[0]);
                row[1] = _mm256_fmadd_ps(x, right, row[1]);
            }
            b = b.add(16);
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm256_storeu_ps(out.add(r * 16), row[0]);
            _mm256_storeu_ps(out.add(r * 16 + 8), row[1]);
        }
    }
}
