//! The tiles of `tile` with AVX-512, of f32 and of pairs of bf16: up to 8 rows by 32 columns of C in 16 registers.

use super::{LANES, Product};
use crate::bf16::Pair;
use crate::gemm::Start;
use crate::gemm::avx512::one_nan;
use crate::gemm::avx512_bf16::dot;
use std::arch::x86_64::*;

/// The same tile of both kinds of operands: `link` gives a chain's next link, `end` what is stored of a chain.
macro_rules! tiles {
    ($run:ident, $wide:ident, $tile:ident: $operand:ty, $features:literal, $link:ident, $end:ident) => {
        /// # Safety
        /// The machine has the features, `Product::check` held, and the product has at most 8 rows and 32 columns.
        pub(super) unsafe fn $run(product: Product<'_, $operand>, c: &mut [f32], c_stride: usize) {
            // SAFETY: the caller's promise is handed on.
            unsafe {
                match product.columns / LANES {
                    1 => $wide::<1>(product, c, c_stride),
                    2 => $wide::<2>(product, c, c_stride),
                    other => unreachable!("a tile has 1 or 2 vectors of columns, not {other}"),
                }
            }
        }

        /// # Safety
        /// As `run`, and `product.columns == 16 * V`.
        unsafe fn $wide<const V: usize>(product: Product<'_, $operand>, c: &mut [f32], c_stride: usize) {
            // SAFETY: the caller's promise is handed on.
            unsafe {
                match product.rows {
                    1 => $tile::<1, V>(product, c, c_stride),
                    2 => $tile::<2, V>(product, c, c_stride),
                    3 => $tile::<3, V>(product, c, c_stride),
                    4 => $tile::<4, V>(product, c, c_stride),
                    5 => $tile::<5, V>(product, c, c_stride),
                    6 => $tile::<6, V>(product, c, c_stride),
                    7 => $tile::<7, V>(product, c, c_stride),
                    8 => $tile::<8, V>(product, c, c_stride),
                    other => unreachable!("a tile has 1 to 8 rows, not {other}"),
                }
            }
        }

        /// # Safety
        /// As `run`, and the product has R rows and 16 V columns.
        #[target_feature(enable = $features)]
        unsafe fn $tile<const R: usize, const V: usize>(
            product: Product<'_, $operand>,
            c: &mut [f32],
            c_stride: usize,
        ) {
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
                        *line = _mm512_loadu_ps(b.add(v * LANES).cast());
                    }
                    for (r, row) in sums.iter_mut().enumerate() {
                        let x = _mm512_set1_ps(*a.add(r * product.a.row).cast::<f32>());
                        for (sum, line) in row.iter_mut().zip(line) {
                            *sum = $link(*sum, x, line);
                        }
                    }
                    a = a.wrapping_add(product.a.col);
                    b = b.wrapping_add(product.b_stride);
                }
                for (r, row) in sums.iter().enumerate() {
                    for (v, sum) in row.iter().enumerate() {
                        _mm512_storeu_ps(out.add(r * c_stride + v * LANES), $end(*sum));
                    }
                }
            }
        }
    };
}

tiles!(run, run_wide, tile: f32, "avx512f", fused, same);
tiles!(run_pairs, pairs_wide, pairs: Pair, "avx512f,avx512bf16", dot, one_nan);

#[inline]
#[target_feature(enable = "avx512f")]
fn fused(sum: __m512, a: __m512, b: __m512) -> __m512 {
    _mm512_fmadd_ps(a, b, sum)
}

#[inline]
#[target_feature(enable = "avx512f")]
fn same(sum: __m512) -> __m512 {
    sum
}
