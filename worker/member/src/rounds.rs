//! One round after the other: compute own shards, contribute, finish owned chunks, commit.

use crate::tree_sums::AHEAD_MAX;
use crate::{APPLIES_OUT_MAX, Effect, Member};
use bytes::Bytes;
use elastic_spec::frame::Body;
use elastic_spec::tree::{TreeNode, cover};
use elastic_spec::view::{Pace, Role, View};
use elastic_spec::{Round, WorkerId};

impl Member {
    /// Asks the trainer for the next of this rank's subtrees that is not there yet; one at a time.
    pub(crate) fn compute(&mut self, out: &mut Vec<Effect>) {
        let (Some(round), Some(view)) = (self.at, &self.view) else { return };
        let is_busy = self.computing.is_some() || self.installing.is_some() || self.fetch.is_some();
        let Some(rank) = view.rank_of(self.config.me) else { return };
        if is_busy || view.pace == Pace::Pause || round >= self.config.rounds() {
            return;
        }
        let is_held = |shard: u16| self.segments.keys().any(|node| node.range().contains(&shard));
        let todo = cover(self.config.shards, |shard| view.is_mapped_to(shard, rank) && !is_held(shard.0));
        if let Some(node) = todo.first().copied() {
            self.computing = Some((round, node));
            out.push(Effect::Compute { round, node });
        }
    }

    pub(crate) fn computed(&mut self, round: Round, node: TreeNode, chunks: Vec<Bytes>, out: &mut Vec<Effect>) {
        assert_eq!(self.computing.take(), Some((round, node)), "the trainer answers what it was asked");
        self.progress += 1;
        if self.at != Some(round) {
            // Others finished the round without this unit (it was computed twice); nobody needs it.
            return;
        }
        for (chunk, payload) in (0u32..).zip(&chunks) {
            self.contribute(round, chunk, node, payload.clone(), out);
        }
        self.segments.insert(node, chunks);
    }

    /// Sends a segment to whoever finishes its chunk.
    fn contribute(&mut self, round: Round, chunk: u32, node: TreeNode, payload: Bytes, out: &mut Vec<Effect>) {
        let chunks = self.config.layout_of(round).chunks();
        match self.view.as_ref().and_then(|v| v.owner(chunk, chunks)) {
            Some(owner) if owner == self.config.me => self.take_contribution(None, round, chunk, node, payload, out),
            Some(owner) => self.send(owner, Body::Contribution { round, chunk, node, payload }, out),
            None => {}
        }
    }

    /// After a view change: segments already made go to the chunks' new owners.
    pub(crate) fn contribute_to_new_owners(&mut self, old: Option<&View>, out: &mut Vec<Effect>) {
        let Some(round) = self.at else { return };
        let chunks = self.config.layout_of(round).chunks();
        let new = self.view.clone().expect("called with a view");
        let segments: Vec<_> = self.segments.iter().map(|(node, payloads)| (*node, payloads.clone())).collect();
        for (node, payloads) in segments {
            for (chunk, payload) in (0u32..).zip(payloads) {
                if old.and_then(|o| o.owner(chunk, chunks)) != new.owner(chunk, chunks) {
                    self.contribute(round, chunk, node, payload, out);
                }
            }
        }
    }

    /// A subtree's sum of one chunk, own or from a peer (`from`), in whatever view it was made.
    pub(crate) fn take_contribution(
        &mut self,
        from: Option<WorkerId>,
        round: Round,
        chunk: u32,
        node: TreeNode,
        payload: Bytes,
        out: &mut Vec<Effect>,
    ) {
        let is_near = self.at.is_some_and(|at| round >= at && round.0 <= at.0 + AHEAD_MAX);
        if !is_near || !self.is_well_formed(round, chunk, payload.len()) || !node.is_within(self.config.shards) {
            return;
        }
        if self.log.get(round, chunk).is_some() || !self.sums.insert(round, chunk, node, payload) {
            return;
        }
        if from.is_some_and(|w| self.view.as_ref().is_some_and(|v| v.rank_of(w).is_none())) {
            self.tally.late_segments += 1;
        }
        if let Some(parts) = self.sums.take_complete(round, chunk, self.config.shards) {
            out.push(Effect::Sum { round, chunk, parts });
        }
    }

    pub(crate) fn summed(&mut self, round: Round, chunk: u32, payload: Bytes, out: &mut Vec<Effect>) {
        self.progress += 1;
        // While a newer state is being installed there is no `at`; what is reduced counts all the same.
        if self.at.is_some_and(|at| round < at) {
            return;
        }
        self.take_reduced(round, chunk, payload.clone());
        let others: Vec<WorkerId> = self.view.iter().flat_map(|v| &v.members).map(|m| m.worker).collect();
        for to in others.into_iter().filter(|w| *w != self.config.me) {
            self.send(to, Body::Reduced { round, chunk, payload: payload.clone() }, out);
        }
    }

    pub(crate) fn take_reduced(&mut self, round: Round, chunk: u32, payload: Bytes) {
        // Without a state, only what follows the state that is on its way can be used.
        let floor = [self.at, self.installing, self.fetch.as_ref().and_then(|f| f.round())].into_iter().flatten().min();
        let is_useful = floor.is_some_and(|floor| round >= floor);
        if is_useful && self.is_well_formed(round, chunk, payload.len()) {
            let chunks = self.config.layout_of(round).chunks();
            self.log.insert(round, chunk, chunks, payload);
        }
    }

    fn is_well_formed(&self, round: Round, chunk: u32, bytes: usize) -> bool {
        let layout = self.config.layout_of(round);
        round < self.config.rounds() && chunk < layout.chunks() && bytes == layout.bytes(chunk)
    }

    /// Commits as many rounds as are complete.
    pub(crate) fn commit(&mut self, out: &mut Vec<Effect>) {
        while let (Some(round), None) = (self.at, self.installing) {
            let applied = self.applied.expect("a state that is held was applied");
            if round >= self.config.rounds() || round.0 - applied.0 >= APPLIES_OUT_MAX {
                return;
            }
            let Some(chunks) = self.log.whole(round) else { return };
            out.push(Effect::Apply { round, chunks });
            self.committed(round.next(), out);
        }
    }

    /// The trainer will hold the state of `round` next.
    fn committed(&mut self, round: Round, out: &mut Vec<Effect>) {
        self.at = Some(round);
        self.segments.clear();
        self.sums.drop_before(round);
        self.log.trim(round, self.config.log_rounds_max, self.config.log_bytes_max);
        if let Some(since) = self.fault_since.take() {
            out.push(Effect::Stalled { ms: self.now - since });
        }
        if self.fetch.as_ref().is_some_and(|f| f.round().is_none_or(|target| target <= round))
            && self.newest_peer() <= Some(round)
        {
            self.fetch = None;
        }
        self.restart_asking();
        self.serve_state(out);
        let role = self.view.as_ref().and_then(|v| v.member(self.config.me)).map(|m| m.role);
        let is_writer = self.view.as_ref().and_then(|v| v.writer()) == Some(self.config.me);
        // The last state is published by `publish`, which tries again.
        if is_writer && round < self.config.rounds() && self.config.is_checkpoint(round) && round > self.published {
            self.publishing.insert(round);
            out.push(Effect::Publish { round });
        }
        if role == Some(Role::Active) {
            self.tell_everyone(out);
        }
    }

    pub(crate) fn applied(&mut self, round: Round) {
        self.progress += 1;
        if self.installing.is_some() {
            return;
        }
        let next = round.next();
        assert!(self.at.is_some_and(|at| next <= at), "only what was given is applied");
        self.applied = Some(next);
    }
}
