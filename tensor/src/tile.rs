//! Products of matrices that are small enough to lie in the cache: C = A B or C + A B, with nothing packed.
//!
//! `gemm` packs both operands first, which costs as much as the product when one side is a head of 32 channels. Here A
//! is read in place, whatever its strides, and B and C have rows of whole vectors: the caller pads. Every element is
//! the chain that `gemm` has, fused multiply-adds over ascending k from +0 (or from C), or `bf16::dot` of pairs, so the
//! bits are `gemm`'s.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use crate::bf16::{self, Pair};
use crate::gemm::{Isa, Mat, Operand, Start};
use crate::real::Real;
use crate::simd::Set;

/// Columns of B and C are a multiple of this.
pub const LANES: usize = 16;

/// A is (rows, k), B (k, columns) with rows that are `b_stride` apart. Numbers, or pairs along k: k counts operands.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a, F> {
    pub rows: usize,
    pub k: usize,
    pub columns: usize,
    pub a: Mat<'a, F>,
    pub b: &'a [F],
    pub b_stride: usize,
    pub start: Start,
}

impl<'a, F: Copy> Product<'a, F> {
    /// What the kernels rely on when they read and write without bounds checks.
    fn check(&self, c: &[f32], c_stride: usize) {
        let Product { rows, k, columns, a, b, b_stride, .. } = *self;
        assert!(rows > 0 && k > 0 && columns > 0, "an empty product is not run");
        assert!(columns.is_multiple_of(LANES), "whole vectors");
        assert!(a.data.len() > (rows - 1) * a.row + (k - 1) * a.col, "A holds its elements");
        assert!(b.len() >= (k - 1) * b_stride + columns, "B holds its rows");
        assert!(c.len() >= (rows - 1) * c_stride + columns, "C holds its rows");
    }

    /// The part from a row and a column on; where it ends is the kernel's business.
    fn from(&self, row: usize, column: usize) -> Product<'a, F> {
        let a = Mat { data: &self.a.data[row * self.a.row..], ..self.a };
        Product { a, b: &self.b[column..], ..*self }
    }
}

