//! The protocol of a group as a state machine: frames and leaves in, frames and results out.
//!
//! Members of a group are at most one round apart, since nobody finishes a round without everybody's leaves.
//! So two rounds are kept: the one being reduced, and the one before, for a peer that still lacks some of it.

use crate::reduce::{self, SumError};
use bytes::Bytes;
use elastic_spec::frame::{Body, Need};
use elastic_spec::layout::Layout;
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::{Round, WorkerId};
use std::collections::BTreeMap;

/// What does not change in a group's life.
#[derive(Clone, Debug)]
pub struct Shape {
    pub me: WorkerId,
    /// All members in order, the same everywhere.
    pub members: Vec<WorkerId>,
    pub shards: u16,
    pub layout: Layout,
}

impl Shape {
    /// Who finishes the tree of a chunk.
    pub fn owner(&self, chunk: u32) -> WorkerId {
        self.members[chunk as usize * self.members.len() / self.layout.chunks() as usize]
    }

    pub fn others(&self) -> impl Iterator<Item = WorkerId> {
        self.members.iter().copied().filter(|id| *id != self.me)
    }
}

/// A frame to send.
pub type Out = (WorkerId, Body);

pub struct Rounds {
    shape: Shape,
    /// The round that is reduced now, or next.
    at: Round,
    /// `at - 1` (if any), `at` and `at + 1`.
    rounds: BTreeMap<Round, Value>,
    peers_at: BTreeMap<WorkerId, Round>,
}

#[derive(Default)]
struct Value {
    /// By chunk: our own subtrees, once the leaves are there.
    mine: Option<Vec<Vec<(TreeNode, Bytes)>>>,
    /// By chunk that we own: what has come in, our own included.
    held: BTreeMap<u32, BTreeMap<TreeNode, Bytes>>,
    reduced: BTreeMap<u32, Bytes>,
}

impl Rounds {
    pub fn new(shape: Shape) -> Rounds {
        let peers_at = shape.others().map(|id| (id, Round(0))).collect();
        Rounds { shape, at: Round(0), rounds: BTreeMap::new(), peers_at }
    }

    /// Our leaves of the round now to be reduced, already added up: by chunk, (subtree, sum).
    pub fn contribute(&mut self, segments: Vec<Vec<(TreeNode, Bytes)>>) -> Result<Vec<Out>, SumError> {
        let round = self.at;
        let mut out = Vec::new();
        let value = self.rounds.entry(round).or_default();
        for (chunk, segments) in (0u32..).zip(&segments) {
            let owner = self.shape.owner(chunk);
            for (node, payload) in segments {
                if owner == self.shape.me {
                    value.held.entry(chunk).or_default().insert(*node, payload.clone());
                } else {
                    let (node, payload) = (*node, payload.clone());
                    out.push((owner, Body::Contribution { round, chunk, node, payload }));
                }
            }
        }
        value.mine = Some(segments);
        for chunk in 0..self.shape.layout.chunks() {
            out.extend(self.finish(round, chunk)?);
        }
        Ok(out)
    }

    /// A frame of a peer. What makes no sense is left alone: it was for another time.
    pub fn receive(&mut self, from: WorkerId, body: Body) -> Result<Vec<Out>, SumError> {
        let (layout, shards) = (self.shape.layout, self.shape.shards);
        let fits = |chunk: u32, payload: &Bytes| chunk < layout.chunks() && payload.len() == layout.bytes(chunk);
        match body {
            Body::Contribution { round, chunk, node, payload } => {
                let ours = fits(chunk, &payload) && node.is_within(shards) && self.shape.owner(chunk) == self.shape.me;
                if ours && self.is_near(round) {
                    let value = self.rounds.entry(round).or_default();
                    value.held.entry(chunk).or_default().insert(node, payload);
                    return self.finish(round, chunk);
                }
            }
            Body::Reduced { round, chunk, payload } => {
                if fits(chunk, &payload) && self.is_near(round) {
                    self.rounds.entry(round).or_default().reduced.entry(chunk).or_insert(payload);
                }
            }
            Body::At { round, published, need } => {
                let Some(at) = self.peers_at.get_mut(&from) else { return Ok(Vec::new()) };
                *at = round.max(*at);
                let mut out = self.serve(from, round, &need);
                // It missed where we are. Our answer says where it is, so it does not answer that again.
                if published < self.at {
                    out.push((from, self.at(from)));
                }
                return Ok(out);
            }
            Body::StateWanted { .. } | Body::State { .. } | Body::Gone { .. } => {}
        }
        Ok(Vec::new())
    }

    fn is_near(&self, round: Round) -> bool {
        round == self.at || round == self.at.next()
    }

