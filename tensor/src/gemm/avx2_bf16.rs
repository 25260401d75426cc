//! The tile of `gemm` for pairs of bf16 with AVX2 and FMA: up to 6 rows by 16 columns of C.
//!
//! AVX2 has no instruction for pairs, so each link is two multiply-adds, flushed as `bf16::fused` flushes: a machine
//! without AVX-512's bf16 can take part in a job and makes the same bits, at about a third of its speed in f32.

use super::avx2::{add_left, one_nan};
use super::{Start, Tile, indirect};
use crate::bf16::{self, Pair};
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx2 and fma, and `Tile::check(16)` held.
pub(super) unsafe fn run(tile: Tile<'_, Pair>) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows, rows(tile), 1, 2, 3, 4, 5, 6) }
}

/// # Safety
/// As `run`, and `tile.rows == R`.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const R: usize>(tile: Tile<'_, Pair>) {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    let (mut a, mut b) = (tile.a.as_ptr(), tile.b.as_ptr());
    let out = tile.c;
    // SAFETY: `Tile::check` made sure that a holds k * R pairs, b reaches 16 pairs into its last row, left
    // siblings are R * 16 floats long and c reaches 16 floats into row R - 1; the pointers walk exactly these (and end
    // one stride behind b's last row, computed by wrapping_add and not read).
    unsafe {
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = flushed(_mm256_loadu_ps(out.add(r * tile.c_stride)));
                row[1] = flushed(_mm256_loadu_ps(out.add(r * tile.c_stride + 8)));
            }
        }
        for _ in 0..tile.k {
            let b_pairs = [_mm256_loadu_ps(b.cast()), _mm256_loadu_ps(b.add(8).cast())];
            for (r, row) in c.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(r).cast::<f32>());
                for (sum, b) in row.iter_mut().zip(b_pairs) {
                    *sum = dot(*sum, x, b);
                }
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
            _mm256_storeu_ps(out.add(r * tile.c_stride), row[0]);
            _mm256_storeu_ps(out.add(r * tile.c_stride + 8), row[1]);
        }
    }
}

/// # Safety
/// The machine has avx2 and fma, and `indirect::Tile::check(6, 16)` held.
pub(super) unsafe fn run_indirect(tile: indirect::Tile<'_, Pair, f32>, c: &mut [f32]) {
    // SAFETY: the caller's promise is handed on.
    unsafe { by_rows!(tile.rows.len(), indirect_rows(tile, c), 1, 2, 3, 4, 5, 6) }
}

/// # Safety
/// As `run_indirect`, and the tile has R rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn indirect_rows<const R: usize>(tile: indirect::Tile<'_, Pair, f32>, out: &mut [f32]) {
    let mut c = [[_mm256_setzero_ps(); 2]; R];
    let out = out.as_mut_ptr();
    // SAFETY: `Tile::check` made sure that every row's start plus every step lies in a, that b holds 16 pairs a step,
    // and that c holds R rows of 16; the pointers walk exactly these.
    unsafe {
        let starts: [*const Pair; R] = std::array::from_fn(|r| tile.a.as_ptr().add(tile.rows[r] as usize));
        if tile.start == Start::Go {
            for (r, row) in c.iter_mut().enumerate() {
                row[0] = flushed(_mm256_loadu_ps(out.add(r * 16)));
                row[1] = flushed(_mm256_loadu_ps(out.add(r * 16 + 8)));
            }
        }
        let mut b = tile.b.as_ptr();
        for step in tile.steps.list() {
            let b_pairs = [_mm256_loadu_ps(b.cast()), _mm256_loadu_ps(b.add(8).cast())];
            for (start, row) in starts.iter().zip(&mut c) {
                let x = _mm256_set1_ps(*start.add(*step as usize).cast::<f32>());
                for (sum, b) in row.iter_mut().zip(b_pairs) {
                    *sum = dot(*sum, x, b);
                }
            }
            b = b.add(16);
        }
        if tile.left.is_empty() {
            // The payload of a NaN is one of the operands', and which of them the sets do not agree on.
            c.as_flattened_mut().iter_mut().for_each(|sum| *sum = one_nan(*sum));
        }
        add_left(&mut c, tile.left);
        for (r, row) in c.iter().enumerate() {
            _mm256_storeu_ps(out.add(r * 16), row[0]);
            _mm256_storeu_ps(out.add(r * 16 + 8), row[1]);
        }
    }
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
