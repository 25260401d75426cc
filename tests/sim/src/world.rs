//! The world itself: virtual time, the queue of what happens next, the network, the checks.

use crate::agent::Node;
use crate::chance::Chance;
use crate::faults::Fault;
use crate::leader::{Leader, Store};
use crate::mutant::Mutant;
use crate::oracle::Oracle;
use crate::process::Process;
use crate::trainer::undisturbed;
use elastic_member::{Config, Effect, Event};
use elastic_spec::api::JobState;
use elastic_spec::facts::{End, NodeReport, NodeWant};
use elastic_spec::job::schedule::Schedule;
use elastic_spec::job::{self, JobSpec};
use elastic_spec::layout::Layout;
use elastic_spec::view::WorkerOrder;
use elastic_spec::{JobId, NodeId, Round, Term, WorkerId};
use std::collections::BTreeMap;

/// What happens next, to whom.
#[derive(Debug)]
pub enum Happening {
    ToMember(WorkerId, Box<Event>),
    MemberTick(WorkerId),
    Booted(WorkerId),
    Trained(WorkerId, Box<Effect>),
    Written(WorkerId, Round, Vec<u8>),
    Synced(WorkerId, Round, Vec<u8>),
    OrderArrives(WorkerId, Box<WorkerOrder>),
    Ended(WorkerId, End),
    Beat(usize),
    WantArrives(usize, Box<NodeWant>),
    NodeReturns(usize),
    ReportArrives(Box<NodeReport>),
    StreamBroke(NodeId, u64),
    Decide(Term, Box<elastic_control::Event>),
    LeaderTick(Term),
    NewLeader,
    OracleTick,
    Strike(Fault),
    Heal,
}

/// How bad the network and the disk are; permille and microseconds.
#[derive(Clone, Debug, Default)]
pub struct Net {
    pub loss: u64,
    pub doubles: u64,
    pub slow: u64,
    pub disk_fails: u64,
}

impl Net {
    pub fn delay(&self, chance: &mut Chance) -> u64 {
        if chance.permille(self.slow) { chance.between(1_000, 40_000) } else { chance.between(50, 600) }
    }
}

/// Situations that a run has met; summed over seeds.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub runs: u64,
    pub rounds: u64,
    pub faults: BTreeMap<String, u64>,
    pub frames_lost: u64,
    pub late_segments: u64,
    pub owner_lost_after_k_chunks: u64,
    pub leader_changed_in_mid_view: u64,
    pub past_the_log: u64,
    pub states_installed: u64,
    pub restored: u64,
    pub spawned: u64,
    pub leaders: u64,
    pub fenced: u64,
    pub wants_dropped: u64,
    pub views_taken: u64,
    pub stalls_ms: Vec<u64>,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        for (name, n) in &other.faults {
            *self.faults.entry(name.clone()).or_default() += n;
        }
        let pairs = [
            (&mut self.runs, other.runs),
            (&mut self.rounds, other.rounds),
            (&mut self.frames_lost, other.frames_lost),
            (&mut self.late_segments, other.late_segments),
            (&mut self.owner_lost_after_k_chunks, other.owner_lost_after_k_chunks),
            (&mut self.leader_changed_in_mid_view, other.leader_changed_in_mid_view),
            (&mut self.past_the_log, other.past_the_log),
            (&mut self.states_installed, other.states_installed),
            (&mut self.restored, other.restored),
            (&mut self.spawned, other.spawned),
            (&mut self.leaders, other.leaders),
            (&mut self.fenced, other.fenced),
            (&mut self.wants_dropped, other.wants_dropped),
            (&mut self.views_taken, other.views_taken),
        ];
        for (sum, n) in pairs {
            *sum += n;
        }
        self.stalls_ms.extend(&other.stalls_ms);
    }
}

/// How a world ended.
#[derive(Debug)]
pub struct Outcome {
    pub violations: Vec<String>,
    pub counts: Counts,
    pub trace: String,
    /// Digest of everything that happened: equal for equal seeds.
    pub fingerprint: u64,
}

