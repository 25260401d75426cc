//! Norms and softmaxes over the last axis, and their gradients.

use super::{At, LaunchShape, Launches, Site, blocks, given, numbers};
use elastic_tensor::ops::{LayerNorm, RmsNorm, Softmax, SoftmaxGrad};

/// Threads of a block where half a warp has a row, and the lanes that have it: `rows.cuh`.
const THREADS: u32 = 256;
const LANES: u32 = 16;
/// Columns of a block of sums over rows, and its threads: `columns.cuh`.
const COLUMNS: usize = 8;
const COLUMNS_THREADS: u32 = 256;

/// A grid for kernels in which half a warp has a row.
pub(super) fn half_warps(rows: usize) -> LaunchShape {
    blocks(rows.div_ceil((THREADS / LANES) as usize), THREADS)
}

pub(super) fn zeros(y: At, count: usize, to: &mut Launches) {
    to.push("fill", "fill", numbers(count), given![y, count, 0.0f32]);
}

pub(super) fn layer_norm(op: &LayerNorm, site: &Site<'_>, to: &mut Launches) {
    let (rows, cols) = site.types[0].rows_cols();
    let [y, mean, rstd] = [site.y[0], site.y[1], site.y[2]];
    if cols == 0 {
        return [mean, rstd].into_iter().for_each(|y| zeros(y, rows, to));
    }
    let eps = op.eps as f32;
    let arguments = given![y, mean, rstd, site.x[0], site.x[1], site.x[2], rows, cols, eps];
    to.push("layer_norm", "layer_norm", half_warps(rows), arguments);
}

pub(super) fn layer_norm_grad(site: &Site<'_>, to: &mut Launches) {
    let (rows, cols) = site.types[0].rows_cols();
    let [x, scale, mean, rstd, dy] = [0, 1, 2, 3, 4].map(|i| site.x[i]);
    if cols == 0 {
        return;
    }
    to.push(
        "layer_norm",
        "layer_norm_slopes",
        half_warps(rows),
        given![site.y[0], x, scale, mean, rstd, dy, rows, cols],
    );
    let [dscale, dshift] = [site.y[1], site.y[2]];
    sum_columns([dscale, dshift], cols, site.shards, to, |[dscale, dshift], shape, to| {
        let rows = rows / site.shards;
        to.push("layer_norm", "layer_norm_columns", shape, given![dscale, dshift, x, mean, rstd, dy, rows, cols]);
    });
}

pub(super) fn rms_norm(op: &RmsNorm, site: &Site<'_>, to: &mut Launches) {
    let (rows, cols) = site.types[0].rows_cols();
    if cols == 0 {
        return zeros(site.y[1], rows, to);
    }
    let eps = op.eps as f32;
    let arguments = given![site.y[0], site.y[1], site.x[0], site.x[1], rows, cols, eps];
    to.push("rms_norm", "rms_norm", half_warps(rows), arguments);
}

pub(super) fn rms_norm_grad(site: &Site<'_>, to: &mut Launches) {
    let (rows, cols) = site.types[0].rows_cols();
    let [x, scale, rstd, dy] = [0, 1, 2, 3].map(|i| site.x[i]);
    if cols == 0 {
        return;
    }
    to.push("rms_norm", "rms_norm_slopes", half_warps(rows), given![site.y[0], x, scale, rstd, dy, rows, cols]);
    sum_columns([site.y[1]], cols, site.shards, to, |[dscale], shape, to| {
        let rows = rows / site.shards;
        to.push("rms_norm", "rms_norm_columns", shape, given![dscale, x, rstd, dy, rows, cols]);
    });
}

pub(super) fn softmax(op: &Softmax, site: &Site<'_>, to: &mut Launches) {
    let (rows, cols) = site.types[0].rows_cols();
    let function = if op.log { "log_softmax" } else { "softmax" };
    to.push("softmax", function, half_warps(rows), given![site.y[0], site.x[0], rows, cols]);
}

pub(super) fn softmax_grad(op: &SoftmaxGrad, site: &Site<'_>, to: &mut Launches) {
    let (rows, cols) = site.types[0].rows_cols();
    let function = if op.log { "log_softmax_grad" } else { "softmax_grad" };
    to.push("softmax", function, half_warps(rows), given![site.y[0], site.x[0], site.x[1], rows, cols]);
}

/// Sums over the rows of each shard, then of the shards along the tree. `leaves` launches the first: where its sums go,
/// (shard, column) each.
pub(super) fn sum_columns<const N: usize>(
    y: [At; N],
    cols: usize,
    shards: usize,
    to: &mut Launches,
    leaves: impl FnOnce([At; N], LaunchShape, &mut Launches),
) {
    let shape = blocks(cols.div_ceil(COLUMNS) * shards, COLUMNS_THREADS);
    if shards == 1 {
        return leaves(y, shape, to);
    }
    let rooms = y.map(|_| to.room(shards * cols));
    leaves(rooms, shape, to);
    for (y, room) in y.into_iter().zip(rooms) {
        to.push("basic", "sum_leaves", numbers(cols), given![y, room, cols, shards as u32]);
    }
}
