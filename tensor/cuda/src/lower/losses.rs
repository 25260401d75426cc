//! The loss, and its gradient.

use super::norms::half_warps;
use super::{Launches, Site, given};

/// Classes of a row that half a warp takes at once, and how many such pieces a grid has at most: `cross_entropy.cu`.
const PIECE: usize = 1024;
const PIECES_MAX: usize = 1024;

pub(super) fn cross_entropy(site: &Site<'_>, to: &mut Launches) {
    let (rows, classes) = site.types[0].rows_cols();
    let [loss, partition, correct] = [0, 1, 2].map(|i| site.y[i]);
    let arguments = given![loss, partition, correct, site.x[0], site.x[1], site.call, rows, classes];
    to.push("cross_entropy", "cross_entropy", half_warps(rows), arguments);
}

pub(super) fn cross_entropy_grad(site: &Site<'_>, to: &mut Launches) {
    let (rows, classes) = site.types[0].rows_cols();
    let [logits, targets, partition, dloss] = [0, 1, 2, 3].map(|i| site.x[i]);
    let mut shape = half_warps(rows);
    shape.grid[1] = classes.div_ceil(PIECE).min(PIECES_MAX) as u32;
    let arguments = given![site.y[0], logits, targets, partition, dloss, site.call, rows, classes];
    to.push("cross_entropy", "cross_entropy_grad", shape, arguments);
}
