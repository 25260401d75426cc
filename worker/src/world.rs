//! Tests of whole ranks in one process: member, training thread, sums and publisher, over in-process links.
//!
//! The control plane is the test itself: it hands out views. The network is a linear model with a squared
//! loss, so that everything but its arithmetic is the product's.

use crate::about::Beside;
use crate::agent_link::AgentLink;
use crate::fault::{Alarm, Fault};
use crate::job::Job;
use crate::member_loop::{Inputs, MemberLoop, Outputs};
use crate::pool::{Pool, Shared};
use crate::publisher::{Copy, Place, PointedFs, Publisher};
use crate::rows::Row;
use crate::state::State;
use crate::status::{self, Speaker};
use crate::sums::Sums;
use crate::tensorboard::Board;
use crate::trainer::Trainer;
use elastic_checkpoint::{Checkpoints, Keep, Origin};
use elastic_collectives::{LinkEvent, Sent, Transport};
use elastic_member::{Config, Leaving};
use elastic_spec::batch::Batch;
use elastic_spec::facts::{Phase, WorkerStatus};
use elastic_spec::frame::Frame;
use elastic_spec::job::{
    Activation, CheckpointSpec, DataSource, DataSpec, Device, Dtype, ElasticSpec, JobSpec, Length, LrSchedule,
    ModelKind, ModelSpec, Optimizer, Reduce, ResourceSpec, TrainSpec,
};
use elastic_spec::layout::Tail;
use elastic_spec::view::{Pace, Role, View, ViewMember, WorkerOrder};
use elastic_spec::{Digest, Epoch, JobId, NodeId, Rank, Round, Step, WorkerId};
use elastic_tensor::leaves::tree_sum;
use elastic_tensor::{GroupRates, LeafKey, Network, ParamInfo, StateLayout};
use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// m: samples of a shard.
const SAMPLES: usize = 4;

/// prediction = w . x; the loss is half the squared distance to the class number.
struct Linear {
    layout: StateLayout,
    features: usize,
}

impl Linear {
    fn new(features: usize) -> Linear {
        let weight = ParamInfo {
            name: "weight".into(),
            shape: vec![features],
            offset: 0,
            len: features,
            decay: true,
            trainable: true,
            group: GroupRates::default(),
        };
        Linear { layout: StateLayout { params: vec![weight], ..StateLayout::default() }, features }
    }

    fn errors<'a>(&'a self, state: &'a [f32], batch: &'a Batch) -> impl Iterator<Item = (&'a [f32], f32)> {
        let samples = batch.features.chunks_exact(self.features).zip(&batch.targets).filter(|(_, t)| **t >= 0);
        samples.map(move |(x, t)| (x, x.iter().zip(state).map(|(x, w)| x * w).sum::<f32>() - *t as f32))
    }

    /// The samples of one of a unit's shards.
    fn part(&self, batch: &Batch, shard: usize) -> Batch {
        let samples = shard * SAMPLES..(shard + 1) * SAMPLES;
        Batch {
            features: batch.features[samples.start * self.features..samples.end * self.features].to_vec(),
            targets: batch.targets[samples.clone()].to_vec(),
            slots: batch.slots[samples].to_vec(),
            ..Batch::default()
        }
    }

    fn tail(&self, state: &[f32], batch: &Batch) -> Tail {
        let one = |(_, e): (_, f32)| Tail { loss: f64::from(e * e / 2.0), count: 1, correct: (e.abs() < 0.5).into() };
        self.errors(state, batch).map(one).fold(Tail::default(), Tail::add)
    }
}

impl Network for Linear {
    fn layout(&self) -> &StateLayout {
        &self.layout
    }
    fn layout_mut(&mut self) -> &mut StateLayout {
        &mut self.layout
    }
    fn init(&self, seed: u64) -> Vec<f32> {
        (0..self.features).map(|i| ((seed + i as u64) as f32).sin() / 10.0).collect()
    }
    fn shards_max(&self) -> usize {
        4
    }
    fn sum(&self, _: &mut dyn Any, state: &[f32], batch: &Batch, key: LeafKey, out: &mut [f32]) -> Tail {
        let mut tails = vec![Tail::default(); batch.slots.len() / SAMPLES];
        tree_sum(tails.len(), out, &mut Vec::new(), |shard, out| {
            let batch = self.part(batch, shard);
            out.fill(0.0);
            for (x, e) in self.errors(state, &batch) {
                out.iter_mut().zip(x).for_each(|(g, x)| *g += key.scale * e * x);
            }
            tails[shard] = self.tail(state, &batch);
        });
        while tails.len() > 1 {
            tails = tails.chunks(2).map(|pair| pair[0].add(pair[1])).collect();
        }
        tails[0]
    }
    fn evaluate(&self, _: &mut dyn Any, state: &[f32], batch: &Batch) -> Vec<Tail> {
        let shards = batch.slots.len() / SAMPLES;
        (0..shards).map(|shard| self.tail(state, &self.part(batch, shard))).collect()
    }
    fn new_scratch(&self, _threads: usize) -> Box<dyn Any + Send> {
        Box::new(())
    }
}

