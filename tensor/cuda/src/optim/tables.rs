//! A layout as the tables that the kernels of a step go by (`kernels/optim.cuh`), and scalars as they lie there. Pure.

use elastic_spec::layout::BLOCK_FLOATS;
use elastic_tensor::StateLayout;
use elastic_tensor::optim::{RateClass, Rates, Run, runs_in};
use std::ops::Range;

/// Most numbers of a piece, the work of one block: four times four for each thread.
pub const PIECE: usize = 4096;
/// Numbers whose squares are added by one block: the processor's grid, which the bits of the norm hang on.
pub const CHUNK: usize = BLOCK_FLOATS;

// `chunk_squares` takes 4096 numbers at a time.
const _: () = assert!(CHUNK.is_multiple_of(4096) && CHUNK <= u32::MAX as usize);

/// Neighbours in the flat vector: `struct Piece`.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    pub at: Range<usize>,
    /// Which of the classes; 0 where there are no rates.
    pub class: usize,
}

/// Neighbours among a batch norm's running statistics: `struct PoolPiece`.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolPiece {
    pub mean: usize,
    pub var: usize,
    pub count: usize,
    pub momentum: f32,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// Each trainable parameter once, in the vector's order.
    pub trained: Vec<Piece>,
    /// All other parameters.
    pub frozen: Vec<Piece>,
    pub pools: Vec<PoolPiece>,
    /// Whose rates are looked up by a piece's number.
    pub classes: Vec<RateClass>,
}

impl Tables {
    pub fn of(layout: &StateLayout) -> Tables {
        let mut tables = Tables::default();
        let mut end = 0;
        runs_in(&layout.params, 0..layout.param_floats(), |Run { at, class }| {
            let known = tables.classes.iter().position(|one| *one == class);
            let class = known.unwrap_or_else(|| {
                tables.classes.push(class);
                tables.classes.len() - 1
            });
            tables.frozen.extend(pieces(end..at.start, 0));
            end = at.end;
            tables.trained.extend(pieces(at, class));
        });
        tables.frozen.extend(pieces(end..layout.param_floats(), 0));
        for pair in &layout.running {
            let (len, momentum) = (pair.mean.len().min(pair.var.len()), pair.momentum as f32);
            tables.pools.extend((0..len).step_by(PIECE).map(|from| PoolPiece {
                mean: pair.mean.start + from,
                var: pair.var.start + from,
                count: PIECE.min(len - from),
                momentum,
            }));
        }
        tables
    }
}

/// A stretch cut at multiples of a piece, so that pieces begin aligned where they can.
fn pieces(at: Range<usize>, class: usize) -> impl Iterator<Item = Piece> {
    let cuts = at.start / PIECE..at.end.div_ceil(PIECE);
    let parts = cuts.map(move |cut| at.start.max(cut * PIECE)..at.end.min((cut + 1) * PIECE));
    parts.filter(|at| !at.is_empty()).map(move |at| Piece { at, class })
}

/// As `struct Piece` lies in memory.
pub fn piece_bytes(pieces: &[Piece]) -> Vec<u8> {
    let one = |piece: &Piece| {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&(piece.at.start as u64).to_ne_bytes());
        out[8..12].copy_from_slice(&(piece.at.len() as u32).to_ne_bytes());
        out[12..].copy_from_slice(&(piece.class as u32).to_ne_bytes());
        out
    };
    pieces.iter().flat_map(one).collect()
}

/// As `struct PoolPiece` lies in memory.
pub fn pool_bytes(pieces: &[PoolPiece]) -> Vec<u8> {
    let one = |piece: &PoolPiece| {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&(piece.mean as u64).to_ne_bytes());
        out[8..16].copy_from_slice(&(piece.var as u64).to_ne_bytes());
        out[16..20].copy_from_slice(&(piece.count as u32).to_ne_bytes());
        out[20..].copy_from_slice(&piece.momentum.to_ne_bytes());
        out
    };
    pieces.iter().flat_map(one).collect()
}

/// Of `struct StepScalars`.
pub const SCALARS_BYTES: usize = 16;
/// Of `struct Rates`.
pub const RATES_BYTES: usize = 40;

/// As `struct StepScalars` lies in memory.
pub fn scalar_bytes(clip_norm: Option<f64>, correction: f32) -> [u8; SCALARS_BYTES] {
    // As the processor's step: see `elastic_tensor::apply_on`.
    let (correction, counts) = if correction.is_finite() { (correction, 1u32) } else { (1.0, 0) };
    let mut out = [0; SCALARS_BYTES];
    out[..8].copy_from_slice(&clip_norm.unwrap_or(f64::INFINITY).to_ne_bytes());
    out[8..12].copy_from_slice(&correction.to_ne_bytes());
    out[12..].copy_from_slice(&counts.to_ne_bytes());
    out
}

/// As `struct Rates` lies in memory.
pub fn rate_bytes(rates: Rates) -> [u8; RATES_BYTES] {
    let Rates { lr, coupled, shrink, beta: [beta1, beta2], rest: [rest1, rest2], size, root, eps } = rates;
    let mut out = [0; RATES_BYTES];
    let all = [lr, coupled, shrink, beta1, beta2, rest1, rest2, size, root, eps];
    out.chunks_exact_mut(4).zip(all).for_each(|(out, x)| out.copy_from_slice(&x.to_ne_bytes()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_tensor::{GroupRates, ParamInfo, RunningPair};

    /// Parameters of these lengths: trained with decay, trained without, or not trained.
    fn layout(params: &[(usize, Option<bool>)]) -> StateLayout {
        let mut offset = 0;
        let info = |(i, (len, decays)): (usize, &(usize, Option<bool>))| {
            offset += len;
            ParamInfo {
                name: format!("p{i}"),
                shape: vec![*len],
                offset: offset - len,
                len: *len,
                decay: *decays == Some(true),
                trainable: decays.is_some(),
                group: GroupRates::default(),
            }
        };
        StateLayout { params: params.iter().enumerate().map(info).collect(), ..StateLayout::default() }
    }

    #[test]
    fn neighbours_of_one_class_are_cut_at_multiples_only_and_the_rest_is_frozen() {
        let params = [(5, None), (10, Some(true)), (PIECE, Some(true)), (3, Some(false)), (0, Some(true)), (7, None)];
        let tables = Tables::of(&layout(&params));
        let of = |pieces: &[Piece]| pieces.iter().map(|piece| (piece.at.clone(), piece.class)).collect::<Vec<_>>();
        assert_eq!(of(&tables.trained), [(5..PIECE, 0), (PIECE..PIECE + 15, 0), (PIECE + 15..PIECE + 18, 1)]);
        assert_eq!(of(&tables.frozen), [(0..5, 0), (PIECE + 18..PIECE + 25, 0)]);
        assert_eq!(tables.classes.iter().map(|class| class.decay).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn a_layout_of_nothing_has_empty_tables() {
        assert_eq!(Tables::of(&StateLayout::default()), Tables::default());
    }

    #[test]
    fn long_running_statistics_are_several_pieces() {
        let (mean, var) = (10..10 + PIECE + 1, 10 + PIECE + 1..12 + 2 * PIECE);
        let running = vec![RunningPair { mean, var: var.clone(), momentum: 0.1 }];
        let tables = Tables::of(&StateLayout { running, ..StateLayout::default() });
        let of = |piece: &PoolPiece| (piece.mean, piece.var, piece.count);
        assert_eq!(
            tables.pools.iter().map(of).collect::<Vec<_>>(),
            [(10, var.start, PIECE), (10 + PIECE, var.start + PIECE, 1)]
        );
    }
}
