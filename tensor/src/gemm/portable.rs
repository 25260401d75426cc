//! The tile of `gemm` for any machine: the multiply-add is fused everywhere, in (slow) software where the
//! compiler may not assume the instruction.

use super::{Operand, Start, Tile, Tree};
use crate::leaves;
use crate::real::Real;

/// `add` gives the next link of a chain, of its operands and what it is so far.
///
/// # Safety
/// `Tile::check(16)` held.
pub(super) unsafe fn run<O: Operand>(tile: Tile<'_, O>, add: impl Fn(O, O, f32) -> f32) {
    let Tile { rows, k, a, b, b_stride, c, c_stride, start, bias, .. } = tile;
    // SAFETY: sixteen floats of the row lie in the tile, as the caller promises, and only this call uses them.
    let row_of = |r: usize| unsafe { &mut *c.add(r * c_stride).cast::<[f32; 16]>() };
    let mut sums = [[0.0f32; 16]; 4];
    if start == Start::Go {
        for (r, row) in sums.iter_mut().take(rows).enumerate() {
            *row = *row_of(r);
        }
    }
    links(&mut sums, (rows, k), a, (b, b_stride), add);
    if O::PER > 1 {
        // The payload of a NaN is one of the operands', and which of them the sets do not agree on.
        sums.as_flattened_mut().iter_mut().for_each(|sum| *sum = one_nan(*sum));
    }
    for (r, row) in sums.iter_mut().take(rows).enumerate() {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += *b);
        *row_of(r) = *row;
    }
}

/// # Safety
/// `Tree::check(16)` held.
pub(super) unsafe fn run_tree<O: Operand>(tree: Tree<'_, O>, room: &mut [f32], add: impl Fn(O, O, f32) -> f32) {
    let Tree { rows, k, shards, a, b, c, c_stride, .. } = tree;
    let mut sums = [[0.0f32; 16]; 4];
    for shard in 0..shards {
        sums.as_flattened_mut().fill(0.0);
        links(&mut sums, (rows, k), &a[shard * k * rows..], (&b[shard * k * 16..], 16), &add);
        let sums = &mut sums.as_flattened_mut()[..rows * 16];
        // See `leaves::climb`.
        let mut levels = room.chunks_exact_mut(sums.len());
        for left in levels.by_ref().take(shard.trailing_ones() as usize) {
            sums.iter_mut().zip(left).for_each(|(sum, left)| *sum = leaves::add(*left, *sum));
        }
        if shard + 1 < shards {
            levels.next().expect("each level has its room").copy_from_slice(sums);
        }
    }
    for (r, row) in sums.iter().take(rows).enumerate() {
        // SAFETY: as in `run`.
        unsafe { *c.add(r * c_stride).cast::<[f32; 16]>() = *row };
    }
}

/// The next k links of the first rows' chains.
fn links<O: Operand>(
    sums: &mut [[f32; 16]; 4],
    (rows, k): (usize, usize),
    a: &[O],
    (b, b_stride): (&[O], usize),
    add: impl Fn(O, O, f32) -> f32,
) {
    for p in 0..k {
        let b: &[O; 16] = b[p * b_stride..][..16].try_into().expect("sixteen columns");
        for (x, row) in a[p * rows..][..rows].iter().zip(sums.iter_mut()) {
            for (sum, b) in row.iter_mut().zip(b) {
                *sum = add(*x, *b, *sum);
            }
        }
    }
}

fn one_nan(x: f32) -> f32 {
    if x.is_nan() { Real::NAN } else { x }
}

#[inline(always)]
pub(super) fn fused(a: f32, b: f32, c: f32) -> f32 {
    match cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        true => a.mul_add(b, c),
        // `mul_add` would call the platform's libm here.
        false => libm::fmaf(a, b, c),
    }
}
