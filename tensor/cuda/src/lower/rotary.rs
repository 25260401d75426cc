//! Rotary positions.

use super::{Launches, Site, blocks, given};
use crate::driver::LaunchShape;
use elastic_tensor::ops::Rotary;

pub(super) fn rotary(op: &Rotary, site: &Site<'_>, to: &mut Launches) {
    let (tokens, channels) = (site.types[0].shape[1], site.types[0].shape[2]);
    if site.y_len(0) == 0 {
        return;
    }
    let pairs = channels / 6 / op.heads;
    // (token, cosines then sines), rounded as the processor's.
    let sign = if op.back { -1.0 } else { 1.0 };
    let rows = op.turns.chunks_exact(pairs);
    let row = |turns: &[(f64, f64)]| -> Vec<f32> {
        let cosines = turns.iter().map(|turn| turn.0 as f32);
        cosines.chain(turns.iter().map(|turn| (sign * turn.1) as f32)).collect()
    };
    let turns = to.constant(rows.flat_map(row).collect());
    let rows = site.y_len(0) / channels;
    let shape = LaunchShape { block: [32, 8, 1], ..blocks(rows.min(BLOCKS_MAX), 0) };
    let (pairs, turned) = (pairs as u32, 2 * op.heads as u32);
    to.push("rotary", "rotary", shape, given![site.y[0], site.x[0], turns, rows, tokens, pairs, turned]);
}

/// Most blocks, which take rows by turns.
const BLOCKS_MAX: usize = 1 << 16;
