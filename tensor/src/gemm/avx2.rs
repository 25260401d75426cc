//! The tile of `gemm` with AVX2 and FMA: up to 6 rows by 16 columns of C in 12 registers.

use super::{Start, Tile};
use crate::real::Real;
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx2 and fma, and `Tile::check(16)` held.
pub(super) unsafe fn run(tile: Tile<'_>) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        match tile.rows {
            1 => rows::<1>(tile),
            2 => rows::<2>(tile),
            3 => rows::<3>(tile),
            4 => rows::<4>(tile),
            5 => rows::<5>(tile),
            6 => rows::<6>(tile),
            other => unreachable!("a tile has 1 to 6 rows, not {other}"),
        }
    }
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
        for left in tile.left.chunks_exact(R * 16) {
            for (r, row) in c.iter_mut().enumerate() {
                for (half, sum) in row.iter_mut().enumerate() {
                    let both = _mm256_add_ps(_mm256_loadu_ps(left.as_ptr().add(r * 16 + half * 8)), *sum);
                    let is_nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(both, both);
                    *sum = _mm256_blendv_ps(both, _mm256_set1_ps(<f32 as Real>::NAN), is_nan);
                }
            }
        }
        for (r, row) in c.iter().enumerate() {
            _mm256_storeu_ps(out.add(r * tile.c_stride), row[0]);
            _mm256_storeu_ps(out.add(r * tile.c_stride + 8), row[1]);
        }
    }
}
