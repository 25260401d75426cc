//! The protocol of one rank as a state machine: compute, contribute, finish the tree, commit, redo,
//! catch up, linger. No clock, no socket, no thread: events come in with the time, effects go out.
//!
//! The shell (`elastic-worker`) owns links, the trainer and the disk; the simulator runs this same code.
//! What every other part relies on:
//!
//! * State changes only by [`Effect::Apply`], once for each round, when all its chunks are held.
//! * Own segments are kept until the round is committed here; reduced chunks stay in the log after it.
//!   So either someone holds all of a round, or every member can still finish it.
//! * Only a view with a higher epoch replaces a view. All other frames are content or monotone facts.

mod event;
mod fetch;
mod log;
mod rounds;
mod serve;
mod status;
mod tree_sums;

pub use event::{Config, Effect, Event};
pub use status::{Status, Tally};

use bytes::Bytes;
use elastic_spec::frame::{Body, Frame, Need};
use elastic_spec::tree::TreeNode;
use elastic_spec::view::{Role, View};
use elastic_spec::{Round, WorkerId, limits};
use fetch::Fetch;
use log::Log;
use std::collections::{BTreeMap, BTreeSet};
use tree_sums::TreeSums;

/// Why a member is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Every active member has the last round and its checkpoint is published.
    Finished,
    /// Handed over, as asked.
    Drained,
}

/// What is known of another member.
#[derive(Debug, Default)]
struct Peer {
    at: Option<Round>,
    is_down: bool,
}

/// One rank of one job.
#[derive(Debug)]
pub struct Member {
    config: Config,
    now: u64,
    view: Option<View>,
    is_leaving: bool,
    leave_by: Option<u64>,
    /// The round whose state the trainer holds once it has done all that it was given.
    at: Option<Round>,
    /// The round that the trainer said it holds.
    applied: Option<Round>,
    /// Own sums of the round in flight, by subtree: a payload for each chunk.
    segments: BTreeMap<TreeNode, Vec<Bytes>>,
    computing: Option<(Round, TreeNode)>,
    sums: TreeSums,
    log: Log,
    peers: BTreeMap<WorkerId, Peer>,
    /// Some while the state must come from peers.
    fetch: Option<Fetch>,
    fetch_by: u64,
    installing: Option<Round>,
    /// States that others wait for: (who, part) -> (round, parts).
    state_wanted: BTreeMap<(WorkerId, u16), (Round, u16)>,
    published: Round,
    publishing: BTreeSet<Round>,
    publish_after: u64,
    /// In a row.
    publish_failures: u32,
    is_caught_up: bool,
    /// When a fault was first noticed that the next commit overcomes.
    fault_since: Option<u64>,
    link_down_at: Option<u64>,
    resend_at: u64,
    resend_every: u64,
    asked: u64,
    progress: u64,
    tally: Tally,
    has_exited: bool,
}

/// Applies handed to the trainer and not yet answered, at most: a replay must not queue without bound.
const APPLIES_OUT_MAX: u64 = 8;
/// A leaving member waits so long, in ms, for its last round to be finished with its work.
const HANDOVER_MS: u64 = 2_000;
/// A fetch without a new piece for so long, in ms, begins anew.
const FETCH_MS: u64 = 1_000;
/// A failed publish is tried again after, in ms.
const PUBLISH_AGAIN_MS: u64 = 1_000;
/// It doubles with each failure in a row, to 8 s: a disk that has room again is found soon enough.
const PUBLISH_DOUBLINGS_MAX: u32 = 3;

impl Member {
    pub fn new(config: Config) -> Member {
        assert!(config.shards.is_power_of_two(), "V is a power of two");
        Member {
            config,
            now: 0,
            view: None,
            is_leaving: false,
            leave_by: None,
            at: None,
            applied: None,
            segments: BTreeMap::new(),
            computing: None,
            sums: TreeSums::default(),
            log: Log::default(),
            peers: BTreeMap::new(),
            fetch: None,
            fetch_by: 0,
            installing: None,
            state_wanted: BTreeMap::new(),
            published: Round(0),
            publishing: BTreeSet::new(),
            publish_after: 0,
            publish_failures: 0,
            is_caught_up: false,
            fault_since: None,
            link_down_at: None,
            resend_at: 0,
            resend_every: limits::RESEND_MS,
            asked: 0,
            progress: 0,
            tally: Tally::default(),
            has_exited: false,
        }
    }

