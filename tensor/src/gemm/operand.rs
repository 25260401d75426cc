//! What the products of `gemm` read: f32 as they are, or pairs of bf16 that are neighbours along k.
//!
//! Operands are always given as f32. Packing makes panels of them, (k, width) of one number, or (k / 2, width) of
//! pairs, rounded on the way; an odd k has a zero behind it. Everything else about a product, its blocks, its tiles and
//! its tasks, is the same for both.

use super::{Isa, Mat, Tile, Tree, portable, transpose};
use crate::bf16::{self, Pair};
use crate::real::Rows;
use crate::simd::Set;
use std::fmt::Debug;

pub trait Operand: Copy + Default + Debug + Send + Sync + 'static {
    /// Numbers along k in one operand.
    const PER: usize;

    /// The set whose kernel runs in its place: not every machine with a set has its instructions for pairs.
    fn set(isa: Isa) -> Isa;

    /// A matrix of f32 as operands, if it needs no packing to be so.
    fn in_place(data: &[f32]) -> Option<&[Self]>;

    /// Packs columns `first..first + columns` of a matrix of `k` rows as (k / PER, width), zeros behind the last.
    fn panel(isa: Isa, from: Mat<'_, f32>, first: usize, k: usize, size: (usize, usize), out: &mut [Self]);

    /// C tile (`rows`, all columns of the tile) from packed A and a panel of B.
    fn run(isa: Isa, tile: Tile<'_, Self>);

    /// The same summed over shards; `room` keeps the left siblings that wait, one tile a level.
    fn run_tree(isa: Isa, tree: Tree<'_, Self>, room: &mut [f32]);
}

impl Operand for f32 {
    const PER: usize = 1;

    fn set(isa: Isa) -> Isa {
        isa
    }

    fn in_place(data: &[f32]) -> Option<&[f32]> {
        Some(data)
    }

    fn panel(isa: Isa, from: Mat<'_, f32>, first: usize, k: usize, size: (usize, usize), out: &mut [f32]) {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = isa;
        let (columns, width) = size;
        if k == 0 || columns == 0 {
            return;
        }
        let data = &from.data[first * from.col..];
        let out = &mut out[..k * width];
        assert!(columns <= width, "a panel holds its columns");
        assert!(data.len() > (k - 1) * from.row + (columns - 1) * from.col, "the matrix holds the panel");
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512 && from.col == 1 {
            let rows = Rows { data, stride: from.row, count: k, width: columns };
            // SAFETY: `Isa::here` lists the set only if the machine has it, and the asserts held.
            return unsafe { super::pack_avx512::crosswise(rows, width, out) };
        }
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Avx512 && from.row == 1 {
            let rows = Rows { data, stride: from.col, count: columns, width: k };
            // SAFETY: as above.
            return unsafe { super::pack_avx512::transposed(rows, width, out) };
        }
        if from.col == 1 {
            for (p, row) in out.chunks_exact_mut(width).enumerate() {
                row[..columns].copy_from_slice(&data[p * from.row..][..columns]);
                row[columns..].fill(0.0);
            }
            return;
        }
        if columns < width {
            out.fill(0.0);
        }
        if from.row == 1 {
            return transpose::copy(data, from.col, out, width, (columns, k));
        }
        for (p, row) in out.chunks_exact_mut(width).enumerate() {
            for (column, x) in row[..columns].iter_mut().enumerate() {
                *x = data[column * from.col + p * from.row];
            }
        }
    }

    fn run(isa: Isa, tile: Tile<'_, f32>) {
        tile.check(isa.tile().1);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Isa::here` lists the set only if the machine has it, and `check` held.
            Isa::Avx512 => unsafe { super::avx512::run(tile) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { super::avx2::run(tile) },
            // SAFETY: `check` held.
            _ => unsafe { portable::run(tile, portable::fused) },
        }
    }

    fn run_tree(isa: Isa, tree: Tree<'_, f32>, room: &mut [f32]) {
        tree.check(isa.tile().1, room);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Isa::Avx512 => unsafe { super::avx512::run_tree(tree, room) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Isa::Avx2 => unsafe { super::avx2::run_tree(tree, room) },
            // SAFETY: `check` held.
            _ => unsafe { portable::run_tree(tree, room, portable::fused) },
        }
    }
}

impl Operand for Pair {
    const PER: usize = 2;

    fn set(isa: Isa) -> Isa {
        match isa {
            Isa::Avx512 if !bf16::has_instructions(isa) => Isa::Avx2,
            other => other,
        }
    }

    fn in_place(_: &[f32]) -> Option<&[Pair]> {
        None
    }

    fn panel(isa: Isa, from: Mat<'_, f32>, first: usize, k: usize, size: (usize, usize), out: &mut [Pair]) {
        let (columns, width) = size;
        if k == 0 {
            return;
        }
        let (data, set) = (&from.data[first * from.col..], Set::of(isa));
        let out = &mut out[..k.div_ceil(2) * width];
        if from.col == 1 {
            return bf16::crosswise(set, Rows { data, stride: from.row, count: k, width: columns }, width, out);
        }
        if from.row == 1 {
            return bf16::transposed(set, Rows { data, stride: from.col, count: columns, width: k }, width, out);
        }
        out.fill(Pair::default());
        for (p, row) in out.chunks_exact_mut(width).enumerate() {
            for (column, x) in row[..columns].iter_mut().enumerate() {
                let at = |p: usize| if p < k { data[column * from.col + p * from.row] } else { 0.0 };
                *x = Pair::new(at(2 * p), at(2 * p + 1));
            }
        }
    }

    fn run(isa: Isa, tile: Tile<'_, Pair>) {
        tile.check(isa.tile().1);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Isa::here` lists the set only if the machine has it, `set` leaves it only if it has the
            // instruction, and `check` held.
            Isa::Avx512 => unsafe { super::avx512_bf16::run(tile) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => unsafe { super::avx2_bf16::run(tile) },
            // SAFETY: `check` held.
            _ => unsafe { portable::run(tile, |a, b, sum| bf16::dot(sum, a, b)) },
        }
    }

    fn run_tree(isa: Isa, tree: Tree<'_, Pair>, room: &mut [f32]) {
        tree.check(isa.tile().1, room);
        match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Isa::Avx512 => unsafe { super::avx512_bf16::run_tree(tree, room) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as in `run`.
            Isa::Avx2 => unsafe { super::avx2_bf16::run_tree(tree, room) },
            // SAFETY: `check` held.
            _ => unsafe { portable::run_tree(tree, room, |a, b, sum| bf16::dot(sum, a, b)) },
        }
    }
}
