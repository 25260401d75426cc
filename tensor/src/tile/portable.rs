//! The tile of `tile` for any machine, a row of 16 columns: the multiply-add is fused everywhere, in (slow) software
//! where the compiler may not assume the instruction.

use super::{LANES, Product};
use crate::gemm::{Operand, Start};
use crate::real::Real;

/// `add` gives the next link of a chain, of its operands and what it is so far.
pub(super) fn run<O: Operand>(product: Product<'_, O>, c: &mut [f32], c_stride: usize, add: impl Fn(O, O, f32) -> f32) {
    let Product { rows, k, a, b, b_stride, start, .. } = product;
    for row in 0..rows {
        let c = &mut c[row * c_stride..][..LANES];
        let mut sums = [0.0f32; LANES];
        if start == Start::Go {
            sums.copy_from_slice(c);
        }
        for p in 0..k {
            let x = a.data[row * a.row + p * a.col];
            for (sum, b) in sums.iter_mut().zip(&b[p * b_stride..][..LANES]) {
                *sum = add(x, *b, *sum);
            }
        }
        if O::PER > 1 {
            // The payload of a NaN is one of the operands', and which of them the sets do not agree on.
            sums.iter_mut().filter(|sum| sum.is_nan()).for_each(|sum| *sum = Real::NAN);
        }
        c.copy_from_slice(&sums);
    }
}

#[inline(always)]
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    match cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        true => a.mul_add(b, c),
        // `mul_add` would call the platform's libm here.
        false => libm::fmaf(a, b, c),
    }
}
