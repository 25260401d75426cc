//! The tile of `gemm` for any machine: the multiply-add is fused everywhere, in (slow) software where the
//! compiler may not assume the instruction.

use super::{Start, Tile};

pub(super) fn run(tile: Tile<'_>) {
    let Tile { rows, k, a, b, b_stride, c, c_stride, start } = tile;
    let mut sums = [[0.0f32; 16]; 4];
    if start == Start::Go {
        for (r, row) in sums.iter_mut().take(rows).enumerate() {
            row.copy_from_slice(&c[r * c_stride..][..16]);
        }
    }
    for p in 0..k {
        let b: &[f32; 16] = b[p * b_stride..][..16].try_into().expect("sixteen columns");
        for (x, row) in a[p * rows..][..rows].iter().zip(&mut sums) {
            for (sum, b) in row.iter_mut().zip(b) {
                *sum = fused(*x, *b, *sum);
            }
        }
    }
    for (r, row) in sums.iter().take(rows).enumerate() {
        c[r * c_stride..][..16].copy_from_slice(row);
    }
}

#[inline(always)]
fn fused(a: f32, b: f32, c: f32) -> f32 {
    match cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        true => a.mul_add(b, c),
        // `mul_add` would call the platform's libm here.
        false => libm::fmaf(a, b, c),
    }
}
