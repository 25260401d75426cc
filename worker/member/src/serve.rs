//! Giving others what they lack, and getting what this member lacks: reduced rounds from the log, own
//! segments, whole states.

use crate::fetch::{Fetch, Piece};
use crate::{Effect, FETCH_MS, Member, Peer};
use elastic_spec::frame::{Body, Need};
use elastic_spec::view::Role;
use elastic_spec::{Round, WorkerId};

/// Bytes of reduced rounds sent in answer to one question.
const REPLAY_BYTES_MAX: usize = 32 << 20;
/// Stripes that a state may be asked in.
const PARTS_MAX: u16 = 64;

impl Member {
    /// What this member lacks for the round that it is in.
    pub(crate) fn need(&self) -> Need {
        let Some(round) = self.at.filter(|at| *at < self.config.rounds()) else { return Need::default() };
        let chunks = self.config.layout_of(round).chunks();
        let reduced = self.log.lacking(round, chunks);
        let owns = |chunk: &u32| self.view.as_ref().and_then(|v| v.owner(*chunk, chunks)) == Some(self.config.me);
        let lacks = |chunk: u32| (chunk, self.sums.missing(round, chunk, self.config.shards));
        let nodes = reduced.iter().copied().filter(owns).map(lacks).filter(|(_, nodes)| !nodes.is_empty()).collect();
        Need { reduced, nodes }
    }

    /// Answers a peer that is at `round`.
    pub(crate) fn serve(&mut self, to: WorkerId, round: Round, published: Round, need: &Need, out: &mut Vec<Effect>) {
        let Some(at) = self.at else { return };
        if round < at && !need.reduced.is_empty() {
            self.replay(to, round, need, out);
        }
        if round == at {
            for chunk in need.reduced.iter().copied() {
                if let Some(payload) = self.log.get(round, chunk).cloned() {
                    self.send(to, Body::Reduced { round, chunk, payload }, out);
                }
            }
            for (chunk, nodes) in &need.nodes {
                let lacks = |shard: u16| nodes.iter().any(|node| node.range().contains(&shard));
                let useful = self.segments.iter().filter(|(node, _)| node.range().any(lacks));
                let found: Vec<_> =
                    useful.filter_map(|(node, c)| Some((*node, c.get(*chunk as usize)?.clone()))).collect();
                for (node, payload) in found {
                    self.send(to, Body::Contribution { round, chunk: *chunk, node, payload }, out);
                }
            }
        }
        // Whoever waits at the end, or behind, must learn that others are further.
        let is_waiting = !need.is_empty() || round == self.config.rounds();
        if is_waiting && (round < at || published < self.published) {
            self.send(to, Body::At { round: at, published: self.published, need: Need::default() }, out);
        }
    }

    /// Sends the rounds that a peer is behind, as many as one answer may hold.
    fn replay(&mut self, to: WorkerId, from: Round, need: &Need, out: &mut Vec<Effect>) {
        let at = self.at.expect("only who holds a state replays");
        let mut bytes = 0;
        for round in (from.0..at.0).map(Round) {
            let wanted: Vec<u32> = match round == from {
                true => need.reduced.clone(),
                false => (0..self.config.layout_of(round).chunks()).collect(),
            };
            for chunk in wanted {
                let Some(payload) = self.log.get(round, chunk).cloned() else {
                    if round == from {
                        self.send(to, Body::Gone { wanted: from, at }, out);
                    }
                    return;
                };
                bytes += payload.len();
                self.send(to, Body::Reduced { round, chunk, payload }, out);
            }
            if bytes > REPLAY_BYTES_MAX {
                return;
            }
        }
    }

    pub(crate) fn state_wanted(&mut self, from: WorkerId, round: Round, part: u16, parts: u16, out: &mut Vec<Effect>) {
        let is_sound = part < parts && parts <= PARTS_MAX && round <= self.config.rounds();
        let Some(at) = self.at.filter(|_| is_sound && self.installing.is_none()) else { return };
        if round < at {
            return self.send(from, Body::Gone { wanted: round, at }, out);
        }
        self.state_wanted.insert((from, part), (round, parts));
        self.serve_state(out);
    }

    /// Has the trainer copy what was asked of the state that it is about to hold.
    pub(crate) fn serve_state(&mut self, out: &mut Vec<Effect>) {
        let at = self.at.expect("only who holds a state serves it");
        let due: Vec<_> =
            self.state_wanted.iter().filter(|(_, (round, _))| *round <= at).map(|(k, v)| (*k, *v)).collect();
        for ((to, part), (round, parts)) in due {
            self.state_wanted.remove(&(to, part));
            match round == at {
                true => out.push(Effect::TakeState { to, round, part, parts }),
                false => self.send(to, Body::Gone { wanted: round, at }, out),
            }
        }
    }

