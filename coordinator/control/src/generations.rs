//! Decides the generations of a job that runs a command: who is in the next one, when it begins, what a failure means.
//!
//! A generation is a view. Its members are groups of processes, one a node; on a new view each of them stops its
//! processes and starts them anew with their new ranks. A new generation follows when a process failed (which the
//! budget of restarts pays), when a member is lost or leaves (at once), and when nodes joined (after a moment, so that
//! those that come together make one). Members share nothing with each other here, so none of them learns or catches up.
//!
//! A lost node makes the processes of others fail within milliseconds, before anybody could have missed it. Therefore a
//! failure is judged only when every other member was heard after it, or is missed: then it is known which came first.

use crate::event::Config;
use crate::job::{Cluster, Job};
use crate::note::{Cause, Note, ViewNote};
use crate::time::Millis;
use elastic_spec::api::JobState;
use elastic_spec::facts::{End, Phase, ProcessFailure};
use elastic_spec::limits::BEAT_MS;
use elastic_spec::view::{Pace, Role, View, ViewMember};
use elastic_spec::{Epoch, Gen, NodeId, Rank, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// How the generation in force fares.
#[derive(Debug, Default)]
pub(crate) struct Generation {
    /// Members all of whose processes ended well.
    pub done: BTreeSet<WorkerId>,
    /// The first failure of each member, and when it was, by the time of the coordinator.
    failed: BTreeMap<WorkerId, (Millis, NodeId, ProcessFailure)>,
    /// A failure was charged: the next generation begins then.
    renew_at: Option<Millis>,
    /// Where the processes were told to meet.
    master: String,
    /// How often in a row that place was taken by somebody else.
    ports_taken: u32,
}

/// A place to meet that is taken so often in a row is a failure like any other.
const PORTS_TAKEN_MAX: u32 = 5;

impl Job {
    /// Brings the generation in line with who is there and how it fares.
    pub(crate) fn settle_generation(&mut self, cluster: &mut Cluster) {
        if self.is_recovering(cluster.now) {
            return;
        }
        if let Some(view) = self.view.clone().filter(is_running) {
            self.observe_generation(&view, cluster);
            if view.active().all(|m| self.generation.done.contains(&m.worker)) {
                let groups = usize::from(view.world_size());
                self.exit_code = Some(0);
                let reason = format!("all processes of {} ended with code 0", counted(groups, "node"));
                return self.end(JobState::Succeeded, reason, cluster);
            }
            self.judge_failures(&view, cluster);
            if !self.is_live() {
                return;
            }
        }
        match self.next_generation(cluster) {
            Some((pace, members)) => self.begin_generation(pace, members, cluster),
            None if self.view.is_some() => self.name_state(cluster),
            None => {}
        }
    }

    /// What members say of the generation in force.
    fn observe_generation(&mut self, view: &View, cluster: &Cluster) {
        for member in view.active() {
            let Some((_, slot)) = self.slot_of(member.worker) else { continue };
            let Some(status) = slot.worker.as_ref().and_then(|w| w.status.as_ref()) else { continue };
            if status.view.as_ref().map(|v| v.epoch) != Some(view.epoch) {
                continue;
            }
            if status.phase == Phase::Finished {
                self.generation.done.insert(member.worker);
            } else if let Some(failure) = status.failure.clone() {
                let at = cluster.now.minus(failure.age_ms);
                self.generation.failed.entry(member.worker).or_insert((at, member.node.clone(), failure));
            }
        }
    }

    /// Charges a failure, or ends the job with it, once it is known that no lost node was its cause.
    fn judge_failures(&mut self, view: &View, cluster: &mut Cluster) {
        if self.generation.failed.is_empty() || self.generation.renew_at.is_some() {
            return;
        }
        let latest = self.generation.failed.values().map(|(at, ..)| *at).min().unwrap_or(cluster.now);
        let is_known = |m: &ViewMember| {
            let is_told = self.generation.done.contains(&m.worker) || self.generation.failed.contains_key(&m.worker);
            is_told || self.is_lost(m.worker) || self.was_heard_after(m.worker, latest.plus(BEAT_MS))
        };
        if !view.active().all(is_known) {
            return;
        }
        // Who is missed went first: the failures of the others follow from it.
        let is_missed = |m: &ViewMember| !self.generation.done.contains(&m.worker) && self.is_lost(m.worker);
        if view.active().any(is_missed) {
            return;
        }
        let failed = self.generation.failed.iter();
        let (worker, (_, node, root)) = failed.min_by_key(|(worker, (at, ..))| (*at, **worker)).expect("there is one");
        let (worker, node, root) = (*worker, node.clone(), root.clone());
        let cause = words_of(&root);
        self.is_changed = true;
        if root.port_taken && self.generation.ports_taken < PORTS_TAKEN_MAX {
            self.generation.ports_taken += 1;
            self.generation.renew_at = Some(cluster.now);
            return;
        }
        self.remember_fault(&node, worker, cause.clone(), cluster);
        cluster.note(Note::Fault { job: self.id.clone(), worker, node: node.clone(), cause: Cause::Process(cause) });
        if !self.budget.pay(self.spec.elastic.restarts) {
            self.exit_code = Some(code_of(&root.end));
            self.error_file = root.error_file.clone();
            let reason = self.why_it_failed(&node, &root);
            return self.end(JobState::Failed, reason, cluster);
        }
        self.restarts += 1;
        let wait = self.budget.backoff(cluster.config);
        self.generation.renew_at = Some(cluster.now.plus(wait));
    }

    fn why_it_failed(&self, node: &NodeId, root: &ProcessFailure) -> String {
        let spent = match self.spec.elastic.restarts {
            0 => String::new(),
            restarts => format!(", after {}", counted(restarts as usize, "restart")),
        };
        format!("{} on {node}{spent}", words_of(root))
    }

    /// Whether this member's processes are gone or not to be counted on.
    fn is_lost(&self, worker: WorkerId) -> bool {
        self.slot_of(worker).is_none_or(|(_, slot)| slot.fit().is_none())
    }

    fn was_heard_after(&self, worker: WorkerId, at: Millis) -> bool {
        self.slot_of(worker).and_then(|(_, slot)| slot.fit()).is_some_and(|w| w.heard > at)
    }

    /// The generation that should be in force instead of the one that is, if it is time for it.
    fn next_generation(&mut self, cluster: &mut Cluster) -> Option<(Pace, Vec<ViewMember>)> {
        let now = cluster.now;
        let members = self.there(cluster);
        let view = self.view.clone().filter(is_running);
        let Some(view) = view else { return self.first_generation(members, cluster) };
        self.gather_since = None;
        let min = usize::from(self.min);
        let stays = |m: &ViewMember| members.iter().any(|other| other.worker == m.worker);
        let is_short = view.active().any(|m| !stays(m) && !self.generation.done.contains(&m.worker));
        let joined = members.iter().filter(|m| view.member(m.worker).is_none()).count();
        if let Some(at) = self.generation.renew_at {
            // What was lost meanwhile may be back soon.
            return (now >= at && (members.len() >= min || is_short)).then(|| self.of(members));
        }
        if is_short {
            let since = *self.change_since.get_or_insert(now);
            let wait = if self.may_come_back(cluster) { cluster.config.rejoin_ms } else { cluster.config.coalesce_ms };
            return (now.since(since) >= wait).then(|| self.of(members));
        }
        // Who joins when some are done already would only repeat what is done.
        if joined > 0 && self.generation.done.is_empty() {
            let since = *self.change_since.get_or_insert(now);
            return (now.since(since) >= cluster.config.join_ms).then(|| self.of(members));
        }
        self.change_since = None;
        None
    }

    /// Nothing runs: whoever is there begins, once they are enough and nobody else is about to come.
    fn first_generation(&mut self, members: Vec<ViewMember>, cluster: &mut Cluster) -> Option<(Pace, Vec<ViewMember>)> {
        if members.len() < usize::from(self.min) || members.is_empty() {
            self.gather_since = None;
            // Those that are told of a pause keep only who is there.
            let view = self.view.as_ref()?;
            let is_told = view.active().map(|m| m.worker).eq(members.iter().map(|m| m.worker));
            return (!is_told).then_some((Pace::Pause, members));
        }
        let since = *self.gather_since.get_or_insert(cluster.now);
        let is_time = members.len() == self.staying() || cluster.now.since(since) >= cluster.config.gather_ms;
        is_time.then_some((Pace::Run, members))
    }

    fn of(&self, members: Vec<ViewMember>) -> (Pace, Vec<ViewMember>) {
        let pace = if members.len() < usize::from(self.min) { Pace::Pause } else { Pace::Run };
        (pace, members)
    }

    /// Groups that could be in a generation, in rank order: those of the last first, as they were.
    fn there(&self, cluster: &Cluster) -> Vec<ViewMember> {
        let is_draining = |node: &NodeId| cluster.nodes.get(node).is_some_and(|n| n.is_draining());
        let up = self.fit().filter(|(_, slot, w)| !slot.is_leaving() && w.is_up() && !is_draining(&slot.node));
        let mut members: Vec<(Option<Rank>, NodeId, u16, ViewMember)> = up
            .map(|(index, slot, worker)| {
                let rank = self.view.as_ref().and_then(|v| v.rank_of(worker.id));
                let address = worker.status.as_ref().map(|s| s.address.clone()).unwrap_or_default();
                let member = ViewMember { worker: worker.id, node: slot.node.clone(), address, role: Role::Active };
                (rank, slot.node.clone(), index, member)
            })
            .collect();
        members.sort_by_key(|(rank, node, index, _)| (rank.is_none(), *rank, node.clone(), *index));
        members.into_iter().map(|(.., member)| member).collect()
    }

    /// Whether a group that is wanted is on its way on a node that is there.
    fn may_come_back(&self, cluster: &Cluster) -> bool {
        let is_there = |node: &NodeId| cluster.nodes.get(node).is_some_and(|n| n.is_usable() && !n.is_cut);
        self.slots.values().any(|s| !s.is_leaving() && s.fit().is_none_or(|w| !w.is_up()) && is_there(&s.node))
    }

    fn begin_generation(&mut self, pace: Pace, members: Vec<ViewMember>, cluster: &mut Cluster) {
        let master = members.first().map(|m| m.address.clone()).unwrap_or_default();
        // A place to meet serves one generation only, so that none of an older one can come to it. The next is told
        // as soon as the last is in use.
        if pace == Pace::Run && master == self.generation.master {
            return;
        }
        self.views = self.views.max(self.gen_) + 1;
        self.gen_ = self.views;
        let epoch = Epoch { term: cluster.term, gen_: Gen(self.gen_) };
        let shard_map = if members.is_empty() { Vec::new() } else { vec![Rank(0)] };
        let active = members.iter().map(|m| (m.worker, 1)).collect();
        let view = View { job: self.id.clone(), epoch, pace, members, shard_map };
        assert_eq!(view.check(), Ok(()), "a view that we make is sound");
        cluster.note(Note::View(ViewNote {
            job: self.id.clone(),
            epoch,
            pace,
            active,
            learners: Vec::new(),
            round: None,
        }));
        let (is_run, ports_taken) = (pace == Pace::Run, self.generation.ports_taken);
        let ports_taken = if self.generation.renew_at.is_some() { ports_taken } else { 0 };
        let master = if is_run { master } else { std::mem::take(&mut self.generation.master) };
        self.generation = Generation { master, ports_taken, ..Generation::default() };
        self.view = Some(view);
        self.view_since = cluster.now;
        (self.change_since, self.gather_since) = (None, None);
        // Generations are rare, and their numbers shall go on whatever becomes of the coordinator.
        (self.has_begun, self.is_changed) = (self.has_begun || is_run, true);
        self.name_state(cluster);
    }

    /// A generation of a leader before this one: its number and its place to meet are used.
    pub(crate) fn adopt_generation(&mut self, view: &View) {
        if !self.is_command() {
            return;
        }
        self.views = self.views.max(view.epoch.gen_.0);
        let master = view.members.first().map(|m| m.address.clone()).unwrap_or_default();
        self.generation = Generation { master, ..Generation::default() };
    }

    pub(crate) fn state_of_generation(&self, view: &View) -> (JobState, String) {
        let (there, processes) = (view.members.len(), self.spec.command().map_or(1, |c| usize::from(c.processes)));
        if is_running(view) {
            let all = counted(there * processes, "process");
            let nodes = counted(there, "node");
            return (JobState::Running, format!("{all} on {nodes} of at most {}, generation {}", self.max, self.gen_));
        }
        (JobState::Paused, format!("has {there} of at least {} nodes", self.min))
    }

    /// When it is to be looked at again, if something is pending. A failure is judged by the reports that follow it.
    pub(crate) fn generation_due(&self, config: &Config) -> Vec<Millis> {
        let waits = [config.coalesce_ms, config.rejoin_ms, config.join_ms];
        let changes = self.change_since.iter().flat_map(|since| waits.map(|ms| since.plus(ms)));
        changes.chain(self.generation.renew_at).collect()
    }
}

fn is_running(view: &View) -> bool {
    view.pace == Pace::Run && view.world_size() > 0
}

/// As a shell would tell it.
fn code_of(end: &End) -> u8 {
    match end {
        End::Code(code) => u8::try_from(*code).unwrap_or(1).max(1),
        End::Signal(signal) => u8::try_from(128 + signal).unwrap_or(255),
        End::Unstartable(_) => 127,
    }
}

fn words_of(failure: &ProcessFailure) -> String {
    let ProcessFailure { rank, end, message, .. } = failure;
    let end = match end {
        End::Code(code) => format!("rank {rank} exited with code {code}"),
        End::Signal(signal) => format!("rank {rank} was killed by signal {signal}"),
        End::Unstartable(why) => format!("rank {rank} could not be started: {why}"),
    };
    if message.is_empty() { end } else { format!("{end}: {message}") }
}

fn counted(count: usize, word: &str) -> String {
    match (count, word.ends_with('s')) {
        (1, _) => format!("1 {word}"),
        (_, true) => format!("{count} {word}es"),
        (_, false) => format!("{count} {word}s"),
    }
}
