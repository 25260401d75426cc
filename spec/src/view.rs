//! The membership in force: who takes part, which shards each computes, who finishes which chunk.

use crate::ids::{Epoch, JobId, NodeId, Rank, Shard, WorkerId};
use serde::{Deserialize, Serialize};

/// A view says everything that a member needs to go on; it is sent whole, never as a difference.
///
/// The map holds for whatever round each member is in: contributions are idempotent, so members that
/// meet the view one round apart, or with shards of an older map half done, cannot disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    pub job: JobId,
    pub epoch: Epoch,
    pub pace: Pace,
    /// Active members in rank order, then learners.
    pub members: Vec<ViewMember>,
    /// Which rank computes shard i, for each of the V shards. Empty while nobody is active.
    pub shard_map: Vec<Rank>,
}

/// Whether the members compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pace {
    Run,
    /// Hold the state: below `min_workers`, or about to leave. The writer publishes what is held.
    Pause,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewMember {
    pub worker: WorkerId,
    pub node: NodeId,
    /// host:port of its data plane.
    pub address: String,
    pub role: Role,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Computes shards; no round ends without them.
    Active,
    /// Receives state and reduced rounds until it has caught up; nobody waits for it.
    Learner,
}

impl View {
    /// The active members in rank order.
    pub fn active(&self) -> impl Iterator<Item = &ViewMember> {
        self.members.iter().filter(|m| m.role == Role::Active)
    }

    pub fn world_size(&self) -> u16 {
        self.active().count() as u16
    }

    pub fn member(&self, worker: WorkerId) -> Option<&ViewMember> {
        self.members.iter().find(|m| m.worker == worker)
    }

    pub fn rank_of(&self, worker: WorkerId) -> Option<Rank> {
        self.active().position(|m| m.worker == worker).map(|i| Rank(i as u16))
    }

    /// V: the number of shards.
    pub fn shards(&self) -> u16 {
        self.shard_map.len() as u16
    }

    pub fn is_mapped_to(&self, shard: Shard, rank: Rank) -> bool {
        self.shard_map.get(shard.0 as usize) == Some(&rank)
    }

    /// Who finishes the tree of `chunk` and spreads the result: contiguous chunk ranges by rank.
    pub fn owner(&self, chunk: u32, chunks: u32) -> Option<WorkerId> {
        let world = u64::from(self.world_size());
        let rank = u64::from(chunk) * world / u64::from(chunks.max(1));
        self.active().nth(rank as usize).map(|m| m.worker)
    }

    /// Who publishes checkpoints: the lowest rank.
    pub fn writer(&self) -> Option<WorkerId> {
        self.active().next().map(|m| m.worker)
    }

    /// Checks what a sender must have got right; the door for wire input.
    pub fn check(&self) -> Result<(), BadView> {
        let world = self.world_size();
        let sorted = self.members.is_sorted_by_key(|m| m.role == Role::Learner);
        let mut ids: Vec<_> = self.members.iter().map(|m| m.worker).collect();
        ids.sort();
        ids.dedup();
        match () {
            () if !sorted => Err(BadView::Order),
            () if ids.len() != self.members.len() => Err(BadView::Twice),
            () if world == 0 && !self.shard_map.is_empty() => Err(BadView::Map),
            () if world > 0 && !self.shard_map.len().is_power_of_two() => Err(BadView::Map),
            () if self.shard_map.iter().any(|r| r.0 >= world) => Err(BadView::Map),
            () => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadView {
    #[error("learners stand behind the active members")]
    Order,
    #[error("a worker is named twice")]
    Twice,
    #[error("the shard map names each of a power of two of shards with a rank of the view")]
    Map,
}

/// What the agent tells a worker, whole, whenever it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerOrder {
    pub view: Option<View>,
    /// Leave at the next chance: hand over, then exit with [`exit::DRAINED`].
    pub leave: bool,
    /// Restarts of the job after failures so far.
    pub restarts: u32,
}

/// A line that a command's worker prints between those of its processes: which view what follows belongs to, and its
/// rank there. No process can print it, since their lines are relayed ([`is_standing_line`]).
pub fn standing_line(epoch: Epoch, rank: Rank) -> String {
    format!("{STANDING}{} {} {rank}\n", epoch.term, epoch.gen_)
}

/// Whether a line begins like one of [`standing_line`].
pub fn is_standing_line(line: &[u8]) -> bool {
    line.starts_with(STANDING.as_bytes())
}

/// Reads what [`standing_line`] wrote.
pub fn read_standing_line(line: &[u8]) -> Option<(Epoch, Rank)> {
    let text = std::str::from_utf8(line.strip_prefix(STANDING.as_bytes())?).ok()?;
    let mut words = text.split_whitespace();
    let mut number = || words.next()?.parse::<u64>().ok();
    let (epoch, rank) = (Epoch::new(number()?, number()?), number()?);
    Some((epoch, Rank(u16::try_from(rank).ok()?)))
}

/// A record separator, which text does not have.
const STANDING: &str = "\u{1e}elastic view ";

/// Exit codes of a worker process; everything else is a fault.
pub mod exit {
    pub const DONE: i32 = 0;
    /// The job file, data or checkpoint is wrong in a way that a restart cannot cure.
    pub const USER_ERROR: i32 = 2;
    /// The job has come to an end that every worker comes to by itself: no node is at fault, and no restart cures it.
    pub const JOB_ERROR: i32 = 3;
    /// Left as asked (drain, scale-down).
    pub const DRAINED: i32 = 10;
    /// The agent went away: a worker does not outlive it.
    pub const ORPHANED: i32 = 11;
    /// A broken invariant of our own.
    pub const INTERNAL: i32 = 70;
}
