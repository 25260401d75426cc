//! A job as the leader holds it, and the small questions that every decision asks of it.
//!
//! The decisions themselves are in the modules below: who is to be suspected, what follows from an end,
//! which view is right, who has to leave.

use crate::budget::Budget;
use crate::event::Config;
use crate::generations::Generation;
use crate::node::Node;
use crate::note::Note;
use crate::slot::{Slot, Worker};
use crate::time::Millis;
use elastic_spec::api::{Fault, JobState};
use elastic_spec::facts::{Launch, Metrics, Published, WorkerStatus};
use elastic_spec::job::{JobSpec, ModelKind};
use elastic_spec::limits::WORKERS_MAX;
use elastic_spec::view::View;
use elastic_spec::{Digest, JobId, NodeId, Round, Step, Term, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(crate) struct Job {
    pub id: JobId,
    /// Order of submission.
    pub seq: u64,
    pub spec: JobSpec,
    pub launch: Launch,
    pub config: Digest,
    pub submitted_unix_ms: u64,
    pub resume: Option<JobId>,
    pub min: u16,
    pub max: u16,
    pub state: JobState,
    /// Why, as of the last change; `status` words it anew for a live job.
    pub reason: String,
    /// It has had a view once, so that there may be state to come back to.
    pub has_begun: bool,
    pub slots: BTreeMap<u16, Slot>,
    /// The highest attempt ever asked for in each slot.
    pub attempts: BTreeMap<u16, u32>,
    pub view: Option<View>,
    /// Members of an adopted view that nobody has reported yet.
    pub unheard: BTreeSet<WorkerId>,
    /// When the view in force was made or adopted.
    pub view_since: Millis,
    /// Views made in this term, and in all terms as far as known.
    pub gen_: u64,
    pub views: u64,
    /// Since when another view than the one in force would be right.
    pub change_since: Option<Millis>,
    /// Since when a first view is possible.
    pub gather_since: Option<Millis>,
    /// The numerics class of those who hold the state.
    pub numerics: Option<u64>,
    /// Nodes (in this incarnation) that compute other bits.
    pub unfit: BTreeMap<NodeId, u64>,
    pub budget: Budget,
    pub restarts: u32,
    /// Slots that stay down because no restart was left.
    pub owed: u16,
    /// No slot is filled before.
    pub hold_until: Millis,
    /// A new leader waits until then for what nodes may have to say of this job.
    pub recovers_until: Option<Millis>,
    /// The first fault since the job last made progress worth a restart.
    pub first_fault: Option<(Step, Fault)>,
    pub last_fault: Option<Fault>,
    pub seen: Seen,
    /// Of a job that runs a command: how its generation fares.
    pub generation: Generation,
    /// The code that its root cause ended with, once the job is over.
    pub exit_code: Option<u8>,
    /// What that process wrote down of it; kept by the coordinator that saw it end.
    pub error_file: Option<String>,
    /// The record in the store is out of date.
    pub is_changed: bool,
}

/// The most that was ever reported.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub round: Round,
    pub step: Step,
    pub steps_total: u64,
    pub metrics: Option<Metrics>,
    pub published: Option<Published>,
    /// Whose report that was.
    pub published_on: Option<NodeId>,
    /// Which run directory each node sees, as its workers report.
    pub run_dirs: BTreeMap<NodeId, u64>,
    /// Of workers that are gone, newest last.
    pub stalls_ms: Vec<u32>,
    /// A round that somebody reached, and when that was known.
    pub mark: (Round, Millis),
    /// All active members lived at this time: rounds that need each of them were done after it.
    pub all_alive: Millis,
}

/// What a job's decisions see and touch besides the job.
pub(crate) struct Cluster<'a> {
    pub now: Millis,
    pub unix_ms: u64,
    pub term: Term,
    pub config: &'a Config,
    pub nodes: &'a mut BTreeMap<NodeId, Node>,
    /// Silence before this says nothing: the leader is new, or its own loop stood still.
    pub trusted_from: Millis,
    /// Nobody is suspected of silence before.
    pub grace_until: Millis,
    pub notes: &'a mut Vec<Note>,
}

/// What a job begins with.
pub(crate) struct Origin {
    pub id: JobId,
    pub seq: u64,
    pub spec: JobSpec,
    pub spec_json: String,
    pub blobs: Vec<(String, Digest)>,
    pub secret: Vec<u8>,
    pub run_dir: String,
    pub resume: Option<JobId>,
    pub submitted_unix_ms: u64,
}

/// Stall samples that a job keeps.
const JOB_STALLS_MAX: usize = 1_024;

impl Job {
    pub fn new(origin: Origin) -> Job {
        let config = Digest::of(origin.spec_json.as_bytes());
        let program = match &origin.spec.model.kind {
            ModelKind::Own { program, .. } => Some(program.clone()),
            _ => None,
        };
        let seed = Digest::of(origin.id.as_str().as_bytes()).short();
        Job {
            id: origin.id,
            seq: origin.seq,
            config,
            launch: Launch {
                spec_json: origin.spec_json,
                blobs: origin.blobs,
                secret: origin.secret,
                run_dir: origin.run_dir,
                program,
            },
            submitted_unix_ms: origin.submitted_unix_ms,
            resume: origin.resume,
            min: origin.spec.elastic.min_workers,
            max: origin.spec.elastic.max_workers,
            spec: origin.spec,
            state: JobState::Pending,
            reason: "just submitted".to_string(),
            has_begun: false,
            slots: BTreeMap::new(),
            attempts: BTreeMap::new(),
            view: None,
            unheard: BTreeSet::new(),
            view_since: Millis(0),
            gen_: 0,
            views: 0,
            change_since: None,
            gather_since: None,
            numerics: None,
            unfit: BTreeMap::new(),
            budget: Budget::new(seed),
            restarts: 0,
            owed: 0,
            hold_until: Millis(0),
            recovers_until: None,
            first_fault: None,
            last_fault: None,
            seen: Seen::default(),
            generation: Generation::default(),
            exit_code: None,
            error_file: None,
            is_changed: true,
        }
    }

