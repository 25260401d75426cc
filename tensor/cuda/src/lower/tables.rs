//! Rows of tables, and their gradients.

use super::{Launches, Site, blocks, given, numbers, sort};
use crate::driver::LaunchShape;
use elastic_tensor::ops::{EmbeddingGrad, Take, TakeGrad};

pub(super) fn embedding(site: &Site<'_>, to: &mut Launches) {
    let (rows, uses) = (site.types[0].shape[0], site.x_len(1));
    take_rows(site, Table { outer: 1, rows, uses, columns: site.types[0].shape[1] }, to);
}

pub(super) fn embedding_grad(op: &EmbeddingGrad, site: &Site<'_>, to: &mut Launches) {
    let (uses, columns) = site.types[0].rows_cols();
    add_rows(site, Table { outer: 1, rows: op.rows, uses, columns }, site.shards, to);
}

pub(super) fn take(op: &Take, site: &Site<'_>, to: &mut Launches) {
    take_rows(site, along(op.axis, &site.types[0].shape, site), to);
}

pub(super) fn take_grad(op: &TakeGrad, site: &Site<'_>, to: &mut Launches) {
    add_rows(site, along(op.axis, &op.shape, site), 1, to);
}

/// A table (outer, row, column) and what reads it: (outer, use, column).
#[derive(Clone, Copy)]
struct Table {
    outer: usize,
    rows: usize,
    uses: usize,
    columns: usize,
}

/// The rows of a value along an axis.
fn along(axis: usize, shape: &[usize], site: &Site<'_>) -> Table {
    let [outer, columns] = [&shape[..axis], &shape[axis + 1..]].map(|axes| axes.iter().product());
    Table { outer, rows: shape[axis], uses: site.x_len(1), columns }
}

fn take_rows(site: &Site<'_>, of: Table, to: &mut Launches) {
    let Table { outer, rows, uses, columns } = of;
    if columns == 0 {
        return;
    }
    // Up to a warp for a line, so that reads of short lines lie side by side too.
    let across = columns.div_ceil(4).next_power_of_two().min(32) as u32;
    let lines = THREADS / across;
    let grid = (outer * uses).div_ceil(lines as usize).min(BLOCKS_MAX) as u32;
    let shape = LaunchShape { grid: [grid, 1, 1], block: [across, lines, 1], shared_bytes: 0 };
    let [y, x, at] = [site.y[0], site.x[0], site.x[1]];
    to.push("tables", "take_rows", shape, given![y, x, at, outer * uses, uses, rows, columns]);
}

fn add_rows(site: &Site<'_>, of: Table, shards: usize, to: &mut Launches) {
    let Table { outer, rows, uses, columns } = of;
    let [y, dy, at] = [site.y[0], site.x[0], site.x[1]];
    if uses == 0 {
        let len = outer * rows * columns;
        return to.push("fill", "fill", numbers(len), given![y, len, 0.0f32]);
    }
    let count = u32::try_from(uses).ok().filter(|uses| *uses < u32::MAX).expect("a batch has under 2^32 - 1 tokens");
    let ends = u32::try_from(rows).ok().filter(|rows| *rows < u32::MAX).expect("a table has under 2^32 - 1 rows");
    let leaf = count / shards as u32;
    let long = uses.div_ceil(RUN);
    // As `uses_in` of `tables.cu` has it.
    let room = to.room(2 * uses + rows + 1 + 1 + 3 * long);
    let sums = to.room(outer * long * columns);
    sort::by_key(at, count, ends, room, to);
    to.push("tables", "row_starts", numbers(rows + 1), given![room, count, ends]);
    to.push("tables", "long_runs", numbers(long), given![room, count, ends, leaf]);
    let long_grid = long_runs_grid(outer * columns.div_ceil(32), long);
    to.push("tables", "add_long_runs", long_grid, given![sums, dy, room, count, ends, leaf, columns]);
    let levels = shards.ilog2();
    let lines = outer * rows;
    if shards == 1 && columns < NARROW {
        let all = given![y, dy, sums, room, count, ends, lines * columns, columns];
        return to.push("tables", "add_narrow_rows", numbers(lines * columns), all);
    }
    let all = given![y, dy, sums, room, count, ends, leaf, levels, lines, columns];
    to.push("tables", "add_rows", blocks(warps(lines * columns.div_ceil(32)), THREADS), all);
}

/// Blocks for `count` pieces of work of a warp each, which warps take by turns.
fn warps(count: usize) -> usize {
    count.div_ceil(THREADS as usize / 32).min(BLOCKS_MAX)
}

/// Few blocks for each piece of columns where there are many of these: how many runs are long, only the GPU knows.
fn long_runs_grid(pieces: usize, long: usize) -> LaunchShape {
    let by_turns = (BLOCKS_MAX / 4 / pieces.max(1)).clamp(1, long);
    LaunchShape { grid: [pieces as u32, by_turns as u32, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
}

const THREADS: u32 = 256;
/// Most blocks that take work by turns.
const BLOCKS_MAX: usize = 1 << 16;
/// Columns below which a thread takes one of a row, not a warp.
const NARROW: usize = 32;
/// Uses of a row in a shard that are no long run yet: `tables.cu`.
const RUN: usize = 32;
