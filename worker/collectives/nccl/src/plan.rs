//! Which bytes go to whom in a round: a pure function of view, layout and rank.
//!
//! A round goes in steps. Step k takes the k-th chunk of every owner: all members send their sums of it to its owner, and
//! in the same group the owners send everyone the chunks that they finished in step k - 1. Between two steps an owner
//! adds along the tree. So all links are busy in every step, and a chunk's spreading hides behind the next one's
//! collecting.
//!
//! **No deadlock, by construction.** NCCL matches sends with receives of the same two ranks in their order, and all
//! transfers of a group progress together. Each transfer has both its ends in the same step, in the order of (collecting
//! before spreading, chunk, node) on both sides, and which step a chunk is in depends on the view and the layout alone.
//! So when all ranks have reached step k, nothing in it waits for anything outside of it.
//!
//! Contributions are the maximal subtrees of a member's shards in this view. One that computed some of them in an
//! older view has their parts, and adds those up: no work is lost.

use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::view::View;
use elastic_spec::{Rank, WorkerId};
use std::ops::Range;

/// All that one rank does in a round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The subtrees whose sums this rank brings, each a flat vector of `flat_bytes`: [`Region::Segment`], by index.
    pub segments: Vec<TreeNode>,
    /// Bytes of the whole value: all floats, then the tail.
    pub flat_bytes: usize,
    /// Bytes of [`Region::Inbox`], which each step uses anew.
    pub inbox_bytes: usize,
    pub steps: Vec<Step>,
}

/// A group of transfers, and what is added up once they are done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    pub group: Vec<Move>,
    pub sum: Option<Sum>,
}

/// One end of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    pub way: Way,
    pub chunk: u32,
    /// The subtree that a contribution is of; none of a finished chunk.
    pub node: Option<TreeNode>,
    pub place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    To(Rank),
    From(Rank),
    /// From this rank, the owner, to all.
    Broadcast(Rank),
}

/// Bytes of one of the rank's memories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub region: Region,
    pub bytes: Range<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Region {
    /// The sum over [`Plan::segments`] of this index.
    Segment(usize),
    /// Contributions of other ranks.
    Inbox,
    /// The round's value, chunk by chunk.
    Reduced,
}

/// A chunk that this rank owns: `parts`, which cover the tree, are added along it into `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sum {
    pub chunk: u32,
    /// By node, as [`elastic_spec::tree::fold`] wants them.
    pub parts: Vec<(TreeNode, Place)>,
    pub to: Place,
}

/// How finished chunks go to everyone. The bits are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Spread {
    /// The owner sends to each: one hop, and with NVLink between all pairs every link at once.
    #[default]
    Sends,
    /// By `ncclBroadcast`: along NCCL's rings, for networks in which an owner's own link is the narrow place.
    Broadcast,
}

/// A place for a vector kernel to read from.
const ALIGNMENT: usize = 256;

/// What `rank` does in a round of this layout. The view was checked at the door ([`View::check`]); `rank` is of it.
pub fn plan(view: &View, layout: Layout, rank: Rank, spread: Spread) -> Plan {
    let planner = Planner::new(view, layout, rank, spread);
    let batches = planner.owned.iter().map(Vec::len).max().unwrap_or(0);
    // Once the last batch is added up it is still to be spread.
    let steps: Vec<Step> = (0..=batches).map(|k| planner.step(k)).filter(|step| *step != Step::default()).collect();
    let moves = steps.iter().flat_map(|step| &step.group);
    let inbox = moves.filter(|m| m.place.region == Region::Inbox).map(|m| m.place.bytes.end);
    Plan {
        segments: planner.covers[planner.me].clone(),
        flat_bytes: layout.floats * 4 + Tail::BYTES,
        inbox_bytes: inbox.max().unwrap_or(0),
        steps,
    }
}

/// Where a chunk lies in a flat vector.
pub(crate) fn flat(layout: Layout, chunk: u32) -> Range<usize> {
    let start = layout.range(chunk).start * 4;
    start..start + layout.bytes(chunk)
}

