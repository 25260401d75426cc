//! What members of one job say to each other, peer to peer. The byte form is in `collectives`.
//!
//! Everything here is either content addressed (a contribution, a reduced chunk, a piece of state:
//! the same bytes whoever sends them, valid in any view) or a monotone fact (at which round a member
//! is, what is published). Nothing has to be fenced by the view but the view itself; the epoch in each
//! frame is for traces, and lets a receiver see that it is behind.

use crate::ids::{Epoch, Round};
use crate::tree::TreeNode;
use bytes::Bytes;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The view that the sender acts on.
    pub epoch: Epoch,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A full subtree's sum of one chunk, to the chunk's owner.
    Contribution { round: Round, chunk: u32, node: TreeNode, payload: Bytes },
    /// A finished chunk, to everyone.
    Reduced { round: Round, chunk: u32, payload: Bytes },
    /// Where the sender is, and what it lacks there. Sent at each commit, and again while it waits.
    At { round: Round, published: Round, need: Need },
    /// A learner asks for the state of exactly `round`, part `part` of `parts`.
    StateWanted { round: Round, part: u16, parts: u16 },
    /// Part of a state: bytes `offset ..` of `total`.
    State {
        round: Round,
        part: u16,
        parts: u16,
        total: u64,
        offset: u64,
        payload: Bytes,
        sha256_of_part: [u8; 32],
        last: bool,
    },
    /// The sender is already past the wanted round, or no longer holds the wanted chunk.
    Gone { wanted: Round, at: Round },
}

/// What a member lacks for the round it is in. Empty when it lacks nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Chunks whose reduced value it lacks.
    pub reduced: Vec<u32>,
    /// For chunks that it owns: the subtrees of which it has nothing.
    pub nodes: Vec<(u32, Vec<TreeNode>)>,
}

impl Need {
    pub fn is_empty(&self) -> bool {
        self.reduced.is_empty() && self.nodes.is_empty()
    }
}