/// Delivers frames by id; a worker whose inbox is gone is a broken link.
#[derive(Default)]
struct Wires(Mutex<BTreeMap<WorkerId, mpsc::Sender<LinkEvent>>>);

struct Wire {
    me: WorkerId,
    wires: Arc<Wires>,
}

impl Transport for Wire {
    fn send(&self, to: WorkerId, frame: Frame) -> Sent {
        let wires = self.wires.0.lock().unwrap();
        let Some(inbox) = wires.get(&to) else { return Sent::Unknown };
        match inbox.try_send(LinkEvent::Frame { from: self.me, frame }) {
            Err(mpsc::error::TrySendError::Closed(_)) => Sent::Unknown,
            Err(mpsc::error::TrySendError::Full(_)) => Sent::Full,
            Ok(()) => Sent::Queued,
        }
    }
    fn set_peers(&self, _: Vec<(WorkerId, String)>) {}
    fn address(&self) -> &str {
        "127.0.0.1:1"
    }
}

/// What distinguishes one test's world from another's.
#[derive(Clone, Copy)]
struct Setting {
    features: u32,
    shards: u16,
    steps: u64,
    checkpoint_every: u64,
    threads: usize,
}

const SMALL: Setting = Setting { features: 5, shards: 8, steps: 40, checkpoint_every: 10, threads: 1 };

impl Setting {
    fn spec(self) -> JobSpec {
        let Setting { features, shards, steps, checkpoint_every, .. } = self;
        JobSpec {
            name: "world".into(),
            model: ModelSpec {
                kind: ModelKind::Mlp { hidden: vec![], activation: Activation::Relu },
                init: None,
                init_sha256: None,
                init_except: vec![],
                freeze: vec![],
            },
            data: DataSpec {
                source: DataSource::Synthetic { samples: 300, features, classes: 3 },
                validation: 0.2,
                sha256: None,
            },
            train: TrainSpec {
                global_batch: 32,
                shards,
                length: Length::Steps(steps),
                seed: 7,
                dtype: Dtype::F32,
                optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
                lr: 0.1 / f64::from(features),
                lr_schedule: LrSchedule::Constant { warmup: 0 },
                clip_norm: None,
                non_finite: Default::default(),
                ema: None,
                label_smoothing: 0.0,
                validate_every: 10,
                groups: vec![],
            },
            elastic: ElasticSpec { min_workers: 1, max_workers: 3, reduce: Reduce::Exact, restarts: 3 },
            checkpoint: CheckpointSpec { dir: None, every: checkpoint_every, keep: 2 },
            resources: ResourceSpec { device: Device::Cpu, threads: 1 },
        }
    }

    fn job(self) -> Job {
        let spec = self.spec();
        let data = elastic_loader::open(&spec, &|path| path.into()).unwrap();
        let schedule = elastic_loader::schedule(&spec, &data).unwrap();
        Job::new(spec, schedule, Box::new(Linear::new(self.features as usize)), data)
    }
}

/// One rank that runs.
struct Running {
    id: WorkerId,
    order: watch::Sender<WorkerOrder>,
    said: watch::Receiver<(u64, WorkerStatus)>,
    shared: Arc<Shared>,
    ended: JoinHandle<Result<Leaving, Fault>>,
}

struct World {
    setting: Setting,
    wires: Arc<Wires>,
    dir: tempfile::TempDir,
    ranks: Vec<Running>,
    gen_: u64,
}

impl World {
    fn new(setting: Setting) -> World {
        World { setting, wires: Arc::default(), dir: tempfile::tempdir().unwrap(), ranks: Vec::new(), gen_: 0 }
    }

    /// Starts `count` ranks at round 0.
    fn start(&mut self, count: usize) {
        for _ in 0..count {
            let id = WorkerId(self.ranks.len() as u64 + 1);
            let job = self.setting.job();
            let state = job.first_state();
            let rank = start(id, Shared::new(job, state), self.setting.threads, self.wires.clone(), self.dir.path());
            self.ranks.push(rank);
        }
    }

