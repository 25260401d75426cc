//! The fixed binary tree over the V shards, along which every sum of the job is taken.
//!
//! Positions are named by (level, index), never by who computed them, so a contribution is idempotent:
//! whoever computes a node gets the same bytes. V is a power of two. The arithmetic on payloads lives in
//! [`crate::layout`]; who computes which node is decided by the view.

use crate::ids::Shard;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::Range;

/// A full subtree: the shards `index << level .. (index + 1) << level`. Level 0 is a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TreeNode {
    pub level: u8,
    pub index: u16,
}

impl TreeNode {
    pub fn leaf(shard: Shard) -> TreeNode {
        TreeNode { level: 0, index: shard.0 }
    }

    /// The node over all `shards` leaves (a power of two).
    pub fn root(shards: u16) -> TreeNode {
        assert!(shards.is_power_of_two(), "V is a power of two");
        TreeNode { level: shards.trailing_zeros() as u8, index: 0 }
    }

    /// The shards under this node.
    pub fn range(self) -> Range<u16> {
        self.index << self.level..(self.index + 1) << self.level
    }

    /// Left and right child; none of a leaf.
    pub fn children(self) -> Option<(TreeNode, TreeNode)> {
        let level = self.level.checked_sub(1)?;
        Some((TreeNode { level, index: self.index * 2 }, TreeNode { level, index: self.index * 2 + 1 }))
    }

    /// Whether this node exists in a tree over `shards` leaves: the check at the door for wire input.
    pub fn is_within(self, shards: u16) -> bool {
        let levels = shards.trailing_zeros() as u8;
        self.level <= levels && self.index < shards >> self.level
    }
}

/// The maximal full subtrees that together are exactly `shards` (in order, without repeats).
pub fn cover(v: u16, mut wanted: impl FnMut(Shard) -> bool) -> Vec<TreeNode> {
    fn walk(node: TreeNode, wanted: &[bool], out: &mut Vec<TreeNode>) {
        let range = node.range();
        let slice = &wanted[range.start as usize..range.end as usize];
        if slice.iter().all(|w| *w) {
            out.push(node);
        } else if let (true, Some((left, right))) = (slice.contains(&true), node.children()) {
            walk(left, wanted, out);
            walk(right, wanted, out);
        }
    }
    let wanted: Vec<bool> = (0..v).map(|s| wanted(Shard(s))).collect();
    let mut out = Vec::new();
    walk(TreeNode::root(v), &wanted, &mut out);
    out
}

/// The parts of `held` that finish `node`, left to right, each as high in the tree as there is one;
/// `None` while a shard is missing.
pub fn parts<T>(node: TreeNode, held: &BTreeMap<TreeNode, T>) -> Option<Vec<(TreeNode, &T)>> {
    if let Some(value) = held.get(&node) {
        return Some(vec![(node, value)]);
    }
    let (left, right) = node.children()?;
    let mut all = parts(left, held)?;
    all.extend(parts(right, held)?);
    Some(all)
}

/// The maximal subtrees under `node` of which `held` has nothing: what an owner still waits for.
pub fn missing<T>(v: u16, held: &BTreeMap<TreeNode, T>) -> Vec<TreeNode> {
    let mut there = vec![false; v as usize];
    for node in held.keys() {
        there[node.range().start as usize..node.range().end as usize].fill(true);
    }
    cover(v, |shard| !there[shard.0 as usize])
}

/// Folds `parts` (from [`parts`]) up to `node`, calling `add(left, right)` in tree order.
pub fn fold<T: Clone>(node: TreeNode, parts: &BTreeMap<TreeNode, T>, add: &mut impl FnMut(&T, &T) -> T) -> Option<T> {
    if let Some(value) = parts.get(&node) {
        return Some(value.clone());
    }
    let (left, right) = node.children()?;
    let (left, right) = (fold(left, parts, add)?, fold(right, parts, add)?);
    Some(add(&left, &right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn node(level: u8, index: u16) -> TreeNode {
        TreeNode { level, index }
    }

    #[test]
    fn a_cover_is_made_of_the_largest_subtrees() {
        assert_eq!(cover(8, |s| s.0 < 6), vec![node(2, 0), node(1, 2)]);
        assert_eq!(cover(8, |_| true), vec![TreeNode::root(8)]);
        assert_eq!(cover(8, |_| false), vec![]);
        assert_eq!(cover(1, |_| true), vec![node(0, 0)]);
    }

    #[test]
    fn overlapping_contributions_use_the_highest_nodes() {
        let held: BTreeMap<_, _> = [(node(1, 0), 'a'), (node(0, 0), 'b'), (node(1, 1), 'c')].into();
        let used: Vec<_> = parts(TreeNode::root(4), &held).unwrap().into_iter().map(|(n, _)| n).collect();
        assert_eq!(used, vec![node(1, 0), node(1, 1)]);
        assert_eq!(missing(8, &held), vec![node(2, 1)]);
    }

    proptest! {
        #[test]
        fn any_split_of_the_shards_gives_the_bits_of_the_whole_tree(seed in any::<u64>(), levels in 0u8..7, owners in 1u16..9) {
            let v = 1u16 << levels;
            let mut state = seed;
            let mut draw = move || { state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); (state >> 33) as u32 };
            let leaf: Vec<f32> = (0..v).map(|_| (draw() as f32 / 1e6 - 1000.0) * 1.7f32.powi((draw() % 40) as i32 - 20)).collect();
            let mut add = |a: &f32, b: &f32| a + b;
            let leaves: BTreeMap<_, _> = (0..v).map(|s| (TreeNode::leaf(Shard(s)), leaf[s as usize])).collect();
            let whole = fold(TreeNode::root(v), &leaves, &mut add).unwrap();
            let owner: Vec<u16> = (0..v).map(|_| draw() as u16 % owners).collect();
            let mut held = BTreeMap::new();
            for rank in 0..owners {
                for n in cover(v, |s| owner[s.0 as usize] == rank) {
                    held.insert(n, fold(n, &leaves, &mut add).unwrap());
                }
            }
            prop_assert!(missing(v, &held).is_empty());
            prop_assert_eq!(fold(TreeNode::root(v), &held, &mut add).unwrap().to_bits(), whole.to_bits());
        }
    }
}
