//! One wanted worker process of a job, and what is known of the process that fills it.

use crate::time::Millis;
use elastic_spec::facts::{Phase, SlotWant, WorkerStatus};
use elastic_spec::{Epoch, NodeId, Round, WorkerId};

#[derive(Debug)]
pub(crate) struct Slot {
    pub node: NodeId,
    pub attempt: u32,
    /// When this attempt was decided.
    pub since: Millis,
    /// The attempt is asked for from here on; before, the slot is empty.
    pub not_before: Millis,
    pub leave: Leave,
    /// The process of this attempt, once it was seen.
    pub worker: Option<Worker>,
    /// It was started anew to take up a checkpoint of at least this round; once for each is enough.
    pub refreshed_for: Option<Round>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    No,
    /// It shall go, but still holds what others need.
    HandsOver {
        since: Millis,
    },
    /// It was told to go.
    Told {
        since: Millis,
    },
}

#[derive(Debug)]
pub(crate) struct Worker {
    pub id: WorkerId,
    pub status: Option<WorkerStatus>,
    pub heard: Millis,
    /// When its progress, phase or round changed last.
    pub progressed: Millis,
    /// It was silent too long and is counted out until it is heard after this.
    pub suspect_since: Option<Millis>,
    /// The first view since it last entered as a learner.
    pub admitted: Option<Epoch>,
}

impl Slot {
    pub fn new(node: NodeId, attempt: u32, now: Millis) -> Slot {
        Slot { node, attempt, since: now, not_before: now, leave: Leave::No, worker: None, refreshed_for: None }
    }

    pub fn is_leaving(&self) -> bool {
        self.leave != Leave::No
    }

    pub fn want(&self, slot: u16, now: Millis) -> Option<SlotWant> {
        let leave = matches!(self.leave, Leave::Told { .. });
        (now >= self.not_before).then_some(SlotWant { slot, attempt: self.attempt, leave })
    }

    /// The worker, if it is one to count on.
    pub fn fit(&self) -> Option<&Worker> {
        self.worker.as_ref().filter(|w| w.suspect_since.is_none())
    }

    /// Asks for another process in this slot.
    pub fn restart(&mut self, now: Millis, not_before: Millis) {
        self.attempt += 1;
        self.since = now;
        self.not_before = not_before;
        self.worker = None;
    }
}

impl Worker {
    pub fn new(id: WorkerId, now: Millis) -> Worker {
        Worker { id, status: None, heard: now, progressed: now, suspect_since: None, admitted: None }
    }

    pub fn observe(&mut self, now: Millis, silent_ms: u64, status: &Option<WorkerStatus>) {
        self.heard = self.heard.max(now.minus(silent_ms));
        let sign = |s: &Option<WorkerStatus>| s.as_ref().map(|s| (s.progress, s.phase, s.at));
        if sign(status) != sign(&self.status) {
            self.progressed = now;
        }
        if status.is_some() {
            self.status.clone_from(status);
        }
    }

    pub fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Booting, |s| s.phase)
    }

    pub fn at(&self) -> Option<Round> {
        self.status.as_ref().and_then(|s| s.at)
    }

    /// The epoch of the view that it acts on.
    pub fn epoch(&self) -> Option<Epoch> {
        self.status.as_ref().and_then(|s| s.view.as_ref()).map(|v| v.epoch)
    }

    /// Whether it can be in a view at all.
    pub fn is_up(&self) -> bool {
        let has_address = self.status.as_ref().is_some_and(|s| !s.address.is_empty());
        has_address && self.phase() != Phase::Booting
    }

    /// Whether it says that it caught up since it entered; `current` is the view in force.
    pub fn has_caught_up(&self, current: Epoch) -> bool {
        self.phase() == Phase::CaughtUp && self.epoch() >= Some(self.admitted.unwrap_or(current))
    }
}
