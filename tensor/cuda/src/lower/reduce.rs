//! Sums, means, largest and smallest along axes, and their indices.

use super::{Launches, Site, blocks, given, numbers};
use crate::driver::LaunchShape;
use elastic_tensor::ops::{ArgMax, Reduce, ReduceKind};

pub(super) fn reduce(op: &Reduce, site: &Site<'_>, to: &mut Launches) {
    let line = line(&site.types[0].shape, op.from, op.to);
    let kernels = match op.kind {
        ReduceKind::Sum | ReduceKind::Mean => SUM,
        ReduceKind::Max => LARGEST,
        ReduceKind::Min => SMALLEST,
    };
    if line.inner == 1 {
        lines(&kernels, line, site, to)
    } else {
        columns(&kernels, line, site, to)
    }
    if op.kind == ReduceKind::Mean {
        let count = site.y_len(0);
        to.push("reduce", "share", numbers(count), given![site.y[0], count, line.n as f32]);
    }
}

pub(super) fn arg_max(op: &ArgMax, site: &Site<'_>, to: &mut Launches) {
    let Line { outer, n, inner } = line(&site.types[0].shape, op.axis, op.axis + 1);
    let ([y, x], count) = ([site.y[0], site.x[0]], u32::try_from(n).expect("the op's shape rule allows 2^24"));
    if inner == 1 {
        // Eight numbers of a thread pay for joining them.
        let threads = (count / 8).next_power_of_two().clamp(32, 1024);
        let function = if op.smallest { "smallest_lines" } else { "largest_lines" };
        return to.push("arg", function, blocks(outer, threads), given![y, x, outer, count]);
    }
    let function = if op.smallest { "smallest_columns" } else { "largest_columns" };
    to.push("arg", function, columns_grid(outer * inner, 1), given![y, x, outer * inner, count, inner]);
}

/// A kernel for each of the ways to lay out lines: `reduce.cu`.
struct Kernels {
    lines: &'static str,
    columns: &'static str,
    short: &'static str,
}

const SUM: Kernels = Kernels { lines: "sum_lines", columns: "sum_columns", short: "sum_short" };
const LARGEST: Kernels = Kernels { lines: "largest_lines", columns: "largest_columns", short: "largest_short" };
const SMALLEST: Kernels = Kernels { lines: "smallest_lines", columns: "smallest_columns", short: "smallest_short" };

/// (outer, n, inner) of x: lines of n numbers, `inner` apart.
#[derive(Clone, Copy)]
struct Line {
    outer: usize,
    n: usize,
    inner: usize,
}

fn line(shape: &[usize], from: usize, to: usize) -> Line {
    let [outer, n, inner] = [&shape[..from], &shape[from..to], &shape[to..]].map(|axes| axes.iter().product());
    Line { outer, n, inner }
}

fn lines(kernels: &Kernels, Line { outer, n, .. }: Line, site: &Site<'_>, to: &mut Launches) {
    let (y, x, closed) = (site.y[0], site.x[0], n.div_ceil(BLOCK).max(1));
    let grid = |results: usize| numbers(results * LANES);
    if closed == 1 {
        return to.push("reduce", kernels.lines, grid(outer), given![y, x, outer, n, 1usize, BLOCK]);
    }
    let parts = to.room(outer * closed);
    to.push("reduce", kernels.lines, grid(outer * closed), given![parts, x, outer, n, closed, BLOCK]);
    to.push("reduce", kernels.lines, grid(outer), given![y, parts, outer, closed, 1usize, closed]);
}

fn columns(kernels: &Kernels, Line { outer, n, inner }: Line, site: &Site<'_>, to: &mut Launches) {
    let (y, x, closed) = (site.y[0], site.x[0], n.div_ceil(BLOCK).max(1));
    let columns = outer * inner;
    if closed == 1 && (n <= SHORT || columns >= MANY) {
        return to.push("reduce", kernels.short, numbers(columns), given![y, x, columns, n, inner]);
    }
    let parts = if closed == 1 { y } else { to.room(closed * columns) };
    let grid = columns_grid(columns, closed);
    to.push("reduce", kernels.columns, grid, given![parts, x, columns, n, inner, closed, BLOCK]);
    if closed > 1 {
        let all = given![y, parts, columns, closed, columns, 1usize, closed];
        to.push("reduce", kernels.columns, columns_grid(columns, 1), all);
    }
}

/// Blocks of 32 columns and a warp for each running result, for `parts` parts of the lines.
fn columns_grid(columns: usize, parts: usize) -> LaunchShape {
    // What a grid can have along y; blocks take parts by turns.
    let down = parts.min(65535) as u32;
    LaunchShape { grid: [columns.div_ceil(32) as u32, down, 1], block: [32, LANES as u32, 1], shared_bytes: 0 }
}

/// Running results of a line, and after how many numbers they are joined: `elastic_tensor::ops`' `reduce`.
const LANES: usize = 16;
const BLOCK: usize = 4096;
/// A thread a column: where a line has few numbers, or where there are threads enough.
const SHORT: usize = 64;
const MANY: usize = 1 << 18;