    /// Puts these ranks into force; shards go round them in contiguous runs.
    fn view(&mut self, active: &[usize], learners: &[usize]) {
        self.gen_ += 1;
        let member = |i: &usize, role| ViewMember {
            worker: self.ranks[*i].id,
            node: NodeId::parse("n").unwrap(),
            address: "127.0.0.1:1".into(),
            role,
        };
        let (v, world) = (usize::from(self.setting.shards), active.len());
        let view = View {
            job: JobId::parse("world").unwrap(),
            epoch: Epoch::new(1, self.gen_),
            pace: Pace::Run,
            members: active
                .iter()
                .map(|i| member(i, Role::Active))
                .chain(learners.iter().map(|i| member(i, Role::Learner)))
                .collect(),
            shard_map: (0..v).map(|s| Rank((s * world / v) as u16)).collect(),
        };
        for i in active.iter().chain(learners) {
            self.ranks[*i].order.send_replace(WorkerOrder { view: Some(view.clone()), leave: false, restarts: 0 });
        }
    }

    fn kill(&self, i: usize) {
        self.ranks[i].ended.abort();
        self.wires.0.lock().unwrap().remove(&self.ranks[i].id);
    }

    async fn until(&mut self, i: usize, what: &str, is_so: impl FnMut(&WorkerStatus) -> bool) {
        let mut is_so = is_so;
        let wait = self.ranks[i].said.wait_for(|(_, status)| is_so(status));
        let found = tokio::time::timeout(WAIT, wait).await.is_ok_and(|found| found.is_ok());
        assert!(found, "rank {i} never came to {what}: {:?}", self.ranks[i].said.borrow().1);
    }

    /// Waits for the end of these ranks and checks that all hold one and the same state.
    async fn finish(mut self, ranks: &[usize]) -> (State, String) {
        let mut states: Vec<State> = Vec::new();
        for i in ranks {
            let ended = tokio::time::timeout(WAIT, &mut self.ranks[*i].ended).await;
            let leaving =
                ended.unwrap_or_else(|_| panic!("rank {i} did not end: {:?}", self.ranks[*i].said.borrow().1));
            assert_eq!(leaving.unwrap().unwrap(), Leaving::Finished, "rank {i}");
            states.push(self.ranks[*i].shared.state.read().unwrap().clone());
        }
        assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "all ranks hold the same state");
        let events = std::fs::read_to_string(self.dir.path().join("events.jsonl")).unwrap();
        assert_eq!(events.lines().count() as u64, self.setting.steps, "one row for each step");
        (states.remove(0), events)
    }
}

fn start(id: WorkerId, shared: Arc<Shared>, threads: usize, wires: Arc<Wires>, dir: &Path) -> Running {
    let (order, orders) = watch::channel(WorkerOrder { view: None, leave: false, restarts: 0 });
    let (status, said) = watch::channel((0, status::blank("127.0.0.1:1".into(), 1)));
    let mut agent = AgentLink::new(orders, status, watch::channel(0).1);
    let (link_event, links) = mpsc::channel(1024);
    wires.0.lock().unwrap().insert(id, link_event);
    let (alarm, alarms) = Alarm::new();
    let (answer, answers) = mpsc::channel(1024);
    let (tasks, queue) = sync_channel(1024);
    let place = place(dir);
    let (metrics, published) = (Arc::default(), Arc::default());
    let publisher = Publisher::start(place, shared.clone(), Arc::clone(&published), &alarm, answer.clone());
    let trainer = Trainer::new(Pool::new(shared.clone(), threads), publisher, Arc::clone(&metrics));
    let config = Config {
        me: id,
        shards: shared.job.plan.shards,
        schedule: shared.job.schedule,
        layout: shared.job.layout(),
        checkpoint_every: shared.job.spec.checkpoint.every,
        log_rounds_max: 8,
        log_bytes_max: 64 << 20,
    };
    let sums = Sums::start(1, config.shards, &alarm, &answer);
    let raised = alarm.clone();
    alarm.thread("train", move || trainer.run(queue, answer, &raised));
    let round = shared.state.read().unwrap().round;
    let speaker = Speaker::new(&agent.said(), shared.clone(), metrics, published);
    let wire = Arc::new(Wire { me: id, wires });
    let ended = tokio::spawn(async move {
        let mut rank = MemberLoop::new(config, speaker, Outputs { tasks, sums, links: wire });
        let leaving = rank.run(round, &mut agent, &mut Inputs { answers, links, alarms }).await;
        agent.tell(rank.status());
        leaving
    });
    Running { id, order, said, shared, ended }
}

fn place(dir: &Path) -> Place {
    let job = JobId::parse("world").unwrap();
    Place {
        checkpoints: Checkpoints::on(Arc::new(PointedFs), dir.join("checkpoints")),
        origin: Origin { cluster: "c".into(), job, config: Digest::default(), epoch: Epoch::default() },
        keep: Keep { newest: 2, in_use: Vec::new() },
        events: dir.join("events.jsonl"),
        bucket: None,
        beside: Beside::of(dir),
        board: Board::new(dir, "{}"),
    }
}

