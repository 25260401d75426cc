//! Agents and workers as the coordinator sees them.

use super::node;
use elastic_spec::facts::{End, Metrics, NodeReport, NodeWant, Phase, Process, Published, WorkerReport, WorkerStatus};
use elastic_spec::job::{JobSpec, Length};
use elastic_spec::view::{Pace, Role, View, exit};
use elastic_spec::{Digest, Epoch, Gen, JobId, NodeId, Round, Step, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Cluster {
    pub agents: BTreeMap<NodeId, Agent>,
    jobs: BTreeMap<JobId, JobPlay>,
    next_worker: u64,
    next_incarnation: u64,
    /// Pairs of workers whose data link is broken.
    pub broken_links: BTreeSet<(WorkerId, WorkerId)>,
}

/// What is the same for all workers of a job.
#[derive(Clone, Debug)]
struct JobPlay {
    rounds: u64,
    checkpoint_every: u64,
    /// The newest checkpoint that all nodes can read.
    published: Round,
    next_round_at: u64,
}

pub struct Agent {
    pub incarnation: u64,
    pub slots: u16,
    pub class: u64,
    pub boot_ms: u64,
    pub is_draining: bool,
    /// Reports do not arrive and orders neither.
    pub is_cut: bool,
    pub is_dead: bool,
    /// Programs cannot be started here.
    pub is_broken: bool,
    /// The run directory that it sees.
    pub run_dir_id: Option<u64>,
    want: Option<NodeWant>,
    started: BTreeMap<(JobId, u16), u32>,
    pub procs: Vec<Proc>,
    next_report_at: u64,
    is_changed: bool,
}

pub struct Proc {
    pub job: JobId,
    pub slot: u16,
    pub attempt: u32,
    pub id: WorkerId,
    pub life: Life,
    pub status: Option<WorkerStatus>,
    ready_at: u64,
    heard: u64,
    leave: bool,
    caught_up_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Life {
    Runs,
    /// SIGSTOP.
    Stopped,
    /// It beats and does not work.
    Hangs,
    Ended(End),
}

const BEAT: u64 = 100;
const ROUND: u64 = 50;
const CATCH_UP: u64 = 150;

impl Cluster {
    pub fn join(&mut self, name: &str, slots: u16, class: u64, boot_ms: u64) {
        self.next_incarnation += 1;
        let old = self.agents.remove(&node(name));
        let agent = Agent {
            incarnation: self.next_incarnation,
            slots,
            class,
            boot_ms,
            is_draining: false,
            is_cut: false,
            is_dead: false,
            is_broken: false,
            run_dir_id: None,
            want: None,
            started: BTreeMap::new(),
            procs: Vec::new(),
            next_report_at: 0,
            is_changed: true,
        };
        drop(old);
        self.agents.insert(node(name), agent);
    }

    pub fn agent(&mut self, name: &str) -> &mut Agent {
        self.agents.get_mut(&node(name)).unwrap_or_else(|| panic!("node {name} has not joined"))
    }

    /// The youngest process of a slot that has not ended.
    pub fn proc(&mut self, job: &str, slot: u16) -> Option<&mut Proc> {
        let job = super::job(job);
        let procs = self.agents.values_mut().filter(|a| !a.is_dead).flat_map(|a| &mut a.procs);
        procs.filter(|p| p.job == job && p.slot == slot && !p.is_over()).max_by_key(|p| p.attempt)
    }

    pub fn all_procs(&mut self) -> impl Iterator<Item = &mut Proc> {
        self.agents.values_mut().flat_map(|a| &mut a.procs)
    }

    pub fn describe_job(&mut self, job: &JobId, spec: &JobSpec) {
        let Length::Steps(rounds) = spec.train.length else { panic!("test jobs are so many steps long") };
        let play = JobPlay { rounds, checkpoint_every: spec.checkpoint.every, published: Round(0), next_round_at: 0 };
        self.jobs.entry(job.clone()).or_insert(play);
    }

    pub fn reconnect_all(&mut self) {
        self.agents.values_mut().for_each(|a| a.is_changed = true);
    }

    pub fn receive(&mut self, node: &NodeId, want: NodeWant, now: u64) {
        let Some(agent) = self.agents.get_mut(node).filter(|a| !a.is_cut && !a.is_dead) else { return };
        let order = |w: &NodeWant| (w.term, w.revision);
        if agent.want.as_ref().is_none_or(|old| order(old) < order(&want)) {
            agent.want = Some(want);
            agent.converge(now, &mut self.next_worker);
        }
    }

    /// Moves workers on to `now`.
    pub fn advance(&mut self, now: u64) {
        for agent in self.agents.values_mut().filter(|a| !a.is_dead) {
            agent.converge(now, &mut self.next_worker);
            agent.live(now, &mut self.jobs);
        }
        let jobs: Vec<JobId> = self.jobs.keys().cloned().collect();
        for job in jobs {
            self.train(now, &job);
        }
    }

    pub fn reports(&mut self, now: u64) -> Vec<NodeReport> {
        let mut reports = Vec::new();
        for (id, agent) in &mut self.agents {
            if agent.is_dead || agent.is_cut || (now < agent.next_report_at && !agent.is_changed) {
                continue;
            }
            agent.next_report_at = now + BEAT;
            agent.is_changed = false;
            reports.push(agent.report(id, now));
        }
        reports
    }

    /// One round, where every active member of the newest view works.
    fn train(&mut self, now: u64, job: &JobId) {
        let play = self.jobs.get_mut(job).expect("described");
        if now < play.next_round_at {
            return;
        }
        play.next_round_at = now + ROUND;
        let play = play.clone();
        let broken = self.broken_links.clone();
        let mut procs: Vec<&mut Proc> = self
            .agents
            .values_mut()
            .filter(|a| !a.is_dead)
            .flat_map(|a| &mut a.procs)
            .filter(|p| p.job == *job && !p.is_over() && p.status.is_some())
            .collect();
        let newest = procs.iter().filter_map(|p| p.view().cloned()).max_by_key(|v| v.epoch);
        let Some(view) = newest else { return };
        let active: Vec<WorkerId> = view.active().map(|m| m.worker).collect();
        let is_at_work = |p: &Proc| p.life == Life::Runs && p.view().map(|v| v.epoch) == Some(view.epoch);
        let working: Vec<WorkerId> = procs.iter().filter(|p| is_at_work(p)).map(|p| p.id).collect();
        let is_linked = |a: &WorkerId, b: &WorkerId| !broken.contains(&(*a.min(b), *a.max(b)));
        let all_linked = active.iter().all(|a| active.iter().all(|b| is_linked(a, b)));
        let highest = procs.iter().filter(|p| active.contains(&p.id)).filter_map(|p| p.at()).max();
        let Some(highest) = highest else { return };
        let goes_on = all_linked && active.iter().all(|w| working.contains(w)) && view.pace == Pace::Run;
        let all_there = procs.iter().filter(|p| active.contains(&p.id)).all(|p| p.at() == Some(highest));
        for proc in procs.iter_mut().filter(|p| is_at_work(p)) {
            let me = proc.id;
            let is_caught_up = proc.phase() == Phase::CaughtUp;
            let status = proc.status.as_mut().expect("filtered");
            status.lost_peers = view.members.iter().map(|m| m.worker).filter(|w| !is_linked(w, &me)).collect();
            if !active.contains(&me) && !is_caught_up {
                continue;
            }
            // Whoever lacks a link finishes no chunk, and so is waited for by all.
            let lacks = |w: &WorkerId| active.iter().any(|other| !is_linked(w, other));
            let is_waited_for = |w: &WorkerId| !working.contains(w) || !is_linked(w, &me) || (!lacks(&me) && lacks(w));
            let missing = || active.iter().filter(|w| **w != me && is_waited_for(w));
            status.waiting_on =
                if goes_on || view.pace == Pace::Pause { Vec::new() } else { missing().copied().collect() };
            let next = if goes_on && all_there { Round((highest.0 + 1).min(play.rounds)) } else { highest };
            if status.at != Some(next) {
                status.at = Some(next);
                status.step = Step(next.0);
                status.progress += 1;
                let train = elastic_spec::layout::Tail { loss: 1.0, count: 4, correct: 2 };
                let step_us = ROUND * 1000;
                status.metrics = Some(Metrics {
                    step: Step(next.0),
                    train,
                    lr: 0.1,
                    grad_norm: 1.0,
                    skipped: 0,
                    validation: None,
                    step_us,
                    input_wait_us: 0,
                });
            }
        }
        let is_due = |r: Round| play.checkpoint_every > 0 && r.0 > 0 && r.0.is_multiple_of(play.checkpoint_every);
        let is_last = highest.0 == play.rounds;
        let writer = view.writer().filter(|w| working.contains(w));
        let published = &mut self.jobs.get_mut(job).expect("described").published;
        if writer.is_some() && (is_due(highest) || is_last || view.pace == Pace::Pause) {
            *published = (*published).max(highest);
        }
        for proc in procs.iter_mut().filter(|p| is_at_work(p)) {
            let status = proc.status.as_mut().expect("filtered");
            status.published = (*published > Round(0)).then(|| checkpoint(*published));
            if is_last && all_there && active.contains(&proc.id) && status.at == Some(highest) {
                status.phase = Phase::Finished;
                proc.life = Life::Ended(End::Code(exit::DONE));
            }
        }
    }
}

fn checkpoint(round: Round) -> Published {
    Published {
        round,
        step: Step(round.0),
        path: format!("checkpoints/step-{:08}", round.0),
        weights_sha256: Digest::of(&round.0.to_le_bytes()),
        state_sha256: Digest::of(&round.0.to_be_bytes()),
    }
}

impl Agent {
    fn converge(&mut self, now: u64, next_worker: &mut u64) {
        let Some(want) = &self.want else { return };
        let wanted: BTreeMap<(JobId, u16), (u32, bool, Option<View>)> = want
            .jobs
            .iter()
            .flat_map(|j| j.slots.iter().map(|s| ((j.job.clone(), s.slot), (s.attempt, s.leave, j.view.clone()))))
            .collect();
        let known = self.procs.len();
        self.procs.retain(|p| !(p.is_over() && want.acknowledged.contains(&p.id)));
        for proc in self.procs.iter_mut().filter(|p| !p.is_over()) {
            match wanted.get(&(proc.job.clone(), proc.slot)) {
                Some((attempt, leave, view)) if *attempt == proc.attempt => {
                    proc.leave = *leave;
                    proc.told(view, now);
                }
                Some((attempt, _, _)) if *attempt > proc.attempt => proc.life = Life::Ended(End::Signal(9)),
                Some(_) => {}
                None if proc.life == Life::Stopped || proc.life == Life::Hangs => {
                    proc.life = Life::Ended(End::Signal(9))
                }
                None => proc.life = Life::Ended(End::Code(exit::DRAINED)),
            }
        }
        for ((job, slot), (attempt, leave, view)) in wanted {
            let place = (job.clone(), slot);
            let is_new = self.started.get(&place).is_none_or(|last| *last < attempt);
            let is_occupied = self.procs.iter().any(|p| p.job == job && p.slot == slot && !p.is_over());
            if leave || !is_new || is_occupied || self.is_draining {
                continue;
            }
            *next_worker += 1;
            self.started.insert(place, attempt);
            let life = match self.is_broken {
                true => Life::Ended(End::Unstartable("no such file".to_string())),
                false => Life::Runs,
            };
            let mut proc = Proc {
                job,
                slot,
                attempt,
                id: WorkerId(*next_worker),
                life,
                status: None,
                ready_at: now + self.boot_ms,
                heard: now,
                leave: false,
                caught_up_at: 0,
            };
            proc.told(&view, now);
            self.procs.push(proc);
        }
        self.is_changed |= known != self.procs.len();
    }

    fn live(&mut self, now: u64, jobs: &mut BTreeMap<JobId, JobPlay>) {
        for proc in &mut self.procs {
            let before = (proc.life.clone(), proc.phase());
            if matches!(proc.life, Life::Runs | Life::Hangs) {
                proc.heard = now;
            }
            if proc.life == Life::Runs {
                proc.boot(now, self.class, jobs);
                if let Some(status) = &mut proc.status {
                    status.run_dir_id = self.run_dir_id;
                }
                proc.take_part(now);
            }
            self.is_changed |= before != (proc.life.clone(), proc.phase());
        }
    }

    fn report(&self, id: &NodeId, now: u64) -> NodeReport {
        let seen = self.want.as_ref().map_or(Epoch::default(), |w| Epoch { term: w.term, gen_: Gen(w.revision) });
        let workers = self.procs.iter().map(|p| WorkerReport {
            job: p.job.clone(),
            slot: p.slot,
            attempt: p.attempt,
            worker: p.id,
            process: match &p.life {
                Life::Ended(end) => Process::Exited { end: end.clone(), status: p.status.clone() },
                _ => Process::Running { silent_ms: now - p.heard, status: p.status.clone() },
            },
        });
        NodeReport {
            node: id.clone(),
            incarnation: self.incarnation,
            slots: self.slots,
            host: format!("{id}.example"),
            draining: self.is_draining,
            log_address: String::new(),
            log_token: String::new(),
            seen,
            workers: workers.collect(),
        }
    }
}

impl Proc {
    pub fn is_over(&self) -> bool {
        matches!(self.life, Life::Ended(_))
    }

    fn phase(&self) -> Phase {
        self.status.as_ref().map_or(Phase::Booting, |s| s.phase)
    }

    fn at(&self) -> Option<Round> {
        self.status.as_ref().and_then(|s| s.at)
    }

    fn view(&self) -> Option<&View> {
        self.status.as_ref().and_then(|s| s.view.as_ref())
    }

    fn boot(&mut self, now: u64, class: u64, jobs: &BTreeMap<JobId, JobPlay>) {
        if self.status.is_some() || now < self.ready_at {
            return;
        }
        let play = &jobs[&self.job];
        self.status = Some(WorkerStatus {
            address: format!("10.0.0.{}:{}", self.id.0, 7000 + self.slot),
            numerics: class,
            phase: Phase::Ready,
            view: None,
            at: Some(play.published),
            step: Step(play.published.0),
            steps_total: play.rounds,
            progress: 1,
            waiting_on: Vec::new(),
            lost_peers: Vec::new(),
            metrics: None,
            published: (play.published > Round(0)).then(|| checkpoint(play.published)),
            error: None,
            stalls_ms: Vec::new(),
            run_dir_id: None,
            unpublished: None,
            failure: None,
        });
    }

    /// An order reaches the process; a stopped one reads it later.
    fn told(&mut self, view: &Option<View>, now: u64) {
        if self.life != Life::Runs {
            return;
        }
        let (Some(status), Some(view)) = (&mut self.status, view) else { return };
        if status.view.as_ref().is_none_or(|old| old.epoch < view.epoch) {
            let was_learner = status.phase == Phase::Learning || status.phase == Phase::CaughtUp;
            status.view = Some(view.clone());
            status.waiting_on.clear();
            if !was_learner {
                self.caught_up_at = now + CATCH_UP;
            }
        }
    }

    fn take_part(&mut self, now: u64) {
        let id = self.id;
        let Some(status) = &mut self.status else { return };
        let role = status.view.as_ref().and_then(|v| v.member(id)).map(|m| m.role);
        status.phase = match role {
            None => Phase::Ready,
            Some(Role::Active) => Phase::Active,
            Some(Role::Learner) if now >= self.caught_up_at => Phase::CaughtUp,
            Some(Role::Learner) => Phase::Learning,
        };
        if self.leave && role != Some(Role::Active) {
            self.life = Life::Ended(End::Code(exit::DRAINED));
        }
    }
}