struct Planner {
    layout: Layout,
    spread: Spread,
    me: usize,
    /// By rank: the maximal subtrees of its shards.
    covers: Vec<Vec<TreeNode>>,
    /// By rank: the chunks that it owns, ascending.
    owned: Vec<Vec<u32>>,
}

impl Planner {
    fn new(view: &View, layout: Layout, rank: Rank, spread: Spread) -> Planner {
        let ranks: Vec<WorkerId> = view.active().map(|member| member.worker).collect();
        let me = usize::from(rank.0);
        assert!(me < ranks.len(), "rank {rank} is of the view, which has {}", ranks.len());
        let cover = |r: usize| tree::cover(view.shards(), |shard| view.is_mapped_to(shard, Rank(r as u16)));
        let chunks = layout.chunks();
        let owner = |chunk: u32| view.owner(chunk, chunks);
        let owned = ranks.iter().map(|id| (0..chunks).filter(|chunk| owner(*chunk) == Some(*id)).collect()).collect();
        Planner { layout, spread, me, covers: (0..ranks.len()).map(cover).collect(), owned }
    }

    fn others(&self) -> impl Iterator<Item = usize> {
        (0..self.covers.len()).filter(|rank| *rank != self.me)
    }

    fn step(&self, k: usize) -> Step {
        let mut step = Step::default();
        self.collect(k, &mut step);
        if let Some(before) = k.checked_sub(1) {
            self.spread(before, &mut step);
        }
        step
    }

    fn flat(&self, chunk: u32) -> Range<usize> {
        flat(self.layout, chunk)
    }

    /// Contributions to the k-th chunk of each owner.
    fn collect(&self, k: usize, step: &mut Step) {
        for owner in self.others() {
            let Some(chunk) = self.owned[owner].get(k) else { continue };
            step.group.extend(self.covers[self.me].iter().enumerate().map(|(segment, node)| Move {
                way: Way::To(rank_of(owner)),
                chunk: *chunk,
                node: Some(*node),
                place: Place { region: Region::Segment(segment), bytes: self.flat(*chunk) },
            }));
        }
        let Some(chunk) = self.owned[self.me].get(k).copied() else { return };
        let own = self.covers[self.me].iter().enumerate();
        let mut parts: Vec<(TreeNode, Place)> = own
            .map(|(segment, node)| (*node, Place { region: Region::Segment(segment), bytes: self.flat(chunk) }))
            .collect();
        let mut free = 0;
        for from in self.others() {
            for node in &self.covers[from] {
                let place = Place { region: Region::Inbox, bytes: free..free + self.layout.bytes(chunk) };
                free = place.bytes.end.next_multiple_of(ALIGNMENT);
                parts.push((*node, place.clone()));
                step.group.push(Move { way: Way::From(rank_of(from)), chunk, node: Some(*node), place });
            }
        }
        parts.sort_by_key(|(node, _)| *node);
        step.sum = Some(Sum { chunk, parts, to: Place { region: Region::Reduced, bytes: self.flat(chunk) } });
    }

    /// The finished k-th chunk of each owner.
    fn spread(&self, k: usize, step: &mut Step) {
        for (owner, owned) in self.owned.iter().enumerate() {
            let Some(chunk) = owned.get(k).copied() else { continue };
            let mut go = |way: Way| {
                let place = Place { region: Region::Reduced, bytes: self.flat(chunk) };
                step.group.push(Move { way, chunk, node: None, place });
            };
            match self.spread {
                Spread::Broadcast if self.covers.len() > 1 => go(Way::Broadcast(rank_of(owner))),
                Spread::Broadcast => {}
                Spread::Sends if owner == self.me => self.others().for_each(|to| go(Way::To(rank_of(to)))),
                Spread::Sends => go(Way::From(rank_of(owner))),
            }
        }
    }
}

fn rank_of(index: usize) -> Rank {
    Rank(u16::try_from(index).expect("a view has fewer members than a u16 counts"))
}

#[cfg(test)]
mod tests;
