//! Agent and coordinator in a few lines: starts worker processes, hears them, hands out views.
//!
//! Much simpler than the real ones: faults are noticed by exit, silence or standing still, the dead are
//! replaced by learners, and learners that have caught up become active.

use bytes::BytesMut;
use elastic_proto::framed::Framed;
use elastic_spec::facts::{Launch, Phase, WorkerStatus, WorkerUp};
use elastic_spec::job::{
    CheckpointSpec, DataSource, DataSpec, Device, Dtype, ElasticSpec, JobSpec, Length, LrSchedule, ModelKind,
    ModelSpec, Optimizer, Reduce, ResourceSpec, TrainSpec,
};
use elastic_spec::view::{Pace, Role, View, ViewMember, WorkerOrder, exit};
use elastic_spec::{Digest, Epoch, JobId, NodeId, Rank, WorkerId};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

pub const VALIDATE_EVERY: u64 = 20;
const SHARDS: u16 = 8;
/// A worker silent, or standing still while waited for, this long is taken for lost.
const SUSPECT: Duration = Duration::from_millis(700);
/// Far more than any run needs.
const WAIT: Duration = Duration::from_secs(90);

#[derive(Clone, Debug)]
pub struct Plan {
    pub world: usize,
    pub steps: u64,
    pub checkpoint_every: u64,
    /// Ranks wanted from this step on.
    pub grow: (u64, usize),
    pub fail: Option<(Whom, String)>,
    pub params: serde_json::Value,
}

impl Plan {
    pub fn of(world: usize) -> Plan {
        let params = serde_json::json!({ "width": 256 });
        Plan { world, steps: 200, checkpoint_every: 30, grow: (0, world), fail: None, params }
    }

    /// So many steps, and no checkpoint, that a late joiner cannot do without its peers' state.
    pub fn long(world: usize) -> Plan {
        Plan { steps: 800, checkpoint_every: 0, ..Plan::of(world) }
    }

    pub fn growing(self, at_step: u64, to: usize) -> Plan {
        Plan { grow: (at_step, to), ..self }
    }

    pub fn failing(self, process: usize, point: &str) -> Plan {
        Plan { fail: Some((Whom::Process(process), point.into())), ..self }
    }

    pub fn failing_once(self, point: &str) -> Plan {
        Plan { fail: Some((Whom::TheFirstThere, point.into())), ..self }
    }
}

/// Whom a fail point is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whom {
    /// By the order of their starts.
    Process(usize),
    /// Whoever comes to the point first.
    TheFirstThere,
}

/// What a run leaves: equal for equal jobs, whatever happened.
#[derive(Debug)]
pub struct Outcome {
    /// Of weights and state.
    pub digests: (Digest, Digest),
    pub events: String,
    /// Processes that did not end by themselves.
    pub faults: usize,
}

struct Process {
    id: WorkerId,
    child: Child,
    /// None while it runs; then its exit code, or none if a signal ended it.
    end: Option<Option<i32>>,
    is_leaving: bool,
    last_progress: (u64, Instant),
}

#[derive(Default)]
struct Seat {
    stream: Option<UnixStream>,
    status: Option<(WorkerStatus, Instant)>,
}

type Seats = Arc<Mutex<BTreeMap<WorkerId, Seat>>>;

pub struct Cluster {
    plan: Plan,
    dir: tempfile::TempDir,
    seats: Seats,
    processes: Vec<Process>,
    view: View,
    faults: usize,
}

impl Cluster {
    /// From nothing to the end of the job.
    pub fn run(plan: Plan) -> Outcome {
        let world = plan.world;
        let mut cluster = Cluster::start(plan);
        cluster.until("ready", |s| s.at.is_some());
        cluster.put_in_force(&(0..world).collect::<Vec<_>>());
        cluster.go_on()
    }