    /// Takes one event at `now` (ms of any clock that does not go back).
    pub fn step(&mut self, now: u64, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        let mut out = Vec::new();
        match event {
            Event::Ready { round } => self.ready(round),
            Event::View(view) => self.view(view, &mut out),
            Event::Leave => self.is_leaving = true,
            Event::Frame { from, frame } => self.frame(from, frame, &mut out),
            Event::LinkDown(peer) => self.link_down(peer),
            Event::LinkUp(peer) => self.link_up(peer, &mut out),
            Event::Computed { round, node, chunks } => self.computed(round, node, chunks, &mut out),
            Event::Summed { round, chunk, payload } => self.summed(round, chunk, payload, &mut out),
            Event::Applied { round } => self.applied(round),
            Event::StateTaken { to, round: _, frames } => self.state_taken(to, frames, &mut out),
            Event::Installed { round, accepted } => self.installed(round, accepted),
            Event::Published { round, done } => self.publish_ended(round, done, &mut out),
            Event::Tick => {}
        }
        self.advance(&mut out);
        out
    }

    /// When [`Event::Tick`] is due, in the time of `step`; always later than the last event.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.has_exited {
            return None;
        }
        let resend = self.has_company().then_some(self.resend_at);
        let fetch = self.fetch.as_ref().and_then(|f| f.round()).map(|_| self.fetch_by);
        let publish = (self.publish_after > self.now).then_some(self.publish_after);
        [resend, fetch, publish, self.leave_by].into_iter().flatten().min().map(|at| at.max(self.now + 1))
    }

    /// Everything that has become possible; called after each event, does nothing twice.
    fn advance(&mut self, out: &mut Vec<Effect>) {
        self.commit(out);
        self.note_catching_up();
        self.fetch_state(out);
        self.compute(out);
        self.publish(out);
        self.ask_again(out);
        self.leave(out);
    }

    fn ready(&mut self, round: Round) {
        assert!(self.at.is_none(), "Ready comes once, before any state");
        assert!(round <= self.config.rounds(), "a restored state lies within the job");
        (self.at, self.applied, self.published) = (Some(round), Some(round), round);
    }

    fn view(&mut self, view: View, out: &mut Vec<Effect>) {
        let is_stale = self.view.as_ref().is_some_and(|v| view.epoch <= v.epoch);
        let fits = view.shards() == self.config.shards || view.world_size() == 0;
        if is_stale || !fits {
            self.tally.views_dropped += 1;
            return;
        }
        let others: Vec<_> = view.members.iter().filter(|m| m.worker != self.config.me).cloned().collect();
        out.push(Effect::Links { peers: others.iter().map(|m| (m.worker, m.address.clone())).collect() });
        let old = self.view.replace(view);
        let view = self.view.as_ref().expect("just set");
        if let Some(old) = &old {
            let is_lost = old.active().any(|m| m.worker != self.config.me && view.member(m.worker).is_none());
            if is_lost && view.rank_of(self.config.me).is_some() {
                self.fault_since = self.fault_since.or(self.link_down_at).or(Some(self.now));
            }
        }
        self.link_down_at = None;
        let is_learner = view.member(self.config.me).is_some_and(|m| m.role == Role::Learner);
        self.is_caught_up &= is_learner;
        let members: BTreeSet<WorkerId> = others.iter().map(|m| m.worker).collect();
        self.peers.retain(|id, _| members.contains(id));
        for id in &members {
            self.peers.entry(*id).or_default();
        }
        self.state_wanted.retain(|(who, _), _| members.contains(who));
        let gone: Vec<WorkerId> =
            old.iter().flat_map(|o| &o.members).map(|m| m.worker).filter(|w| !members.contains(w)).collect();
        if let Some(fetch) = self.fetch.as_mut().filter(|f| gone.iter().any(|w| f.uses(*w))) {
            fetch.give_up();
        }
        self.contribute_to_new_owners(old.as_ref(), out);
        self.restart_asking();
        self.tell_everyone(out);
    }

    fn link_down(&mut self, peer: WorkerId) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.is_down = true;
            self.link_down_at = self.link_down_at.or(Some(self.now));
        }
        if let Some(fetch) = self.fetch.as_mut().filter(|f| f.uses(peer)) {
            fetch.give_up();
        }
    }

    /// A link that is back has lost what was on its way: say at once what is lacking.
    fn link_up(&mut self, peer: WorkerId, out: &mut Vec<Effect>) {
        if let Some(known) = self.peers.get_mut(&peer) {
            known.is_down = false;
            let body = Body::At { round: self.at.unwrap_or_default(), published: self.published, need: self.need() };
            self.send(peer, body, out);
        }
    }

    fn frame(&mut self, from: WorkerId, frame: Frame, out: &mut Vec<Effect>) {
        match frame.body {
            Body::Contribution { round, chunk, node, payload } => {
                self.heard(from, round);
                self.take_contribution(Some(from), round, chunk, node, payload, out);
            }
            // An owner may finish a round that it has not reached itself, so this says nothing of where it is.
            Body::Reduced { round, chunk, payload } => self.take_reduced(round, chunk, payload),
            Body::At { round, published, need } => {
                self.heard(from, round);
                self.published = self.published.max(published.min(self.config.rounds()));
                self.serve(from, round, published, &need, out);
            }
            Body::StateWanted { round, part, parts } => self.state_wanted(from, round, part, parts, out),
            Body::State { round, part, parts, total, offset, payload, sha256_of_part, last } => {
                let piece = fetch::Piece { round, part, parts, total, offset, payload: &payload, sha256_of_part, last };
                self.take_piece(from, piece, out);
            }
            Body::Gone { wanted, at } => {
                self.heard(from, at);
                self.gone(wanted);
            }
        }
    }

    fn heard(&mut self, from: WorkerId, round: Round) {
        if round <= self.config.rounds() && self.view.as_ref().is_some_and(|v| v.member(from).is_some()) {
            let peer = self.peers.entry(from).or_default();
            peer.at = peer.at.max(Some(round));
        }
    }

    /// A learner that was at most a round behind the newest peer has caught up.
    fn note_catching_up(&mut self) {
        let is_learner =
            self.view.as_ref().and_then(|v| v.member(self.config.me)).is_some_and(|m| m.role == Role::Learner);
        let is_near = |at: Round| self.newest_active_peer().is_some_and(|newest| at.0 + 1 >= newest.0);
        self.is_caught_up |= is_learner && self.fetch.is_none() && self.at.is_some_and(is_near);
    }

    /// Publishes what is due now: the last state, or the state held in a pause.
    fn publish(&mut self, out: &mut Vec<Effect>) {
        let (Some(at), Some(view)) = (self.at, &self.view) else { return };
        let is_due = at == self.config.rounds() || view.pace == elastic_spec::view::Pace::Pause;
        let is_mine = view.writer() == Some(self.config.me);
        if is_due && is_mine && at > self.published && !self.publishing.contains(&at) && self.now >= self.publish_after
        {
            self.publishing.insert(at);
            out.push(Effect::Publish { round: at });
        }
    }

    fn publish_ended(&mut self, round: Round, done: bool, out: &mut Vec<Effect>) {
        self.progress += 1;
        self.publishing.remove(&round);
        if done {
            self.publish_failures = 0;
        }
        if done && round > self.published {
            self.published = round;
            self.tell_everyone(out);
        } else if !done {
            self.publish_after = self.now + (PUBLISH_AGAIN_MS << self.publish_failures.min(PUBLISH_DOUBLINGS_MAX));
            self.publish_failures += 1;
        }
    }

    /// Ends this member once nobody needs it any more.
    fn leave(&mut self, out: &mut Vec<Effect>) {
        if self.has_exited {
            return;
        }
        let why = match (self.is_finished(), self.is_leaving && self.has_handed_over()) {
            (true, _) => Leaving::Finished,
            (false, true) => Leaving::Drained,
            (false, false) => return,
        };
        self.has_exited = true;
        self.tell_everyone(out);
        out.push(Effect::Exit(why));
    }

    /// Every active member has the last round, and its checkpoint is published.
    fn is_finished(&self) -> bool {
        let last = self.config.rounds();
        let Some(view) = self.view.as_ref().filter(|v| v.rank_of(self.config.me).is_some()) else { return false };
        let has_last = |id: WorkerId| self.peers.get(&id).and_then(|p| p.at) == Some(last);
        self.applied == Some(last)
            && self.published == last
            && view.active().all(|m| m.worker == self.config.me || has_last(m.worker))
    }

    fn has_handed_over(&mut self) -> bool {
        let is_active = self.view.as_ref().is_some_and(|v| v.rank_of(self.config.me).is_some());
        if is_active {
            return false;
        }
        let leave_by = *self.leave_by.get_or_insert(self.now + HANDOVER_MS);
        let nothing_owed = self.segments.is_empty() && self.computing.is_none();
        let nobody_left = self.view.as_ref().is_none_or(|v| v.world_size() == 0);
        let is_passed = self.newest_peer() > self.at;
        self.now >= leave_by || ((nothing_owed || nobody_left || is_passed) && self.publishing.is_empty())
    }

    fn newest_peer(&self) -> Option<Round> {
        self.peers.values().filter_map(|p| p.at).max()
    }

    /// The newest round that an active peer is known to be at: learners may all be far behind.
    fn newest_active_peer(&self) -> Option<Round> {
        let active = self.view.iter().flat_map(|v| v.active());
        active.filter_map(|m| self.peers.get(&m.worker)?.at).max()
    }

    /// Whether there is anyone to ask.
    fn has_company(&self) -> bool {
        self.view.as_ref().is_some_and(|v| v.members.iter().any(|m| m.worker != self.config.me))
    }

    fn is_member(&self) -> bool {
        self.view.as_ref().is_some_and(|v| v.member(self.config.me).is_some())
    }

    fn restart_asking(&mut self) {
        self.resend_every = limits::RESEND_MS;
        self.resend_at = self.now + self.resend_every;
    }

    /// Says again where this member is and what it lacks, less and less often.
    fn ask_again(&mut self, out: &mut Vec<Effect>) {
        if self.now < self.resend_at || !self.has_company() || self.has_exited {
            return;
        }
        self.asked += 1;
        self.tell_everyone(out);
        self.resend_every = (self.resend_every * 2).min(limits::RESEND_MS_MAX);
        self.resend_at = self.now + self.resend_every;
    }

    /// At to all; the reduced chunks that someone ahead must have are asked of one of those alone.
    fn tell_everyone(&mut self, out: &mut Vec<Effect>) {
        let Some(view) = &self.view else { return };
        let others: Vec<WorkerId> = view.members.iter().map(|m| m.worker).filter(|w| *w != self.config.me).collect();
        let at = self.at.unwrap_or_default();
        let need = if self.is_member() { self.need() } else { Need::default() };
        let ahead: Vec<WorkerId> =
            self.peers.iter().filter(|(_, p)| p.at > self.at && !p.is_down).map(|(id, _)| *id).collect();
        let chosen = ahead.get(self.asked as usize % ahead.len().max(1)).copied();
        for to in others {
            let mut need = need.clone();
            if chosen.is_some_and(|c| c != to) {
                need.reduced.clear();
            }
            self.send(to, Body::At { round: at, published: self.published, need }, out);
        }
    }

    fn send(&self, to: WorkerId, body: Body, out: &mut Vec<Effect>) {
        let epoch = self.view.as_ref().map(|v| v.epoch).unwrap_or_default();
        out.push(Effect::Send { to, frame: Frame { epoch, body } });
    }

    fn state_taken(&mut self, to: WorkerId, bodies: Vec<Body>, out: &mut Vec<Effect>) {
        self.progress += 1;
        bodies.into_iter().for_each(|body| self.send(to, body, out));
    }
}