    /// Adds up a chunk that we own as soon as all of it is there, and spreads it.
    fn finish(&mut self, round: Round, chunk: u32) -> Result<Vec<Out>, SumError> {
        let shape = &self.shape;
        let Some(value) = self.rounds.get_mut(&round) else { return Ok(Vec::new()) };
        let Some(held) = value.held.get(&chunk).filter(|_| !value.reduced.contains_key(&chunk)) else {
            return Ok(Vec::new());
        };
        let Some(parts) = tree::parts(TreeNode::root(shape.shards), held) else { return Ok(Vec::new()) };
        let parts: Vec<_> = parts.into_iter().map(|(node, bytes)| (node, bytes.clone())).collect();
        let payload = reduce::sum(shape.layout, chunk, shape.shards, &parts)?;
        value.held.remove(&chunk);
        value.reduced.insert(chunk, payload.clone());
        Ok(shape.others().map(|to| (to, Body::Reduced { round, chunk, payload: payload.clone() })).collect())
    }

    /// What we hold of what a peer lacks.
    fn serve(&self, to: WorkerId, round: Round, need: &Need) -> Vec<Out> {
        let Some(value) = self.rounds.get(&round) else { return Vec::new() };
        let mut out = Vec::new();
        for &chunk in &need.reduced {
            if let Some(payload) = value.reduced.get(&chunk) {
                out.push((to, Body::Reduced { round, chunk, payload: payload.clone() }));
            }
        }
        let mine = value.mine.as_deref().unwrap_or_default();
        for (chunk, nodes) in &need.nodes {
            let lacks = |node: &TreeNode| nodes.iter().any(|n| overlap(*n, *node));
            for (node, payload) in mine.get(*chunk as usize).into_iter().flatten().filter(|(node, _)| lacks(node)) {
                let (chunk, node, payload) = (*chunk, *node, payload.clone());
                out.push((to, Body::Contribution { round, chunk, node, payload }));
            }
        }
        out
    }

    /// The chunks of the round, once all are there and our own leaves are in; then the next round begins.
    pub fn take_done(&mut self) -> Option<Vec<Bytes>> {
        let value = self.rounds.get(&self.at).filter(|v| v.mine.is_some())?;
        if value.reduced.len() != self.shape.layout.chunks() as usize {
            return None;
        }
        let chunks = value.reduced.values().cloned().collect();
        let done = self.at;
        self.at = done.next();
        self.rounds.retain(|round, _| *round >= done);
        Some(chunks)
    }

    /// The chunks of a round that was taken already.
    pub fn done_before(&self, round: Round) -> Option<Vec<Bytes>> {
        let value = self.rounds.get(&round).filter(|_| round < self.at)?;
        Some(value.reduced.values().cloned().collect())
    }

    /// Where we are, what we lack, and (as `published`) where we think that `to` is; to be said now and then.
    pub fn at(&self, to: WorkerId) -> Body {
        let published = self.peers_at.get(&to).copied().unwrap_or_default();
        Body::At { round: self.at, published, need: self.need() }
    }

    fn need(&self) -> Need {
        let mut need = Need::default();
        if let Some(value) = self.rounds.get(&self.at).filter(|value| value.mine.is_some()) {
            let shape = &self.shape;
            for chunk in (0..shape.layout.chunks()).filter(|c| !value.reduced.contains_key(c)) {
                if shape.owner(chunk) == shape.me {
                    let empty = BTreeMap::new();
                    let held = value.held.get(&chunk).unwrap_or(&empty);
                    need.nodes.push((chunk, tree::missing(shape.shards, held)));
                } else {
                    need.reduced.push(chunk);
                }
            }
        }
        need
    }

    /// Members that are not known to have finished all that we have.
    pub fn behind(&self) -> Vec<WorkerId> {
        self.peers_at.iter().filter(|(_, at)| **at < self.at).map(|(id, _)| *id).collect()
    }

    /// What the round waits for, for a person.
    pub fn waits_for(&self) -> Waits {
        let need = self.need();
        let mut owners: Vec<WorkerId> = need.reduced.iter().map(|chunk| self.shape.owner(*chunk)).collect();
        owners.sort();
        owners.dedup();
        let mut shards: Vec<u16> = need.nodes.iter().flat_map(|(_, n)| n.iter().flat_map(|n| n.range())).collect();
        shards.sort();
        shards.dedup();
        Waits { owners, shards }
    }
}

/// What a round waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Owners whose chunks have not come.
    pub owners: Vec<WorkerId>,
    /// Shards of which this member, as an owner, has no leaf.
    pub shards: Vec<u16>,
}

fn overlap(a: TreeNode, b: TreeNode) -> bool {
    let (a, b) = (a.range(), b.range());
    a.start < b.end && b.start < a.end
}