    pub fn start(plan: Plan) -> Cluster {
        let dir = tempfile::tempdir().unwrap();
        let seats = Seats::default();
        let listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
        let theirs = seats.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, seats) = (stream.unwrap(), theirs.clone());
                std::thread::spawn(move || hear(stream, &seats));
            }
        });
        let launch = Launch {
            spec_json: spec(&plan).canonical_json(),
            blobs: Vec::new(),
            secret: b"a secret of this job".to_vec(),
            run_dir: dir.path().join("run").display().to_string(),
            program: None,
        };
        std::fs::write(dir.path().join("launch.json"), serde_json::to_vec(&launch).unwrap()).unwrap();
        let view =
            View { job: job(), epoch: Epoch::new(1, 0), pace: Pace::Run, members: Vec::new(), shard_map: Vec::new() };
        let mut cluster = Cluster { plan, dir, seats, processes: Vec::new(), view, faults: 0 };
        // Those who come later boot now, so that only their joining is timed.
        (0..cluster.plan.world.max(cluster.plan.grow.1)).for_each(|_| cluster.spawn());
        cluster
    }

    fn spawn(&mut self) {
        let number = self.processes.len();
        let id = WorkerId(100 + number as u64);
        let path = |name: &str| self.dir.path().join(name);
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "a_worker_process", "--nocapture", "--test-threads=1"])
            .env("ELASTIC_AGENT_SOCKET", path("agent.sock"))
            .env("ELASTIC_WORKER_TOKEN", "token")
            .env("ELASTIC_WORKER_ID", format!("{:x}", id.0))
            .env("ELASTIC_JOB", job().as_str())
            .env("ELASTIC_LAUNCH", path("launch.json"))
            .env("ELASTIC_THREADS", "1")
            .env_remove("ELASTIC_FAIL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(path(&format!("worker-{number}.log"))).unwrap());
        match &self.plan.fail {
            Some((Whom::Process(process), point)) if *process == number => command.env("ELASTIC_FAIL", point),
            Some((Whom::TheFirstThere, point)) => {
                command.env("ELASTIC_FAIL", point).env("ELASTIC_FAIL_ONCE", self.dir.path())
            }
            _ => &mut command,
        };
        self.seats.lock().unwrap().insert(id, Seat::default());
        let child = command.spawn().unwrap();
        self.processes.push(Process { id, child, end: None, is_leaving: false, last_progress: (0, Instant::now()) });
    }

    fn status(&self, process: usize) -> Option<WorkerStatus> {
        self.seats.lock().unwrap()[&self.processes[process].id].status.as_ref().map(|(status, _)| status.clone())
    }

    /// Waits until every process that runs says so.
    pub fn until(&mut self, what: &str, is_so: impl Fn(&WorkerStatus) -> bool) {
        let begun = Instant::now();
        while !(0..self.processes.len()).all(|i| self.status(i).is_some_and(|s| is_so(&s))) {
            assert!(begun.elapsed() < WAIT, "the workers never came to {what}\n{}", self.logs());
            std::thread::sleep(TICK);
        }
    }

    /// These processes are active from now on, without learners.
    pub fn put_in_force(&mut self, active: &[usize]) {
        self.publish_view(active, &[]);
    }

    fn publish_view(&mut self, active: &[usize], learners: &[usize]) {
        let member = |i: &usize, role| ViewMember {
            worker: self.processes[*i].id,
            node: NodeId::parse("n").unwrap(),
            address: self.status(*i).expect("only who has spoken is in a view").address,
            role,
        };
        let members = active.iter().map(|i| member(i, Role::Active));
        self.view.members = members.chain(learners.iter().map(|i| member(i, Role::Learner))).collect();
        self.view.epoch.gen_.0 += 1;
        let world = active.len();
        let shards = if world == 0 { 0 } else { SHARDS.into() };
        self.view.shard_map = (0..shards).map(|s| Rank((s * world / shards) as u16)).collect();
        self.tell_everyone();
    }

    pub fn ask_to_leave(&mut self, process: usize) {
        self.processes[process].is_leaving = true;
        self.tell_everyone();
    }

    fn tell_everyone(&self) {
        for process in &self.processes {
            let mut bytes = BytesMut::new();
            WorkerOrder { view: Some(self.view.clone()), leave: process.is_leaving, restarts: 0 }.encode(&mut bytes);
            if let Some(stream) = &mut self.seats.lock().unwrap().get_mut(&process.id).unwrap().stream {
                // Whoever is gone is noticed by its exit.
                let _ = stream.write_all(&bytes);
            }
        }
    }

    /// Watches over the job until it is finished.
    pub fn go_on(mut self) -> Outcome {
        let begun = Instant::now();
        let mut published = None;
        while !self.is_over() {
            assert!(begun.elapsed() < WAIT, "the job does not end: {:?}\n{}", self.view, self.logs());
            self.reap();
            self.converge();
            std::thread::sleep(TICK);
        }
        for i in 0..self.processes.len() {
            let Some(status) = self.status(i).filter(|s| s.phase == Phase::Finished) else { continue };
            let last = status.published.expect("who is finished knows the last checkpoint");
            let digests = (last.weights_sha256, last.state_sha256);
            assert!(published.is_none_or(|p| p == digests), "all members end with one state");
            published = Some(digests);
        }
        let events = std::fs::read_to_string(self.dir.path().join("run/events.jsonl")).unwrap();
        Outcome { digests: published.expect("somebody has finished"), events, faults: self.faults }
    }

    /// Somebody has finished, and no active member is left.
    fn is_over(&self) -> bool {
        let is_done = |p: &Process| p.end == Some(Some(exit::DONE));
        let in_view = |p: &Process| self.view.rank_of(p.id).is_some();
        self.processes.iter().any(is_done) && self.processes.iter().all(|p| p.end.is_some() || !in_view(p))
    }

    fn reap(&mut self) {
        let waited_for: Vec<WorkerId> = (0..self.processes.len())
            .filter(|i| self.runs(*i))
            .filter_map(|i| self.status(i))
            .flat_map(|s| s.waiting_on)
            .collect();
        for i in 0..self.processes.len() {
            if let Some(status) =
                self.processes[i].child.try_wait().unwrap().filter(|_| self.processes[i].end.is_none())
            {
                self.processes[i].end = Some(status.code());
                let is_fault = !matches!(status.code(), Some(exit::DONE | exit::DRAINED));
                self.faults += usize::from(is_fault);
            }
            let seat = self.seats.lock().unwrap()[&self.processes[i].id].status.clone();
            let (Some((status, heard)), true) = (seat, self.runs(i)) else { continue };
            let process = &mut self.processes[i];
            if process.last_progress.0 != status.progress || !waited_for.contains(&process.id) {
                process.last_progress = (status.progress, Instant::now());
            }
            if heard.elapsed() > SUSPECT || process.last_progress.1.elapsed() > SUSPECT {
                // Its end is noticed in the next round.
                process.child.kill().unwrap();
            }
        }
    }

    fn runs(&self, i: usize) -> bool {
        self.processes[i].end.is_none()
    }

    /// Brings the view in line with who runs.
    fn converge(&mut self) {
        let in_role = |role| {
            let members = self.view.members.iter().filter(move |m| m.role == role);
            members.filter_map(|m| self.processes.iter().position(|p| p.id == m.worker)).filter(|i| self.runs(*i))
        };
        let (mut active, mut learners): (Vec<_>, Vec<_>) =
            (in_role(Role::Active).collect(), in_role(Role::Learner).collect());
        let is_finishing = self.processes.iter().any(|p| p.end == Some(Some(exit::DONE)));
        let idle = |i: usize, active: &[usize], learners: &[usize]| {
            let is_idle =
                self.runs(i) && !self.processes[i].is_leaving && !active.contains(&i) && !learners.contains(&i);
            is_idle && self.status(i).is_some_and(|s| s.at.is_some())
        };
        let waiting: Vec<usize> = (0..self.processes.len()).filter(|i| idle(*i, &active, &learners)).collect();
        let (at_step, to) = self.plan.grow;
        let has_come = (0..self.processes.len()).filter_map(|i| self.status(i)).any(|s| s.step.0 >= at_step);
        let wanted = if has_come { to } else { self.plan.world };
        let room = wanted.saturating_sub(active.len() + learners.len());
        learners.extend(waiting.into_iter().take(room));
        if active.is_empty() && !is_finishing {
            // Nobody is left who knows more: what the others hold, from a checkpoint or from peers, is what there is.
            active.extend(learners.extract_if(.., |i| self.status(*i).is_some_and(|s| s.at.is_some())));
        }
        let caught_up = |i: &usize| self.status(*i).is_some_and(|s| s.phase == Phase::CaughtUp);
        active.extend(learners.extract_if(.., |i| caught_up(i)));
        let changed =
            self.view.members.len() != active.len() + learners.len() || self.view.active().count() != active.len();
        if changed {
            self.publish_view(&active, &learners);
        }
        let there = self.processes.iter().filter(|p| p.end.is_none() && !p.is_leaving).count();
        let are_leaving = self.processes.iter().any(|p| p.is_leaving);
        if there < self.plan.world.max(to) && !is_finishing && !are_leaving {
            self.spawn();
        }
    }

    pub fn wait_for_exit(&mut self, process: usize) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.processes[process].child.try_wait().unwrap() {
                self.processes[process].end = Some(status.code());
                return status.code();
            }
            assert!(begun.elapsed() < WAIT, "process {process} does not end\n{}", self.logs());
            std::thread::sleep(TICK);
        }
    }

    /// Closes all sockets, as if the agent had died, and says how the workers ended.
    pub fn leave_the_workers_alone(mut self) -> Vec<Option<i32>> {
        for seat in self.seats.lock().unwrap().values_mut() {
            seat.stream.take().unwrap().shutdown(std::net::Shutdown::Both).unwrap();
        }
        (0..self.processes.len()).map(|i| self.wait_for_exit(i)).collect()
    }

    fn logs(&self) -> String {
        let log = |i: usize| {
            let text = std::fs::read_to_string(self.dir.path().join(format!("worker-{i}.log"))).unwrap_or_default();
            format!("worker {i}: {:?}\n{text}", self.status(i))
        };
        (0..self.processes.len()).map(log).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

fn hear(mut stream: UnixStream, seats: &Seats) {
    let mut bytes = BytesMut::new();
    let mut who = None;
    let mut block = [0; 4096];
    loop {
        while let Some(up) = WorkerUp::decode(&mut bytes).unwrap() {
            let mut seats = seats.lock().unwrap();
            match up {
                WorkerUp::Hello { worker, token } => {
                    assert_eq!(token, "token");
                    who = Some(worker);
                    seats.get_mut(&worker).unwrap().stream = Some(stream.try_clone().unwrap());
                }
                WorkerUp::Status(status) => {
                    let seat = seats.get_mut(&who.expect("it says first who it is")).unwrap();
                    seat.status = Some((*status, Instant::now()));
                }
            }
        }
        match stream.read(&mut block) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&block[..count]),
        }
    }
}

