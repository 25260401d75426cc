//! The owner's side of a round: contributions as they come in, until the tree can be finished.
//!
//! A contribution is kept whoever sent it and whatever view it was made in: position in the tree
//! decides what it is. Rounds ahead are kept too, a few, since peers may be one commit ahead.

use bytes::Bytes;
use elastic_spec::Round;
use elastic_spec::tree::{self, TreeNode};
use std::collections::{BTreeMap, BTreeSet};

/// Rounds ahead of this member's own for which contributions are kept.
pub const AHEAD_MAX: u64 = 4;

#[derive(Debug, Default)]
pub struct TreeSums {
    held: BTreeMap<(Round, u32), BTreeMap<TreeNode, Bytes>>,
    /// Handed out to be summed.
    out: BTreeSet<(Round, u32)>,
}

impl TreeSums {
    /// Takes a contribution; false if that node was there already.
    pub fn insert(&mut self, round: Round, chunk: u32, node: TreeNode, payload: Bytes) -> bool {
        self.held.entry((round, chunk)).or_default().insert(node, payload).is_none()
    }

    /// The parts that finish the chunk's tree: handed out once.
    pub fn take_complete(&mut self, round: Round, chunk: u32, shards: u16) -> Option<Vec<(TreeNode, Bytes)>> {
        if self.out.contains(&(round, chunk)) {
            return None;
        }
        let parts = tree::parts(TreeNode::root(shards), self.held.get(&(round, chunk))?)?;
        let parts = parts.into_iter().map(|(node, payload)| (node, payload.clone())).collect();
        self.out.insert((round, chunk));
        Some(parts)
    }

    /// The subtrees of which nothing is there yet.
    pub fn missing(&self, round: Round, chunk: u32, shards: u16) -> Vec<TreeNode> {
        match self.held.get(&(round, chunk)) {
            Some(held) => tree::missing(shards, held),
            None => vec![TreeNode::root(shards)],
        }
    }

    /// Forgets the rounds before `round`.
    pub fn drop_before(&mut self, round: Round) {
        self.held.retain(|(r, _), _| *r >= round);
        self.out.retain(|(r, _)| *r >= round);
    }
}
