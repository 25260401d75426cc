//! Uses of a table in the order of their rows.

use super::{At, Launches, blocks, given};

/// Keys of a block, as `sort.cu` has them.
const KEYS: usize = 2048;
const THREADS: u32 = 256;
const DIGIT_BITS: u32 = 8;
const DIGITS: usize = 1 << DIGIT_BITS;

/// Writes the keys in ascending order to `sorted`, and behind them their places, those of equal keys ascending. Keys
/// are below `end`; all others count as `end`.
pub(super) fn by_key(keys: At, count: u32, end: u32, sorted: At, to: &mut Launches) {
    let len = count as usize;
    let (other, block_count) = (to.room(2 * len), len.div_ceil(KEYS));
    let counts = to.room(DIGITS * block_count);
    let passes = (u32::BITS - end.leading_zeros()).div_ceil(DIGIT_BITS).max(1);
    let mut from = keys;
    for pass in 0..passes {
        // By turns, so that the last pass writes to where they are wanted.
        let into = if (passes - pass) % 2 == 1 { sorted } else { other };
        let (shift, is_first) = (pass * DIGIT_BITS, u32::from(pass == 0));
        let grid = blocks(block_count, THREADS);
        to.push("sort", "sort_count", grid, given![counts, from, count, end, shift]);
        to.push("sort", "sort_scan", blocks(1, 1024), given![counts, DIGITS * block_count]);
        let (places, to_places) = (from.plus(len), into.plus(len));
        let moved = given![into, to_places, from, places, counts, count, end, shift, is_first];
        to.push("sort", "sort_move", grid, moved);
        from = into;
    }
}
