//! What leaves are made of, and their sums.

use super::{At, Launches, Site, given, numbers};
use elastic_tensor::ops::SumLeaves;

pub(super) fn seed(site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    to.push("basic", "seed", numbers(count), given![site.y[0], site.call, count]);
}

pub(super) fn sum_leaves(op: &SumLeaves, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    to.push("basic", "sum_leaves", numbers(count), given![site.y[0], site.x[0], count, op.shards as u32]);
}

/// Takes leaf number `shard` of `shards` up the tree, as `elastic_tensor::leaves::climb`: `room` keeps a value a level.
pub(crate) fn climb(y: At, room: At, count: usize, (shard, shards): (usize, usize), to: &mut Launches) {
    let closed = shard.trailing_ones();
    let keeps = u32::from(shard + 1 < shards);
    to.push("basic", "climb", numbers(count), given![y, room, count, closed, keeps]);
}