    pub fn is_live(&self) -> bool {
        !self.state.is_over()
    }

    /// Whether processes of the user's own are started, and nothing is trained by us.
    pub fn is_command(&self) -> bool {
        self.spec.command().is_some()
    }

    /// The most workers that it may ever have.
    pub fn workers_max(&self) -> u16 {
        if self.is_command() { WORKERS_MAX } else { self.shards() }
    }

    /// V.
    pub fn shards(&self) -> u16 {
        self.spec.train.shards
    }

    /// Slots that are to stay.
    pub fn staying(&self) -> usize {
        self.slots.values().filter(|s| !s.is_leaving()).count()
    }

    pub fn is_recovering(&self, now: Millis) -> bool {
        self.recovers_until.is_some_and(|until| now < until)
    }

    /// The slot whose process this is.
    pub fn slot_of(&self, worker: WorkerId) -> Option<(u16, &Slot)> {
        let has = |slot: &Slot| slot.worker.as_ref().is_some_and(|w| w.id == worker);
        self.slots.iter().find(|(_, slot)| has(slot)).map(|(index, slot)| (*index, slot))
    }

    pub fn is_active(&self, worker: WorkerId) -> bool {
        self.view.as_ref().is_some_and(|v| v.rank_of(worker).is_some())
    }

    /// Ends the job: its slots are gone from every node's order.
    pub fn end(&mut self, state: JobState, reason: String, cluster: &mut Cluster) {
        assert!(state.is_over(), "an end is for good");
        for index in self.slots.keys().copied().collect::<Vec<_>>() {
            self.drop_slot(index);
        }
        (self.change_since, self.gather_since, self.recovers_until) = (None, None, None);
        self.set_state(state, reason, cluster);
    }

    pub fn set_state(&mut self, state: JobState, reason: String, cluster: &mut Cluster) {
        if self.state == state && !state.is_over() {
            self.reason = reason;
            return;
        }
        self.is_changed = true;
        cluster.notes.push(Note::State { job: self.id.clone(), state, reason: reason.clone() });
        (self.state, self.reason) = (state, reason);
    }

    /// Forgets a slot; its process, if any, will be stopped by its agent.
    pub fn drop_slot(&mut self, index: u16) {
        let Some(slot) = self.slots.remove(&index) else { return };
        if let Some(status) = slot.worker.and_then(|w| w.status) {
            self.keep_stalls(&status);
        }
    }

    pub fn keep_stalls(&mut self, status: &WorkerStatus) {
        self.seen.stalls_ms.extend(&status.stalls_ms);
        let over = self.seen.stalls_ms.len().saturating_sub(JOB_STALLS_MAX);
        self.seen.stalls_ms.drain(..over);
    }

    /// Takes in what a worker says of the job as a whole.
    pub fn observe(&mut self, now: Millis, node: &NodeId, status: &WorkerStatus) {
        let seen = &mut self.seen;
        seen.steps_total = seen.steps_total.max(status.steps_total);
        seen.step = seen.step.max(status.step);
        if let Some(at) = status.at {
            seen.round = seen.round.max(at);
            // Round r + 1 is begun with what every active member did in round r.
            if at.0 >= seen.mark.0.0 + 2 {
                seen.all_alive = seen.all_alive.max(seen.mark.1);
                seen.mark = (at, now);
            }
        }
        let is_newer = |m: &Metrics| seen.metrics.is_none_or(|old| m.step >= old.step);
        if let Some(metrics) = status.metrics.filter(is_newer) {
            seen.metrics = Some(metrics);
        }
        let published = seen.published.as_ref().map(|p| p.round);
        if let Some(newer) = status.published.as_ref().filter(|p| Some(p.round) > published) {
            seen.published = Some(newer.clone());
            seen.published_on = Some(node.clone());
        }
    }

    pub fn published_round(&self) -> Round {
        self.seen.published.as_ref().map_or(Round(0), |p| p.round)
    }

    /// Why somebody is counted out, for people; the first of a row is the root of it.
    pub fn remember_fault(&mut self, node: &NodeId, worker: WorkerId, cause: String, cluster: &Cluster) {
        let fault = Fault { unix_ms: cluster.unix_ms, node: node.clone(), worker, cause };
        let step = self.seen.step;
        let is_old = |(at, _): &(Step, Fault)| step.0 >= at.0 + cluster.config.refill_steps;
        if self.first_fault.as_ref().is_none_or(is_old) {
            self.first_fault = Some((step, fault.clone()));
        }
        self.last_fault = Some(fault);
    }

    /// Workers that are up, may stay, and are not suspected.
    pub fn fit(&self) -> impl Iterator<Item = (u16, &Slot, &Worker)> {
        self.slots.iter().filter_map(|(index, slot)| Some((*index, slot, slot.fit()?)))
    }
}

impl Cluster<'_> {
    /// For how long a worker has been silent, as far as it may be held against it.
    pub fn silence(&self, job: &Job, worker: &Worker) -> u64 {
        let alive = if job.is_active(worker.id) { job.seen.all_alive } else { Millis(0) };
        self.now.since(worker.heard.max(self.trusted_from).max(alive))
    }

    pub fn note(&mut self, note: Note) {
        self.notes.push(note);
    }
}
