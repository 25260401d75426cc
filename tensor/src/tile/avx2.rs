//! The tiles of `tile` with AVX2 and FMA, of f32 and of pairs of bf16: up to 6 rows by 16 columns of C in 12 registers.

use super::Product;
use crate::bf16::Pair;
use crate::gemm::Start;
use crate::gemm::avx2::one_nan;
use crate::gemm::avx2_bf16::{dot, flushed};
use std::arch::x86_64::*;

/// The same tile of both kinds of operands: `begin` and `end` say what becomes of a chain when it is loaded and stored,
/// `link` gives its next link.
macro_rules! tiles {
    ($run:ident, $tile:ident: $operand:ty, $begin:ident, $link:ident, $end:ident) => {
        /// # Safety
        /// The machine has avx2 and fma, `Product::check` held, and the product has at most 6 rows and 16 columns.
        pub(super) unsafe fn $run(product: Product<'_, $operand>, c: &mut [f32], c_stride: usize) {
            // SAFETY: the caller's promise is handed on.
            unsafe {
                match product.rows {
                    1 => $tile::<1>(product, c, c_stride),
                    2 => $tile::<2>(product, c, c_stride),
                    3 => $tile::<3>(product, c, c_stride),
                    4 => $tile::<4>(product, c, c_stride),
                    5 => $tile::<5>(product, c, c_stride),
                    6 => $tile::<6>(product, c, c_stride),
                    other => unreachable!("a tile has 1 to 6 rows, not {other}"),
                }
            }
        }

        /// # Safety
        /// As `run`, and the product has R rows.
        #[target_feature(enable = "avx2,fma")]
        unsafe fn $tile<const R: usize>(product: Product<'_, $operand>, c: &mut [f32], c_stride: usize) {
            let mut sums = [[_mm256_setzero_ps(); 2]; R];
            let (mut a, mut b) = (product.a.data.as_ptr(), product.b.as_ptr());
            let out = c.as_mut_ptr();
            // SAFETY: `Product::check` made sure that A holds R rows of k elements at its strides, B k rows and C R rows of
            // 16 floats. The pointers walk exactly these (and end one step behind, computed by wrapping_add and not read).
            unsafe {
                if product.start == Start::Go {
                    for (r, row) in sums.iter_mut().enumerate() {
                        row[0] = $begin(_mm256_loadu_ps(out.add(r * c_stride)));
                        row[1] = $begin(_mm256_loadu_ps(out.add(r * c_stride + 8)));
                    }
                }
                for _ in 0..product.k {
                    let (left, right) = (_mm256_loadu_ps(b.cast()), _mm256_loadu_ps(b.add(8).cast()));
                    for (r, row) in sums.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*a.add(r * product.a.row).cast::<f32>());
                        row[0] = $link(row[0], x, left);
                        row[1] = $link(row[1], x, right);
                    }
                    a = a.wrapping_add(product.a.col);
                    b = b.wrapping_add(product.b_stride);
                }
                for (r, row) in sums.iter().enumerate() {
                    _mm256_storeu_ps(out.add(r * c_stride), $end(row[0]));
                    _mm256_storeu_ps(out.add(r * c_stride + 8), $end(row[1]));
                }
            }
        }
    };
}

tiles!(run, tile: f32, same, fused, same);
tiles!(run_pairs, pairs: Pair, flushed, dot, one_nan);

#[inline]
#[target_feature(enable = "avx2,fma")]
fn fused(sum: __m256, a: __m256, b: __m256) -> __m256 {
    _mm256_fmadd_ps(a, b, sum)
}

#[inline]
#[target_feature(enable = "avx2,fma")]
fn same(sum: __m256) -> __m256 {
    sum
}
