//! The tile of `gemm` with AVX-512: up to 14 rows by 32 columns of C in 28 registers.

use super::{Start, Tile};
use crate::real::Real;
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx512f, and `Tile::check(32)` held.
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
            7 => rows::<7>(tile),
            8 => rows::<8>(tile),
            9 => rows::<9>(tile),
            10 => rows::<10>(tile),
            11 => rows::<11>(tile),
            12 => rows::<12>(tile),
            13 => rows::<13>(tile),
            14 => rows::<14>(tile),
            other => unreachable!("a tile has 1 to 14 rows, not {other}"),
        }
    }
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
        for left in tile.left.chunks_exact(R * 32) {
            for (r, row) in c.iter_mut().enumerate() {
                for (half, sum) in row.iter_mut().enumerate() {
                    let left = _mm512_loadu_ps(left.as_ptr().add(r * 32 + half * 16));
                    // Quiet and signalling NaN become the first operand, all else stays.
                    let nan = _mm512_set1_ps(<f32 as Real>::NAN);
                    let keep = _mm512_set1_epi32(0x1111_1100);
                    *sum = _mm512_fixupimm_ps::<0>(nan, _mm512_add_ps(left, *sum), keep);
                }
            }
        }
        for (r, row) in c.iter().enumerate() {
            _mm512_storeu_ps(out.add(r * tile.c_stride), row[0]);
            _mm512_storeu_ps(out.add(r * tile.c_stride + 16), row[1]);
        }
    }
}
