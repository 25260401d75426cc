//! The tile of `gemm` for any machine: the multiply-add is fused everywhere, in (slow) software where the
//! compiler may not assume the instruction.

use super::{Operand, Start, Tile};
use crate::leaves;
use crate::real::Real;

/// `add` gives the next link of a chain, of its operands and what it is so far.
///
/// # Safety
/// `Tile::check(16)` held.
pub(super) unsafe fn run<O: Operand>(tile: Tile<'_, O>, add: impl Fn(O, O, f32) -> f32) {
    let Tile { rows, k, a, b, b_stride, c, c_stride, start, left, .. } = tile;
    // SAFETY: sixteen floats of the row lie in the tile, as the caller promises, and only this call uses them.
    let row_of = |r: usize| unsafe { &mut *c.add(r * c_stride).cast::<[f32; 16]>() };
    let mut sums = [[0.0f32; 16]; 4];
    if start == Start::Go {
        for (r, row) in sums.iter_mut().take(rows).enumerate() {
            *row = *row_of(r);
        }
    }
    for p in 0..k {
        let b: &[O; 16] = b[p * b_stride..][..16].try_into().expect("sixteen columns");
        for (x, row) in a[p * rows..][..rows].iter().zip(&mut sums) {
            for (sum, b) in row.iter_mut().zip(b) {
                *sum = add(*x, *b, *sum);
            }
        }
    }
    for left in left.chunks_exact(rows * 16) {
        for (row, left) in sums.iter_mut().zip(left.chunks_exact(16)) {
            row.iter_mut().zip(left).for_each(|(sum, left)| *sum = leaves::add(*left, *sum));
        }
    }
    if O::PER > 1 {
        // The payload of a NaN is one of the operands', and which of them the sets do not agree on.
        sums.as_flattened_mut().iter_mut().filter(|sum| sum.is_nan()).for_each(|sum| *sum = Real::NAN);
    }
    for (r, row) in sums.iter().take(rows).enumerate() {
        *row_of(r) = *row;
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