#[derive(Debug)]
pub struct World {
    /// Microseconds.
    pub now: u64,
    next: u64,
    queue: BTreeMap<(u64, u64), Happening>,
    pub chance: Chance,
    pub config: Config,
    pub spec_json: String,
    pub pace_us: u64,
    pub net: Net,
    pub mutant: Option<Mutant>,
    pub nodes: Vec<Node>,
    pub processes: BTreeMap<WorkerId, Process>,
    pub leaders: Vec<Leader>,
    /// Some: views come from here, not from a control machine.
    pub oracle: Option<Oracle>,
    pub has_finished: bool,
    pub store: Store,
    /// Published checkpoints by round.
    pub disk: BTreeMap<Round, Vec<u8>>,
    /// Pairs of workers between which nothing passes until then.
    pub cuts: BTreeMap<(WorkerId, WorkerId), u64>,
    pub kill_after_reduced: Option<u64>,
    pub crash_after_orders: Option<u64>,
    /// State hashes of the undisturbed run, by round.
    pub reference: Vec<u64>,
    pub counts: Counts,
    violations: Vec<String>,
    trace: Option<String>,
    fingerprint: u64,
}

/// After the faults have stopped, a job must end within this much virtual time.
const LIVENESS_US: u64 = 240_000_000;

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>, with_trace: bool) -> World {
        let mut chance = Chance::new(seed);
        let shards = 1u16 << chance.between(0, 4);
        let steps = chance.between(8, 28);
        let schedule = Schedule { steps, validate_every: chance.between(0, 9), has_validation: chance.permille(700) };
        let config = Config {
            me: WorkerId(0),
            shards,
            schedule,
            layout: Layout { floats: chance.between(1, 40) as usize, block_floats: 8 },
            checkpoint_every: chance.between(0, 8),
            log_rounds_max: chance.between(2, 10) as usize,
            log_bytes_max: 1 << 20,
        };
        let nodes = chance.between(1, 5);
        let max_workers = (chance.between(1, 5) as u16).min(shards);
        let min_workers = (chance.between(1, 2) as u16).min(max_workers);
        let hostile = chance.permille(600);
        let net = Net {
            loss: if hostile { chance.between(0, 60) } else { 0 },
            doubles: if hostile { chance.between(0, 60) } else { 0 },
            slow: if hostile { chance.between(0, 100) } else { 0 },
            disk_fails: if hostile { 50 } else { 0 },
        };
        let spec = spec(&config, min_workers, max_workers);
        let mut world = World {
            now: 0,
            next: 0,
            queue: BTreeMap::new(),
            pace_us: chance.between(100, 2_000),
            chance,
            spec_json: spec.canonical_json(),
            net,
            mutant,
            nodes: Vec::new(),
            processes: BTreeMap::new(),
            leaders: Vec::new(),
            oracle: None,
            has_finished: false,
            store: Store::default(),
            disk: BTreeMap::new(),
            cuts: BTreeMap::new(),
            kill_after_reduced: None,
            crash_after_orders: None,
            reference: undisturbed(&config),
            config,
            counts: Counts { runs: 1, ..Counts::default() },
            violations: Vec::new(),
            trace: with_trace.then(String::new),
            fingerprint: seed,
        };
        (0..nodes).for_each(|_| world.add_node());
        while world.nodes.iter().map(|n| n.slots).sum::<u16>() < min_workers {
            world.add_node();
        }
        world
    }

    /// The same world under a coordinator without reason.
    pub fn under_oracle(mut self) -> World {
        self.oracle = Some(Oracle::default());
        self
    }

    /// Runs to the end of the job, or to the first violation.
    pub fn run(mut self) -> Outcome {
        let per_round = self.pace_us * u64::from(self.config.shards) + 4_000;
        let span = (per_round * self.config.rounds().0 * 3 / 2).max(100_000) + 100_000;
        match self.oracle {
            Some(_) => self.oracle(),
            None => self.lead(),
        }
        self.plan_faults(span);
        self.at(span, Happening::Heal);
        let end = span + LIVENESS_US;
        let mut done_since = None;
        while self.violations.is_empty() {
            let Some(((when, seq), happening)) = self.queue.pop_first() else { break };
            self.now = when;
            self.fingerprint = crate::chance::mix(self.fingerprint ^ when ^ seq << 40);
            self.happen(happening);
            match self.job_state() {
                Some(JobState::Succeeded) if *done_since.get_or_insert(self.now) + 2_000_000 < self.now => break,
                Some(JobState::Failed) | Some(JobState::Cancelled) => self.violation("the job was given up".into()),
                _ if self.now > end => self.violation(self.standstill()),
                _ => {}
            }
        }
        if self.violations.is_empty() {
            self.check_end();
        }
        let processes: Vec<_> = self.processes.values().map(|p| p.member.status().tally).collect();
        for tally in processes {
            self.note_tally(tally);
        }
        self.counts.rounds = self.config.rounds().0;
        Outcome {
            violations: self.violations,
            counts: self.counts,
            trace: self.trace.unwrap_or_default(),
            fingerprint: self.fingerprint,
        }
    }

    pub(crate) fn note_tally(&mut self, tally: elastic_member::Tally) {
        self.counts.late_segments += tally.late_segments;
        self.counts.past_the_log += tally.past_the_log;
    }

    fn happen(&mut self, happening: Happening) {
        if let Some(until) = self.stopped_until(&happening) {
            let wait = until - self.now;
            self.at(wait, happening);
            return;
        }
        match happening {
            Happening::ToMember(id, event) => self.tell(id, *event),
            Happening::MemberTick(id) => self.tell(id, Event::Tick),
            Happening::Booted(id) => self.booted(id),
            Happening::Trained(id, effect) => self.trained(id, *effect),
            Happening::Written(id, round, bytes) => {
                if self.processes.contains_key(&id) {
                    self.written(id, round, bytes);
                }
            }
            Happening::Synced(id, round, bytes) => {
                if self.processes.contains_key(&id) {
                    self.synced(round, bytes);
                }
            }
            Happening::OrderArrives(id, order) => self.order(id, *order),
            Happening::Ended(id, end) => self.end(id, end),
            Happening::Beat(node) => self.beat(node),
            Happening::WantArrives(node, want) => self.want(node, *want),
            Happening::NodeReturns(node) => {
                if !self.nodes[node].is_up || self.nodes[node].draining {
                    if self.nodes[node].is_up {
                        self.lose_node(node);
                    }
                    self.node_returns(node);
                }
            }
            Happening::ReportArrives(report) => self.report_arrives(*report),
            Happening::StreamBroke(node, incarnation) => self.stream_broke(node, incarnation),
            Happening::Decide(term, event) => self.decide(term, *event),
            Happening::LeaderTick(term) => self.leader_tick(term),
            Happening::NewLeader => self.lead(),
            Happening::OracleTick => self.oracle(),
            Happening::Strike(fault) => self.strike(fault),
            Happening::Heal => self.heal(),
        }
    }

    /// A stopped process does nothing until it goes on; what reaches it waits.
    fn stopped_until(&self, happening: &Happening) -> Option<u64> {
        let id = match happening {
            Happening::ToMember(id, _) | Happening::MemberTick(id) | Happening::Booted(id) => id,
            Happening::Trained(id, _) | Happening::Written(id, ..) | Happening::OrderArrives(id, _) => id,
            _ => return None,
        };
        self.processes.get(id).map(|p| p.stopped_until).filter(|until| *until > self.now)
    }

    pub(crate) fn at(&mut self, in_us: u64, happening: Happening) {
        self.next += 1;
        self.queue.insert((self.now + in_us, self.next), happening);
    }

    pub(crate) fn add_node(&mut self) {
        let slots = self.chance.between(1, 2) as u16;
        let index = self.nodes.len();
        self.nodes.push(Node::new(index, slots));
        self.at(10, Happening::Beat(index));
    }

    fn heal(&mut self) {
        self.trace(|| "HEAL".into());
        self.net = Net::default();
        self.cuts.clear();
        self.kill_after_reduced = None;
        self.crash_after_orders = None;
        if let Some(oracle) = &mut self.oracle {
            oracle.is_calm = true;
        } else if self.leaders.is_empty() {
            // A crashed leader's return is on its way.
            self.at(10_000_000, Happening::NewLeader);
        }
    }

    pub(crate) fn is_cut(&self, a: WorkerId, b: WorkerId) -> bool {
        self.cuts.get(&(a.min(b), a.max(b))).is_some_and(|until| *until > self.now)
    }

    /// Counts down to the death of an owner between two chunks.
    pub(crate) fn reduced_sent(&mut self, from: WorkerId, _round: Round) {
        if let Some(left) = &mut self.kill_after_reduced {
            *left -= 1;
            if *left == 0 {
                self.kill_after_reduced = None;
                self.counts.owner_lost_after_k_chunks += 1;
                self.at(0, Happening::Ended(from, End::Signal(9)));
            }
        }
    }

    pub(crate) fn break_link(&mut self, a: WorkerId, b: WorkerId) {
        for (me, peer) in [(a, b), (b, a)] {
            let down = self.chance.between(50, 500);
            let up = down + self.chance.between(500, 20_000);
            self.at(down, Happening::ToMember(me, Box::new(Event::LinkDown(peer))));
            self.at(up, Happening::ToMember(me, Box::new(Event::LinkUp(peer))));
        }
        // What was on its way is lost.
        let is_between = |h: &Happening| match h {
            Happening::ToMember(to, event) => {
                matches!(**event, Event::Frame { from, .. } if (from, *to) == (a, b) || (from, *to) == (b, a))
            }
            _ => false,
        };
        self.queue.retain(|_, h| !is_between(h));
    }

    /// All links of a process that is gone.
    pub(crate) fn links_break(&mut self, gone: WorkerId) {
        let others: Vec<WorkerId> = self.processes.keys().copied().collect();
        for id in others {
            if self.chance.permille(850) {
                let delay = self.chance.between(50, 2_000);
                self.at(delay, Happening::ToMember(id, Box::new(Event::LinkDown(gone))));
            }
        }
    }

    pub(crate) fn check_state(&mut self, id: WorkerId, round: Round, hash: u64) {
        if self.reference[round.0 as usize] != hash {
            self.violation(format!("{id} holds another state of round {round} than an undisturbed run"));
        }
        self.trace(|| format!("{id} committed {round}"));
    }

    fn job_state(&self) -> Option<JobState> {
        if self.oracle.is_some() {
            return self.has_finished.then_some(JobState::Succeeded);
        }
        let leader = self.leaders.last()?;
        let job = JobId::parse("job").expect("a good name");
        leader.machine.job(elastic_control::Millis(self.now / 1000), &job).map(|j| j.state)
    }

    fn check_end(&mut self) {
        let last = self.config.rounds();
        if !self.disk.contains_key(&last) {
            self.violation(format!("the job succeeded without a checkpoint of its last round {last}"));
        }
    }

    fn standstill(&self) -> String {
        let members: Vec<String> = self
            .processes
            .iter()
            .map(|(id, p)| {
                let s = p.member.status();
                format!(
                    "{id} on n{} at {:?} {:?} view {:?} waits on {:?}",
                    p.node,
                    s.at,
                    s.phase,
                    s.view.map(|v| v.epoch),
                    s.waiting_on
                )
            })
            .collect();
        let job = JobId::parse("job").expect("a good name");
        let status = self.leaders.last().and_then(|l| l.machine.job(elastic_control::Millis(self.now / 1000), &job));
        let why = status.map(|s| format!("{}: {}", s.state.as_str(), s.reason)).unwrap_or("no leader".into());
        format!("the job did not end after the faults stopped; {why}; {}", members.join("; "))
    }

    pub(crate) fn violation(&mut self, what: String) {
        self.trace(|| format!("VIOLATION {what}"));
        self.violations.push(what);
    }

    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let line = line();
            trace.push_str(&format!("{:>10.3} {line}\n", self.now as f64 / 1000.0));
        }
    }
}

