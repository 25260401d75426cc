//! What a member is told and what it wants done.

use bytes::Bytes;
use elastic_spec::frame::{Body, Frame};
use elastic_spec::job::schedule::{Kind, Schedule};
use elastic_spec::layout::Layout;
use elastic_spec::tree::TreeNode;
use elastic_spec::view::View;
use elastic_spec::{Round, WorkerId};

/// What does not change in a member's life.
#[derive(Clone, Debug)]
pub struct Config {
    pub me: WorkerId,
    /// V.
    pub shards: u16,
    pub schedule: Schedule,
    /// How a training round's value is cut.
    pub layout: Layout,
    /// Steps between checkpoints; 0: only the last.
    pub checkpoint_every: u64,
    /// Reduced rounds kept for those behind: see `spec::limits`.
    pub log_rounds_max: usize,
    pub log_bytes_max: usize,
}

impl Config {
    /// Rounds of the whole job.
    pub fn rounds(&self) -> Round {
        self.schedule.rounds()
    }

    /// How the value of `round` is cut.
    pub fn layout_of(&self, round: Round) -> Layout {
        match round < self.rounds() && matches!(self.schedule.kind(round), Kind::Validate(_)) {
            true => Layout::TAIL_ONLY,
            false => self.layout,
        }
    }

    /// Whether the state of `round` shall be published.
    pub fn is_checkpoint(&self, round: Round) -> bool {
        let step = self.schedule.step_at(round);
        let due = self.checkpoint_every > 0 && step.0 > 0 && step.0.is_multiple_of(self.checkpoint_every);
        round == self.rounds() || (due && round == self.schedule.round_after(step))
    }
}

/// `now` (ms, any origin, never goes back) comes beside each event.
#[derive(Clone, Debug)]
pub enum Event {
    /// The trainer holds the state of this round (initialised, or restored from a checkpoint). At most once, at boot.
    Ready {
        round: Round,
    },
    View(View),
    /// The coordinator wants this worker to hand over and leave.
    Leave,
    /// From an authenticated peer of the same job and config.
    Frame {
        from: WorkerId,
        frame: Frame,
    },
    /// A data link broke (it may come back) or is up.
    LinkDown(WorkerId),
    LinkUp(WorkerId),
    /// Answer to [`Effect::Compute`]: one payload per chunk.
    Computed {
        round: Round,
        node: TreeNode,
        chunks: Vec<Bytes>,
    },
    /// Answer to [`Effect::Sum`].
    Summed {
        round: Round,
        chunk: u32,
        payload: Bytes,
    },
    /// Answer to [`Effect::Apply`]: the trainer holds the state of round + 1.
    Applied {
        round: Round,
    },
    /// Answer to [`Effect::TakeState`]: this part of the state of `round`, already cut for the wire.
    StateTaken {
        to: WorkerId,
        round: Round,
        frames: Vec<Body>,
    },
    /// Answer to [`Effect::Install`]: the trainer holds the state of `round`, or the bytes were refused.
    Installed {
        round: Round,
        accepted: bool,
    },
    /// Answer to [`Effect::Publish`]. `false`: the disk refused; it is tried again at the next due round.
    Published {
        round: Round,
        done: bool,
    },
    /// A deadline of [`crate::Member::next_deadline`] has come.
    Tick,
}

/// The trainer's effects (Compute, Apply, TakeState, Install, Publish) are carried out strictly in the
/// order they are given; sums may run beside them; sends keep their order per peer.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    Send {
        to: WorkerId,
        frame: Frame,
    },
    /// Compute the sum of the leaves under `node` from the state of `round`. At most one is out at a time.
    Compute {
        round: Round,
        node: TreeNode,
    },
    /// Add up `parts` (a cover of the whole tree) along the tree.
    Sum {
        round: Round,
        chunk: u32,
        parts: Vec<(TreeNode, Bytes)>,
    },
    /// All chunks of `round`, in order: make the state of round + 1. Given exactly once for each round.
    Apply {
        round: Round,
        chunks: Vec<Bytes>,
    },
    /// Copy part of the state of `round`, which the trainer holds when this comes to its turn.
    TakeState {
        to: WorkerId,
        round: Round,
        part: u16,
        parts: u16,
    },
    /// All parts in order: replace the state.
    Install {
        round: Round,
        parts: Vec<Bytes>,
    },
    /// Write and publish a checkpoint of the state of `round`, which the trainer holds when this comes to
    /// its turn; the copy is taken in turn, the writing may go on beside.
    Publish {
        round: Round,
    },
    /// A fault was overcome: from the view that told of it to the next commit, in ms.
    Stalled {
        ms: u64,
    },
    /// Keep data links to these (the view's other members) and to no one else for long.
    Links {
        peers: Vec<(WorkerId, String)>,
    },
    /// The process may end.
    Exit(crate::Leaving),
}
