//! What a member tells the control plane, and what the simulator counts.

use crate::Member;
use elastic_spec::facts::Phase;
use elastic_spec::view::{Role, View};
use elastic_spec::{Round, WorkerId};
use std::collections::BTreeSet;

/// A member seen from outside.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    pub phase: Phase,
    pub view: Option<View>,
    pub at: Option<Round>,
    pub progress: u64,
    /// Whose work the round in flight waits for, or whose state; empty while this member's own is outstanding.
    pub waiting_on: Vec<WorkerId>,
    pub lost_peers: Vec<WorkerId>,
    pub published: Round,
    pub tally: Tally,
}

/// Situations that tests want to have seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Contributions of workers that are not active in the view, and were used.
    pub late_segments: u64,
    /// Views that were not newer than the one in force.
    pub views_dropped: u64,
    /// Times that this member was further behind than any log reaches.
    pub past_the_log: u64,
    pub states_installed: u64,
}

impl Member {
    pub fn status(&self) -> Status {
        Status {
            phase: self.phase(),
            view: self.view.clone(),
            at: self.at,
            progress: self.progress,
            waiting_on: self.waiting_on(),
            lost_peers: self.peers.iter().filter(|(_, p)| p.is_down).map(|(id, _)| *id).collect(),
            published: self.published,
            tally: self.tally,
        }
    }

    fn phase(&self) -> Phase {
        let role = self.view.as_ref().and_then(|v| v.member(self.config.me)).map(|m| m.role);
        let has_state = self.at.is_some() && self.fetch.is_none();
        match role {
            _ if self.has_exited && self.is_finished() => Phase::Finished,
            None if self.at.is_none() && self.view.is_none() && self.installing.is_none() => Phase::Booting,
            None => Phase::Ready,
            Some(Role::Active) if has_state => Phase::Active,
            Some(Role::Learner) if has_state && self.is_caught_up => Phase::CaughtUp,
            Some(_) => Phase::Learning,
        }
    }

    /// With the last round done: those who have it not, then whoever writes its checkpoint.
    fn waiting_for_the_end(&self, view: &View) -> Vec<WorkerId> {
        let last = self.config.rounds();
        let is_behind = |id: &WorkerId| self.peers.get(id).and_then(|p| p.at) != Some(last);
        let others = || view.active().map(|m| m.worker).filter(|w| *w != self.config.me);
        let behind: Vec<WorkerId> = others().filter(is_behind).collect();
        match behind.is_empty() && self.published < last {
            true => others().filter(|w| view.writer() == Some(*w)).collect(),
            false => behind,
        }
    }

    fn waiting_on(&self) -> Vec<WorkerId> {
        if let Some(fetch) = &self.fetch {
            return fetch.waits_for();
        }
        let (Some(round), Some(view)) = (self.at, &self.view) else { return Vec::new() };
        let Some(rank) = view.rank_of(self.config.me) else { return Vec::new() };
        let is_own_done = (0..self.config.shards)
            .filter(|s| view.is_mapped_to(elastic_spec::Shard(*s), rank))
            .all(|s| self.segments.keys().any(|node| node.range().contains(&s)));
        if round >= self.config.rounds() {
            return self.waiting_for_the_end(view);
        }
        if !is_own_done {
            return Vec::new();
        }
        let chunks = self.config.layout_of(round).chunks();
        let active: Vec<WorkerId> = view.active().map(|m| m.worker).collect();
        let mut on = BTreeSet::new();
        for chunk in self.log.lacking(round, chunks) {
            let owner = view.owner(chunk, chunks);
            if owner != Some(self.config.me) {
                on.extend(owner);
                continue;
            }
            let missing = self.sums.missing(round, chunk, self.config.shards);
            on.extend(
                missing
                    .iter()
                    .flat_map(|n| n.range())
                    .filter_map(|s| active.get(view.shard_map[s as usize].0 as usize)),
            );
        }
        on.remove(&self.config.me);
        on.into_iter().collect()
    }
}
