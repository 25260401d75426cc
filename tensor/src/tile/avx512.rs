//! The tile of `tile` with AVX-512: up to 8 rows by 32 columns of C in 16 registers.

use super::{LANES, Product};
use crate::gemm::Start;
use std::arch::x86_64::*;

/// # Safety
/// The machine has avx512f, `Product::check` held, and the product has at most 8 rows and 32 columns.
pub(super) unsafe fn run(product: Product<'_, f32>, c: &mut [f32], c_stride: usize) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        match product.columns / LANES {
            1 => run_wide::<1>(product, c, c_stride),
            2 => run_wide::<2>(product, c, c_stride),
            other => unreachable!("a tile has 1 or 2 vectors of columns, not {other}"),
        }
    }
}

/// # Safety
/// As `run`, and `product.columns == 16 * V`.
unsafe fn run_wide<const V: usize>(product: Product<'_, f32>, c: &mut [f32], c_stride: usize) {
    // SAFETY: the caller's promise is handed on.
    unsafe {
        match product.rows {
            1 => tile::<1, V>(product, c, c_stride),
            2 => tile::<2, V>(product, c, c_stride),
            3 => tile::<3, V>(product, c, c_stride),
            4 => tile::<4, V>(product, c, c_stride),
            5 => tile::<5, V>(product, c, c_stride),
            6 => tile::<6, V>(product, c, c_stride),
            7 => tile::<7, V>(product, c, c_stride),
            8 => tile::<8, V>(product, c, c_stride),
            other => unreachable!("a tile has 1 to 8 rows, not {other}"),
        }
    }
}

/// # Safety
/// As `run`, and the product has R rows and 16 V columns.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const R: usize, const V: usize>(product: Product<'_, f32>, c: &mut [f32], c_stride: usize) {
    let mut sums = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (product.a.data.as_ptr(), product.b.as_ptr());
    let out = c.as_mut_ptr();
    // SAFETY: `Product::check` made sure that A holds R rows of k elements at its strides, B k rows and C R rows of
    // 16 V floats. The pointers walk exactly these (and end one step behind, computed by wrapping_add and not read).
    unsafe {
        if product.start == Start::Go {
            for (r, row) in sums.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(out.add(r * c_stride + v * LANES));
                }
            }
        }
        for _ in 0..product.k {
            let mut line = [_mm512_setzero_ps(); V];
            for (v, line) in line.iter_mut().enumerate() {
                *line = _mm512_loadu_ps(b.add(v * LANES));
            }
            for (r, row) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(r * product.a.row));
                for (sum, line) in row.iter_mut().zip(line) {
                    *sum = _mm512_fmadd_ps(x, line, *sum);
                }
            }
            a = a.wrapping_add(product.a.col);
            b = b.wrapping_add(product.b_stride);
        }
        for (r, row) in sums.iter().enumerate() {
            for (v, sum) in row.iter().enumerate() {
                _mm512_storeu_ps(out.add(r * c_stride + v * LANES), *sum);
            }
        }
    }
}