/// The f32 product on the best instruction set here.
pub fn fast(product: Product<'_, f32>, c: &mut [f32], c_stride: usize) {
    let set = Set::best();
    on(set, product, c, c_stride, |tile, c| match set.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Set` is one that this machine has, and `check` held.
        Isa::Avx512 => unsafe { avx512::run(tile, c, c_stride) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::run(tile, c, c_stride) },
        _ => portable::run(tile, c, c_stride, portable::fused),
    });
}

/// The product of pairs, each link a `bf16::dot`.
pub fn pairs(product: Product<'_, Pair>, c: &mut [f32], c_stride: usize) {
    let set = Set::of(Pair::set(Isa::best()));
    on(set, product, c, c_stride, |tile, c| match set.isa() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a `Set` is one that this machine has, `Pair::set` leaves it only with the instruction for pairs, and
        // `check` held.
        Isa::Avx512 => unsafe { avx512::run_pairs(tile, c, c_stride) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => unsafe { avx2::run_pairs(tile, c, c_stride) },
        _ => portable::run(tile, c, c_stride, |a, b, sum| bf16::dot(sum, a, b)),
    });
}

/// Cuts the product into tiles of the set.
fn on<O: Copy>(
    set: Set,
    product: Product<'_, O>,
    c: &mut [f32],
    c_stride: usize,
    run: impl Fn(Product<'_, O>, &mut [f32]),
) {
    if product.rows == 0 || product.columns == 0 {
        return;
    }
    product.check(c, c_stride);
    let height = match set.isa() {
        Isa::Avx512 => 8,
        Isa::Avx2 => 6,
        Isa::Portable => 1,
    };
    let width = if set.isa() == Isa::Avx512 { 2 * LANES } else { LANES };
    for column in (0..product.columns).step_by(width) {
        for row in (0..product.rows).step_by(height) {
            let (rows, columns) = (height.min(product.rows - row), width.min(product.columns - column));
            let tile = Product { rows, columns, ..product.from(row, column) };
            let c = &mut c[row * c_stride + column..];
            tile.check(c, c_stride);
            run(tile, c);
        }
    }
}

/// The reference: three loops, products rounded before they are added.
pub fn plain<F: Real>(product: Product<'_, F>, c: &mut [F], c_stride: usize) {
    let Product { rows, k, columns, a, b, b_stride, start } = product;
    for i in 0..rows {
        for j in 0..columns {
            let mut sum = if start == Start::Go { c[i * c_stride + j] } else { F::ZERO };
            for p in 0..k {
                sum += a.data[i * a.row + p * a.col] * b[p * b_stride + j];
            }
            c[i * c_stride + j] = sum;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{FORCED, Gemm, Pack, fast_on as gemm_on};

    #[test]
    fn a_product_has_the_bits_of_gemm_on_every_set() {
        let number = |i: usize| ((i * 7919) % 1013) as f32 / 300.0 - 1.6;
        for (rows, k, columns) in [(1, 1, 16), (8, 3, 32), (7, 32, 48), (13, 300, 16), (32, 33, 80), (0, 4, 16)] {
            for (start, is_transposed) in [(Start::Zero, false), (Start::Go, true)] {
                let (b_stride, c_stride) = (columns + 5, columns + 3);
                let a: Vec<f32> = (0..(rows + 2) * (k + 3)).map(number).collect();
                let b: Vec<f32> = (0..k * b_stride).map(|i| number(i + 5)).collect();
                let before: Vec<f32> = (0..rows * c_stride).map(|i| number(i + 9)).collect();
                let a = match is_transposed {
                    true => Mat::rows(&a, rows + 2).transposed(),
                    false => Mat::rows(&a, k + 3),
                };
                let mut wanted = before.clone();
                let product = Gemm { m: rows, n: columns, k, a, b: Mat::rows(&b, b_stride), start };
                gemm_on(Isa::Portable, product, &mut wanted, c_stride, &mut Pack::default());
                for isa in Isa::here() {
                    FORCED.set(Some(isa));
                    let mut c = before.clone();
                    fast(Product { rows, k, columns, a, b: &b, b_stride, start }, &mut c, c_stride);
                    let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&c), bits(&wanted), "{rows}x{k}x{columns} on {isa:?}");
                }
                FORCED.set(None);
            }
        }
    }

    #[test]
    fn a_product_of_pairs_is_the_chain_of_dots_on_every_set() {
        let number = |i: usize| match i % 19 {
            0 => 0.0,
            3 => -0.0,
            5 => 1e-19,
            _ => ((i * 7919) % 1013) as f32 / 300.0 - 1.6,
        };
        let pair = |i: usize| Pair::new(number(2 * i), if i == 77 { f32::INFINITY } else { number(2 * i + 1) });
        for (rows, k, columns) in [(1, 1, 16), (8, 3, 32), (7, 16, 48), (13, 150, 16), (32, 33, 80), (0, 4, 16)] {
            for (start, is_transposed) in [(Start::Zero, false), (Start::Go, true)] {
                let (b_stride, c_stride) = (columns + 5, columns + 3);
                let a: Vec<Pair> = (0..(rows + 2) * (k + 3)).map(pair).collect();
                let b: Vec<Pair> = (0..k * b_stride).map(|i| pair(i + 5)).collect();
                let before: Vec<f32> = (0..rows * c_stride).map(|i| number(i + 9)).collect();
                let a = match is_transposed {
                    true => Mat::rows(&a, rows + 2).transposed(),
                    false => Mat::rows(&a, k + 3),
                };
                let mut wanted = before.clone();
                for (i, j) in (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))) {
                    let c = &mut wanted[i * c_stride + j];
                    let link = |sum, p| bf16::dot(sum, a.data[i * a.row + p * a.col], b[p * b_stride + j]);
                    *c = (0..k).fold(if start == Start::Go { *c } else { 0.0 }, link);
                    *c = if c.is_nan() { f32::NAN } else { *c };
                }
                for isa in Isa::here() {
                    FORCED.set(Some(isa));
                    let mut c = before.clone();
                    pairs(Product { rows, k, columns, a, b: &b, b_stride, start }, &mut c, c_stride);
                    let bits = |c: &[f32]| c.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(&c), bits(&wanted), "{rows}x{k}x{columns} on {isa:?}");
                }
                FORCED.set(None);
            }
        }
    }
}
