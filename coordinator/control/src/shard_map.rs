//! Which worker computes which of the V shards.
//!
//! Loads never exceed ceil(V / W). After a loss the survivors keep their shards, so that nothing they
//! have done is done again, and only the lost ones are spread. When somebody joins, the shards are cut
//! anew into intervals made of few full subtrees, because each subtree is one message per chunk, and
//! each interval goes to whoever has most of it already.

use elastic_spec::{Shard, WorkerId, tree};
use std::collections::BTreeMap;

/// `previous` names the worker of each shard, or is empty. `survivors` and `joiners` are in rank order.
pub fn shard_map(previous: &[WorkerId], survivors: &[WorkerId], joiners: &[WorkerId], v: u16) -> Vec<WorkerId> {
    assert!(v.is_power_of_two(), "V is a power of two");
    let world = survivors.len() + joiners.len();
    if world == 0 {
        return Vec::new();
    }
    let load_max = (v as usize).div_ceil(world);
    if joiners.is_empty() && previous.len() == v as usize {
        return spread_the_lost(previous, survivors, load_max);
    }
    let intervals = intervals(v, world, load_max);
    match_intervals(previous, survivors, joiners, &intervals)
}

/// How many messages per chunk `worker` sends under `map`.
pub fn segments(map: &[WorkerId], worker: WorkerId) -> usize {
    tree::cover(map.len() as u16, |shard: Shard| map[shard.0 as usize] == worker).len()
}

/// Each lost shard goes to a neighbour's owner where that has room, which makes larger subtrees, else to
/// the least loaded.
fn spread_the_lost(previous: &[WorkerId], survivors: &[WorkerId], load_max: usize) -> Vec<WorkerId> {
    let mut loads: BTreeMap<WorkerId, usize> = survivors.iter().map(|w| (*w, 0)).collect();
    let mut owners: Vec<Option<WorkerId>> = previous.iter().map(|w| loads.contains_key(w).then_some(*w)).collect();
    for owner in owners.iter().flatten() {
        *loads.get_mut(owner).expect("only survivors are left") += 1;
    }
    for shard in 0..owners.len() {
        if owners[shard].is_some() {
            continue;
        }
        let left = shard.checked_sub(1).and_then(|s| owners[s]);
        let right = owners[shard..].iter().flatten().next().copied();
        let has_room = |w: &WorkerId| loads[w] < load_max;
        let least = || survivors.iter().min_by_key(|w| loads[w]).copied();
        let owner = left.filter(has_room).or(right.filter(has_room)).or_else(least).expect("somebody survives");
        *loads.get_mut(&owner).expect("a survivor") += 1;
        owners[shard] = Some(owner);
    }
    owners.into_iter().map(|w| w.expect("all were filled")).collect()
}

/// Lengths of `world` neighbouring intervals over `v` shards, none above `load_max`, with as few full
/// subtrees in all as can be, and among those the most even.
fn intervals(v: u16, world: usize, load_max: usize) -> Vec<usize> {
    let v = v as usize;
    let least = usize::from(world <= v);
    // best[k][end]: the cheapest (subtrees, sum of squares) of k intervals over 0..end, and the last one's length.
    type Cost = (usize, usize);
    let mut best: Vec<Vec<Option<(Cost, usize)>>> = vec![vec![None; v + 1]; world + 1];
    best[0][0] = Some(((0, 0), 0));
    for k in 1..=world {
        for end in 0..=v {
            // What is left for those behind must be enough, and not too much, for them.
            let behind = world - k;
            if v - end > behind * load_max || v - end < behind * least {
                continue;
            }
            let choices = (least..=load_max.min(end)).filter_map(|length| {
                let ((subtrees, squares), _) = best[k - 1][end - length]?;
                Some(((subtrees + subtrees_in(end - length, end), squares + length * length), length))
            });
            best[k][end] = choices.min();
        }
    }
    let mut lengths = Vec::with_capacity(world);
    let mut end = v;
    for k in (1..=world).rev() {
        let (_, length) = best[k][end].expect("world * load_max covers all shards");
        lengths.push(length);
        end -= length;
    }
    lengths.reverse();
    lengths
}

/// Full subtrees that make up `start..end`.
fn subtrees_in(mut start: usize, end: usize) -> usize {
    let mut count = 0;
    while start < end {
        let aligned = if start == 0 { usize::MAX } else { 1 << start.trailing_zeros() };
        start += aligned.min(1 << (end - start).ilog2());
        count += 1;
    }
    count
}