    /// A peer no longer has what was asked for: look further ahead, or ask for a whole state.
    pub(crate) fn gone(&mut self, wanted: Round) {
        let is_behind = self.at == Some(wanted) && self.newest_peer() > self.at;
        if let Some(fetch) = &mut self.fetch {
            fetch.is_missed(wanted);
        } else if is_behind {
            self.tally.past_the_log += 1;
            self.fetch = Some(Fetch::default());
        }
    }

    /// Without a state, or too far behind: asks peers for theirs.
    pub(crate) fn fetch_state(&mut self, out: &mut Vec<Effect>) {
        if let Some(fetch) = self.fetch.as_mut().filter(|f| f.round().is_some() && self.now >= self.fetch_by) {
            fetch.give_up();
        }
        // What is reduced while a state is on its way waits in the log: beyond its bytes, a newer state is asked for.
        let is_outrun =
            |f: &Fetch| f.round().is_some_and(|r| self.log.is_overrun(r, usize::MAX, self.config.log_bytes_max));
        if self.fetch.as_ref().is_some_and(is_outrun) {
            self.tally.past_the_log += 1;
            self.fetch = Some(Fetch::default());
        }
        let Some(view) = self.view.as_ref().filter(|_| self.is_member() && self.installing.is_none()) else { return };
        // A joiner slower than the log takes a newer state instead.
        let (rounds_max, bytes_max) = (self.config.log_rounds_max, self.config.log_bytes_max);
        let is_overrun = self.at.is_some_and(|at| self.log.is_overrun(at, rounds_max, bytes_max));
        if is_overrun && self.fetch.is_none() {
            self.tally.past_the_log += 1;
            self.fetch = Some(Fetch::default());
        }
        if self.at.is_none() && self.fetch.is_none() {
            self.fetch = Some(Fetch::default());
        }
        let newest = self.newest_active_peer();
        if self.at.is_some() && newest <= self.at {
            // Whoever was ahead is gone: this state is the newest there is.
            self.fetch = None;
        }
        let Some(newest) = newest else { return };
        // Whoever is far behind gets its own state from others, perhaps from this member.
        let slack = self.fetch.as_ref().map_or(0, |f| u64::from(f.is_ahead()));
        let is_near = |p: &Peer| p.at.is_some_and(|at| at.0 + slack >= newest.0);
        let is_source = |id: &WorkerId| self.peers.get(id).is_some_and(|p| is_near(p) && !p.is_down);
        let sources: Vec<WorkerId> =
            view.members.iter().filter(|m| m.role == Role::Active).map(|m| m.worker).filter(is_source).collect();
        let Some(fetch) = &mut self.fetch else { return };
        if fetch.round().is_some() || sources.is_empty() {
            return;
        }
        let questions = fetch.choose(newest, self.config.schedule.rounds(), &sources);
        self.fetch_by = self.now + FETCH_MS;
        for q in questions {
            self.send(q.to, Body::StateWanted { round: q.round, part: q.part, parts: q.parts }, out);
        }
    }

    pub(crate) fn take_piece(&mut self, from: WorkerId, piece: Piece<'_>, out: &mut Vec<Effect>) {
        let Some(fetch) = &mut self.fetch else { return };
        if fetch.round() == Some(piece.round) {
            self.fetch_by = self.now + FETCH_MS;
            self.progress += 1;
        }
        let Some((round, parts)) = fetch.take(from, piece) else { return };
        if self.at.is_some_and(|at| at >= round) {
            // The log was faster than the state.
            self.fetch = None;
            return;
        }
        (self.at, self.applied, self.installing) = (None, None, Some(round));
        self.segments.clear();
        out.push(Effect::Install { round, parts });
    }

    pub(crate) fn installed(&mut self, round: Round, accepted: bool) {
        assert_eq!(self.installing.take(), Some(round), "the trainer answers what it was asked");
        self.progress += 1;
        if !accepted {
            self.fetch = Some(Fetch::default());
            return;
        }
        self.tally.states_installed += 1;
        (self.at, self.applied, self.fetch) = (Some(round), Some(round), None);
        self.log.drop_before(round);
        self.sums.drop_before(round);
        self.restart_asking();
        // Ask at once for what was reduced while the state was on its way.
        self.resend_at = self.now;
    }
}
