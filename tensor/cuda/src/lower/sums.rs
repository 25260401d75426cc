//! Sums over leading axes.

use super::{Launches, Site, blocks, given, numbers};

pub(super) fn sum_leading(site: &Site<'_>, to: &mut Launches) {
    let (columns, shards) = (site.y_len(0), site.shards);
    if columns == 0 {
        return;
    }
    let (x, y) = (site.x[0], site.y[0]);
    let rows = site.x_len(0) / shards / columns;
    let leaves = if shards == 1 { y } else { to.room(shards * columns) };
    // Narrow blocks where there would be few: a chain of additions is one thread's work.
    let count = |wide: u32| columns.div_ceil(wide as usize) * shards;
    let wide = [32, 16].into_iter().find(|wide| count(*wide) >= ENOUGH_BLOCKS).unwrap_or(8);
    to.push("sums", "sum_leading", blocks(count(wide), 256), given![leaves, x, rows, columns, wide]);
    if shards > 1 {
        to.push("basic", "sum_leaves", numbers(columns), given![y, leaves, columns, shards as u32]);
    }
}

/// Two for each multiprocessor of a large GPU.
const ENOUGH_BLOCKS: usize = 264;