fn job() -> JobId {
    JobId::parse("processes").unwrap()
}

fn spec(plan: &Plan) -> JobSpec {
    JobSpec {
        name: "processes".into(),
        model: ModelSpec {
            kind: ModelKind::Own { program: "it".into(), params: plan.params.clone() },
            init: None,
            init_sha256: None,
            init_except: vec![],
            freeze: vec![],
        },
        data: DataSpec {
            source: DataSource::Synthetic { samples: 500, features: 300, classes: 4 },
            validation: 0.2,
            sha256: None,
        },
        train: TrainSpec {
            global_batch: 32,
            shards: SHARDS,
            length: Length::Steps(plan.steps),
            seed: 3,
            dtype: Dtype::F32,
            optimizer: Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 },
            lr: 0.001,
            lr_schedule: LrSchedule::Cosine { warmup: 5, end: 0.1 },
            clip_norm: Some(1.0),
            non_finite: Default::default(),
            ema: None,
            label_smoothing: 0.0,
            validate_every: VALIDATE_EVERY,
            groups: vec![],
        },
        elastic: ElasticSpec { min_workers: 1, max_workers: 3, reduce: Reduce::Exact, restarts: 3 },
        checkpoint: CheckpointSpec { dir: None, every: plan.checkpoint_every, keep: 3 },
        resources: ResourceSpec { device: Device::Cpu, threads: 1 },
    }
}

const TICK: Duration = Duration::from_millis(5);