fn spec(config: &Config, min_workers: u16, max_workers: u16) -> JobSpec {
    JobSpec {
        name: "sim".into(),
        model: job::ModelSpec {
            kind: job::ModelKind::Mlp { hidden: vec![8], activation: job::Activation::Relu },
            init: None,
            init_sha256: None,
            init_except: vec![],
            freeze: vec![],
        },
        data: job::DataSpec {
            source: job::DataSource::Synthetic { samples: 64, features: 4, classes: 2 },
            validation: 0.0,
            sha256: None,
        },
        train: job::TrainSpec {
            global_batch: u32::from(config.shards),
            shards: config.shards,
            length: job::Length::Steps(config.schedule.steps),
            seed: 1,
            dtype: job::Dtype::F32,
            optimizer: job::Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
            lr: 0.1,
            lr_schedule: job::LrSchedule::Constant { warmup: 0 },
            clip_norm: None,
            non_finite: Default::default(),
            ema: None,
            label_smoothing: 0.0,
            validate_every: config.schedule.validate_every,
            groups: vec![],
        },
        elastic: job::ElasticSpec { min_workers, max_workers, reduce: job::Reduce::Exact, restarts: 100_000 },
        checkpoint: job::CheckpointSpec { dir: None, every: config.checkpoint_every, keep: 3 },
        resources: job::ResourceSpec { device: job::Device::Cpu, threads: 1 },
    }
}
