//! Sums over the batch axis when several shards run together: one leaf a shard, added up along the fixed tree.
//!
//! A unit of 2^j shards runs as one batch. Where rows stay apart nothing changes; a sum over the batch axis is made
//! shard by shard here, and its bits are those of leaves that were made one by one and added afterwards
//! (`elastic_spec::tree`, docs/protocol.md). The sum over units is the worker's business.

use crate::real::Real;

/// out = the tree's sum of `shards` leaves (a power of two). `leaf(shard, value)` writes all of a leaf's value, into
/// memory that is dirty. `room` holds one value a level.
pub fn tree_sum<F: Real>(shards: usize, out: &mut [F], room: &mut Vec<F>, mut leaf: impl FnMut(usize, &mut [F])) {
    assert!(shards.is_power_of_two(), "a unit is a full subtree, not {shards} shards");
    if shards == 1 {
        return leaf(0, out);
    }
    for shard in 0..shards {
        leaf(shard, out);
        climb(shards, shard, out, room);
    }
}

/// Takes leaf number `shard` of `shards` up the tree: where it is a right sibling it is added to the left one, and so
/// on. `room` holds the left siblings that wait, one a level, and is the same from leaf to leaf. After the last one
/// the sum is in `out`.
pub fn climb<F: Real>(shards: usize, shard: usize, out: &mut [F], room: &mut Vec<F>) {
    let len = out.len();
    let room = crate::ops::take(room, shards.ilog2() as usize * len);
    // As many levels close as the shard's number ends in ones: its value is their right sibling.
    let closed = shard.trailing_ones() as usize;
    for held in room.chunks_exact(len.max(1)).take(closed) {
        out.iter_mut().zip(held).for_each(|(right, left)| *right = add(*left, *right));
    }
    if shard + 1 < shards {
        room[closed * len..][..len].copy_from_slice(out);
    }
}

/// The tree's addition: every NaN is the one NaN, as where chunks are added between workers.
#[inline(always)]
pub fn add<F: Real>(left: F, right: F) -> F {
    let sum = left + right;
    #[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
    let is_number = sum == sum;
    if is_number { sum } else { F::NAN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::layout::canonical;

    /// The definition: siblings are added until one value is left.
    fn by_levels(mut leaves: Vec<Vec<f32>>) -> Vec<f32> {
        while leaves.len() > 1 {
            let pair = |p: &[Vec<f32>]| p[0].iter().zip(&p[1]).map(|(a, b)| canonical(a + b)).collect();
            leaves = leaves.chunks_exact(2).map(pair).collect();
        }
        leaves.swap_remove(0)
    }

    #[test]
    fn the_sum_has_the_trees_bits_for_every_subtree() {
        let special = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0xffc1_2345), 1e30, -1e30, 1e-40];
        let value = |shard: usize, i: usize| match (shard * 7 + i) % 11 {
            k if k < special.len() && i.is_multiple_of(3) => special[k],
            k => (shard as f32 + 0.1) * (k as f32 - 4.7) * 1.1f32.powi(i as i32),
        };
        for shards in [1, 2, 4, 8, 16, 64] {
            for len in [0, 1, 33] {
                let leaves = (0..shards).map(|s| (0..len).map(|i| value(s, i)).collect()).collect();
                let (mut out, mut room) = (vec![f32::NAN; len], vec![1.0; 5]);
                tree_sum(shards, &mut out, &mut room, |s, leaf| {
                    (0..).zip(leaf).for_each(|(i, x)| *x = value(s, i));
                });
                let bits = |xs: Vec<f32>| xs.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                assert_eq!(bits(out), bits(by_levels(leaves)), "{shards} shards of {len}");
            }
        }
    }
}