/// Far more than any of these worlds needs.
const WAIT: Duration = Duration::from_secs(60);

async fn undisturbed(setting: Setting, world_size: usize) -> (State, String) {
    let mut world = World::new(setting);
    world.start(world_size);
    let all: Vec<usize> = (0..world_size).collect();
    world.view(&all, &[]);
    world.finish(&all).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_two_and_three_ranks_end_with_the_same_bits() {
    let alone = undisturbed(SMALL, 1).await;
    assert!(alone.0.rows.last().unwrap().train.loss < alone.0.rows[0].train.loss, "it learns");
    for world_size in [2, 3] {
        assert_eq!(undisturbed(SMALL, world_size).await, alone, "{world_size} ranks");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_threads_changes_no_bit() {
    let alone = undisturbed(SMALL, 1).await;
    for threads in [2, 5] {
        assert_eq!(undisturbed(Setting { threads, ..SMALL }, 1).await, alone, "{threads} threads");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_of_many_chunks_is_summed_beside_the_training_thread() {
    let setting = Setting { features: 200_000, steps: 4, checkpoint_every: 2, ..SMALL };
    assert_eq!(undisturbed(setting, 3).await, undisturbed(setting, 1).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_dies_costs_no_bit_and_no_row() {
    let alone = undisturbed(LONG, 1).await;
    let mut world = World::new(LONG);
    world.start(3);
    world.view(&[0, 1, 2], &[]);
    world.until(0, "step 20", |s| s.step.0 >= 20).await;
    world.kill(1);
    world.view(&[0, 2], &[]);
    assert_eq!(world.finish(&[0, 2]).await, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_writer_may_die_and_another_takes_over() {
    let alone = undisturbed(LONG, 1).await;
    let mut world = World::new(LONG);
    world.start(2);
    world.view(&[0, 1], &[]);
    world.until(1, "step 20", |s| s.step.0 >= 20).await;
    world.kill(0);
    world.view(&[1], &[]);
    assert_eq!(world.finish(&[1]).await, alone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joiner_takes_the_state_from_its_peers_and_ends_with_the_same_bits() {
    let alone = undisturbed(LONG, 1).await;
    let mut world = World::new(LONG);
    world.start(2);
    world.view(&[0, 1], &[]);
    world.until(0, "step 20", |s| s.step.0 >= 20).await;
    world.start(1);
    world.view(&[0, 1], &[2]);
    world.until(2, "having caught up", |s| s.phase == Phase::CaughtUp).await;
    world.view(&[0, 1, 2], &[]);
    assert_eq!(world.finish(&[0, 1, 2]).await, alone);
}

const LONG: Setting = Setting { steps: 2_000, checkpoint_every: 200, ..SMALL };

#[test]
fn a_checkpoint_gives_the_state_back() {
    let job = SMALL.job();
    let mut state = job.first_state();
    let pool = &mut Pool::new(Shared::new(SMALL.job(), state.clone()), 1);
    for _ in 0..3 {
        let root = elastic_spec::tree::TreeNode::root(SMALL.shards);
        let mut sum = pool.sum(state.round, root);
        pool.apply(&mut state, &mut sum.floats, sum.tail).unwrap();
        *pool.shared.state.write().unwrap() = state.clone();
    }
    let mut other = job.first_state();
    job.restore(&mut other, &job.contents(&state)).unwrap();
    assert_eq!(other, state);
    assert_ne!(other.rows[0], Row::default());
}

#[test]
fn a_checkpoint_of_another_model_is_refused_by_name() {
    let job = SMALL.job();
    let other = Setting { features: 6, ..SMALL }.job();
    let error = job.restore(&mut job.first_state(), &other.contents(&other.first_state())).unwrap_err();
    assert!(error.to_string().contains("tensor \"weight\" is F32 [6] where the model has F32 [5]"), "{error}");
}

#[test]
fn a_pause_between_a_step_and_its_validation_does_not_bar_the_checkpoint_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (job, mut place) = (SMALL.job(), place(dir.path()));
    let (mut state, mut scratch) = (job.first_state(), job.network.new_scratch(1));
    let mut gens = Vec::new();
    while gens.len() < 2 {
        if job.schedule.step_at(state.round) == Step(10) {
            let epoch = Epoch::new(1, 1 + gens.len() as u64);
            place.write(&job, &Copy { state: state.clone(), epoch }).unwrap();
            gens.push(place.checkpoints.newest_verified().unwrap().newest.unwrap().manifest);
        }
        let mut reduced = vec![0.0; job.layout_of(state.round).floats];
        job.apply(&mut *scratch, &mut state, &mut reduced, Tail { loss: 1.0, count: 32, correct: 0 }).unwrap();
    }
    assert_eq!((gens[0].round, gens[1].round), (Round(10), Round(11)), "the newer one is taken");
}