fn match_intervals(
    previous: &[WorkerId],
    survivors: &[WorkerId],
    joiners: &[WorkerId],
    lengths: &[usize],
) -> Vec<WorkerId> {
    let starts: Vec<usize> = lengths.iter().scan(0, |at, l| Some(std::mem::replace(at, *at + l))).collect();
    let owned = |worker: &WorkerId, interval: usize| {
        let shards = previous.iter().skip(starts[interval]).take(lengths[interval]);
        shards.filter(|w| *w == worker).count()
    };
    let mut claims: Vec<(std::cmp::Reverse<usize>, usize, usize)> = (0..survivors.len())
        .flat_map(|rank| (0..lengths.len()).map(move |interval| (rank, interval)))
        .map(|(rank, interval)| (std::cmp::Reverse(owned(&survivors[rank], interval)), rank, interval))
        .filter(|(overlap, _, _)| overlap.0 > 0)
        .collect();
    claims.sort();
    let mut of_interval: Vec<Option<WorkerId>> = vec![None; lengths.len()];
    let mut rest: Vec<Option<WorkerId>> = survivors.iter().chain(joiners).map(|w| Some(*w)).collect();
    for (_, rank, interval) in claims {
        if of_interval[interval].is_none() {
            of_interval[interval] = rest[rank].take();
        }
    }
    let mut rest = rest.into_iter().flatten();
    let workers = of_interval.into_iter().map(|w| w.or_else(|| rest.next()).expect("as many workers as intervals"));
    workers.zip(lengths).flat_map(|(worker, length)| std::iter::repeat_n(worker, *length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn workers(range: std::ops::Range<u64>) -> Vec<WorkerId> {
        range.map(WorkerId).collect()
    }

    fn mean_segments(map: &[WorkerId]) -> f64 {
        let owners: BTreeSet<_> = map.iter().collect();
        owners.iter().map(|w| segments(map, **w)).sum::<usize>() as f64 / owners.len() as f64
    }

    #[test]
    fn fresh_maps_need_as_few_messages_as_the_table_in_the_protocol_says() {
        for (world, most) in [
            (2, 1.0),
            (3, 3.0),
            (4, 1.0),
            (5, 3.4),
            (7, 1.86),
            (8, 1.0),
            (12, 1.67),
            (15, 1.4),
            (16, 1.0),
            (24, 1.67),
            (31, 1.07),
            (32, 1.0),
            (48, 1.0),
            (63, 1.0),
            (64, 1.0),
        ] {
            let map = shard_map(&[], &[], &workers(0..world), 64);
            let mean = mean_segments(&map);
            println!("V = 64, W = {world}: {mean:.2} segments a rank");
            assert!(mean <= most + 0.005, "W = {world}: {mean}, at most {most}");
        }
    }

    #[test]
    fn a_joiner_takes_over_without_moving_more_than_it_must() {
        let two = shard_map(&[], &[], &workers(0..2), 64);
        let four = shard_map(&two, &workers(0..2), &workers(2..4), 64);
        let moved = two.iter().zip(&four).filter(|(a, b)| a != b).count();
        assert_eq!(moved, 32);
    }

    proptest! {
        #[test]
        fn every_shard_has_one_owner_and_nobody_too_many(
            levels in 0u32..8, world in 1u64..40, lost in 0u64..40, joined in 0u64..10,
        ) {
            let v = 1u16 << levels;
            let before = shard_map(&[], &[], &workers(0..world), v);
            prop_assert_eq!(before.len(), v as usize);
            let survivors: Vec<_> = workers(0..world).into_iter().filter(|w| w.0 != lost && w.0 * 7 % 5 != 1).collect();
            let joiners = workers(world..world + joined);
            let after = shard_map(&before, &survivors, &joiners, v);
            if survivors.len() + joiners.len() == 0 {
                prop_assert!(after.is_empty());
                return Ok(());
            }
            prop_assert_eq!(after.len(), v as usize);
            let most = (v as usize).div_ceil(survivors.len() + joiners.len());
            for worker in survivors.iter().chain(&joiners) {
                prop_assert!(after.iter().filter(|w| *w == worker).count() <= most);
            }
            prop_assert!(after.iter().all(|w| survivors.contains(w) || joiners.contains(w)));
            if joiners.is_empty() {
                let kept = before.iter().zip(&after).all(|(b, a)| a == b || !survivors.contains(b));
                prop_assert!(kept, "survivors keep what they have");
            }
        }

        #[test]
        fn a_second_loss_before_any_join_keeps_the_limits_too(levels in 3u32..8, world in 3u64..20) {
            let v = 1u16 << levels;
            let mut map = shard_map(&[], &[], &workers(0..world), v);
            for left in (1..world).rev() {
                map = shard_map(&map, &workers(0..left), &[], v);
                let most = (v as usize).div_ceil(left as usize);
                for worker in workers(0..left) {
                    prop_assert!(map.iter().filter(|w| **w == worker).count() <= most);
                }
            }
        }
    }
}
