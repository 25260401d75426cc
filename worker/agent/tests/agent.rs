//! A whole agent against a coordinator that only writes down and dictates, with shell scripts as workers.

use bytes::Bytes;
use elastic_agent::{AgentConfig, run};
use elastic_proto::server::{Api, Control, Flow, async_trait, serve_coordinator};
use elastic_proto::{Access, Refusal};
use elastic_spec::api::{
    Health, JobStatus, LogPiece, LogRead, LogsQuery, MakeToken, NodeStatus, Scale, Submit, TokenInfo,
};
use elastic_spec::facts::{End, JobWant, Launch, NodeReport, NodeWant, Process, SlotWant, WorkerReport};
use elastic_spec::job::{
    CheckpointSpec, DataSource, DataSpec, Device, Dtype, ElasticSpec, JobSpec, Length, LrSchedule, ModelKind,
    ModelSpec, Optimizer, Reduce, ResourceSpec, TrainSpec,
};
use elastic_spec::{Digest, JobId, NodeId, Term, TokenName};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// A coordinator whose wants are set by the test.
struct Dictator {
    want: watch::Receiver<NodeWant>,
    report: watch::Sender<Option<NodeReport>>,
    blob: Bytes,
}

#[async_trait]
impl Control for Dictator {
    async fn attach(&self, mut reports: Flow<NodeReport>) -> Result<Flow<NodeWant>, Refusal> {
        let heard = self.report.clone();
        let mut want = self.want.clone();
        let (tell, told) = mpsc::channel(1);
        want.mark_changed();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    report = reports.next() => match report {
                        Some(Ok(report)) => { heard.send_replace(Some(report)); }
                        _ => return,
                    },
                    changed = want.changed() => {
                        let now = want.borrow_and_update().clone();
                        if changed.is_err() || tell.send(Ok(now)).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(told)))
    }
}

fn not_asked<T>() -> Result<T, Refusal> {
    Err(Refusal::Internal("no agent asks for this".into()))
}

#[async_trait]
impl Api for Dictator {
    async fn submit(&self, _: Submit) -> Result<JobId, Refusal> {
        not_asked()
    }
    async fn jobs(&self) -> Result<Vec<JobStatus>, Refusal> {
        not_asked()
    }
    async fn status(&self, _: JobId) -> Result<JobStatus, Refusal> {
        not_asked()
    }
    async fn nodes(&self) -> Result<Vec<NodeStatus>, Refusal> {
        not_asked()
    }
    async fn scale(&self, _: Scale) -> Result<(), Refusal> {
        not_asked()
    }
    async fn drain(&self, _: NodeId) -> Result<(), Refusal> {
        not_asked()
    }
    async fn cancel(&self, _: JobId) -> Result<(), Refusal> {
        not_asked()
    }
    async fn put_blob(&self, _: Digest, _: Bytes) -> Result<(), Refusal> {
        not_asked()
    }
    async fn has_blob(&self, _: Digest) -> Result<bool, Refusal> {
        not_asked()
    }
    async fn get_blob(&self, digest: Digest) -> Result<Bytes, Refusal> {
        match digest == Digest::of(&self.blob) {
            true => Ok(self.blob.clone()),
            false => Err(Refusal::NotFound(format!("no blob {digest}"))),
        }
    }
    async fn logs(&self, _: LogsQuery) -> Result<Flow<LogPiece>, Refusal> {
        not_asked()
    }
    async fn make_token(&self, _: MakeToken) -> Result<String, Refusal> {
        not_asked()
    }
    async fn tokens(&self) -> Result<Vec<TokenInfo>, Refusal> {
        not_asked()
    }
    async fn revoke_token(&self, _: TokenName) -> Result<(), Refusal> {
        not_asked()
    }
    async fn health(&self) -> Health {
        Health { leads: Some(Term(1)), leader: None, store_away: None }
    }
}

/// An agent and its coordinator, both in this process; the workers are processes.
struct World {
    dir: tempfile::TempDir,
    want: watch::Sender<NodeWant>,
    report: watch::Receiver<Option<NodeReport>>,
    stop: Option<oneshot::Sender<()>>,
    agent: tokio::task::JoinHandle<anyhow::Result<()>>,
    coordinator: tokio::task::JoinHandle<()>,
    address: std::net::SocketAddr,
    heard: watch::Sender<Option<NodeReport>>,
}

const INPUT: &[u8] = b"1,2,3\n";

impl World {
    async fn new(script: &str, change: impl FnOnce(&mut AgentConfig)) -> World {
        let dir = tempfile::tempdir().unwrap();
        let (want, _) = watch::channel(wants(1, &[]));
        let (heard, report) = watch::channel(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let coordinator = serve(listener, &want, &heard);
        let worker = vec!["/bin/sh".into(), "-c".into(), script.into()];
        let mut config = AgentConfig::local(dir.path().join("state"), address.to_string(), worker);
        config.slots = 2;
        change(&mut config);
        let (stop, stopped) = oneshot::channel();
        let agent = tokio::spawn(run(config, async move {
            let _ = stopped.await;
        }));
        World { dir, want, report, stop: Some(stop), agent, coordinator, address, heard }
    }

    /// Waits for a report that `holds`.
    async fn until(&mut self, what: &str, holds: impl Fn(&NodeReport) -> bool) -> NodeReport {
        let found = self.report.wait_for(|report| report.as_ref().is_some_and(&holds));
        match tokio::time::timeout(Duration::from_secs(20), found).await {
            Ok(report) => report.unwrap().clone().unwrap(),
            Err(_) => panic!("no report that {what}"),
        }
    }

    async fn until_ended(&mut self, end: End) -> WorkerReport {
        let report = self.until(&format!("tells {end:?}"), |report| ended(report, &end).is_some()).await;
        ended(&report, &end).unwrap().clone()
    }

    fn log(&self, job: &str) -> String {
        let dir = self.dir.path().join("state/logs").join(job);
        let mut files: Vec<PathBuf> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
    }

    async fn log_has(&self, job: &str, text: &str) {
        for _ in 0..5_000 {
            if self.dir.path().join("state/logs").join(job).exists() && self.log(job).contains(text) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("\"{text}\" was not logged");
    }

    async fn agent_ends(self) {
        let ended = tokio::time::timeout(Duration::from_secs(20), self.agent).await;
        ended.expect("the agent ends").unwrap().unwrap();
    }
}

fn serve(
    listener: TcpListener,
    want: &watch::Sender<NodeWant>,
    heard: &watch::Sender<Option<NodeReport>>,
) -> tokio::task::JoinHandle<()> {
    let service = Dictator { want: want.subscribe(), report: heard.clone(), blob: Bytes::from_static(INPUT) };
    tokio::spawn(async move {
        let access = Access::default();
        let never = std::future::pending();
        serve_coordinator(listener, Arc::new(service), &access, never).await.unwrap();
    })
}

fn ended<'a>(report: &'a NodeReport, wanted: &End) -> Option<&'a WorkerReport> {
    report.workers.iter().find(|w| matches!(&w.process, Process::Exited { end, .. } if end == wanted))
}

fn spec() -> String {
    let spec = JobSpec {
        name: "x".into(),
        model: ModelSpec {
            kind: ModelKind::Mlp { hidden: vec![], activation: elastic_spec::job::Activation::Relu },
            init: None,
            init_sha256: None,
            init_except: vec![],
            freeze: vec![],
        },
        data: DataSpec {
            source: DataSource::Synthetic { samples: 8, features: 2, classes: 2 },
            validation: 0.0,
            sha256: None,
        },
        train: TrainSpec {
            global_batch: 4,
            shards: 1,
            length: Length::Steps(1),
            seed: 0,
            dtype: Dtype::F32,
            optimizer: Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
            lr: 0.1,
            lr_schedule: LrSchedule::Constant { warmup: 0 },
            clip_norm: None,
            non_finite: Default::default(),
            ema: None,
            label_smoothing: 0.0,
            validate_every: 0,
            groups: vec![],
        },
        elastic: ElasticSpec { min_workers: 1, max_workers: 1, reduce: Reduce::Exact, restarts: 1 },
        checkpoint: CheckpointSpec { dir: None, every: 0, keep: 1 },
        resources: ResourceSpec { device: Device::Cpu, threads: 3 },
    };
    spec.canonical_json()
}

/// (slot, attempt) of job `a` at this revision.
fn wants(revision: u64, slots: &[(u16, u32)]) -> NodeWant {
    let launch = Launch {
        spec_json: spec(),
        blobs: vec![("data.csv".into(), Digest::of(INPUT))],
        secret: vec![1],
        run_dir: "/nonexistent".into(),
        program: None,
    };
    let slots: Vec<_> =
        slots.iter().map(|(slot, attempt)| SlotWant { slot: *slot, attempt: *attempt, leave: false }).collect();
    let job = JobWant {
        job: JobId::parse("a").unwrap(),
        config: Digest::of(launch.spec_json.as_bytes()),
        launch,
        slots,
        view: None,
        restarts: 0,
    };
    let jobs = if job.slots.is_empty() { vec![] } else { vec![job] };
    NodeWant { term: Term(1), revision, jobs, acknowledged: vec![] }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_gets_its_environment_and_its_inputs_and_its_end_is_told_until_acknowledged() {
    let script = "echo $ELASTIC_JOB $ELASTIC_SLOT $ELASTIC_THREADS; cat $ELASTIC_BLOBS/*; test -s $ELASTIC_LAUNCH && \
                  test -S $ELASTIC_AGENT_SOCKET && exit 7";
    let mut world = World::new(script, |_| {}).await;
    world.want.send_replace(wants(2, &[(1, 1)]));
    let worker = world.until_ended(End::Code(7)).await;
    assert_eq!((worker.slot, worker.attempt), (1, 1));
    world.log_has("a", "a 1 3\n1,2,3\n").await;
    world.want.send_replace(NodeWant { acknowledged: vec![worker.worker], ..wants(3, &[(1, 1)]) });
    world.until("has forgotten the end", |report| report.workers.is_empty()).await;
    world.want.send_replace(wants(4, &[(1, 2)]));
    assert_eq!(world.until_ended(End::Code(7)).await.attempt, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_no_longer_wanted_gets_sigterm() {
    let mut world = World::new("trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done", |_| {}).await;
    world.want.send_replace(wants(2, &[(0, 1)]));
    world.log_has("a", "up").await;
    world.want.send_replace(wants(3, &[]));
    world.until_ended(End::Code(5)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_older_than_one_that_was_seen_is_ignored() {
    let mut world = World::new("sleep 60", |_| {}).await;
    world.want.send_replace(wants(5, &[(0, 1)]));
    world.until("tells a running worker", |report| report.workers.len() == 1).await;
    world.want.send_replace(wants(4, &[]));
    world.want.send_replace(NodeWant { term: Term(2), ..wants(1, &[(0, 1), (1, 1)]) });
    let report = world.until("tells two workers", |report| report.workers.len() == 2).await;
    assert!(report.workers.iter().all(|w| matches!(w.process, Process::Running { .. })), "{report:?}");
    assert_eq!(report.seen.term, Term(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_input_is_not_to_be_had_is_told_why() {
    let mut world = World::new("true", |_| {}).await;
    let mut want = wants(2, &[(0, 1)]);
    let missing = Digest::of(b"something else");
    want.jobs[0].launch.blobs[0].1 = missing;
    world.want.send_replace(want);
    world.until_ended(End::Unstartable(format!("fetch the input data.csv: no blob {missing}"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_users_program_runs_only_where_that_is_allowed() {
    let program = |revision| {
        let mut want = wants(revision, &[(0, 1)]);
        want.jobs[0].launch.program = Some("/bin/true".into());
        want
    };
    let mut careful = World::new("exit 9", |_| {}).await;
    careful.want.send_replace(program(2));
    let why = "the job wants the program /bin/true started, which this agent does only with --allow-programs";
    careful.until_ended(End::Unstartable(why.into())).await;
    let mut trusting = World::new("exit 9", |config| config.allow_programs = true).await;
    trusting.want.send_replace(program(2));
    trusting.until_ended(End::Code(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_coordinator_is_away_workers_go_on_and_its_successor_learns_their_ends() {
    let mut world = World::new("while ! test -e $ELASTIC_BLOBS/../go; do sleep 0.01; done; exit 4", |_| {}).await;
    world.want.send_replace(wants(2, &[(0, 1)]));
    world.until("tells a running worker", |report| report.workers.len() == 1).await;
    world.coordinator.abort();
    let _ = (&mut world.coordinator).await;
    world.heard.send_replace(None);
    std::fs::write(world.dir.path().join("state/go"), "").unwrap();
    let listener = loop {
        match TcpListener::bind(world.address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    world.coordinator = serve(listener, &world.want, &world.heard);
    world.until_ended(End::Code(4)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_told_and_the_agent_ends_when_its_workers_have_left() {
    let mut world = World::new("trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done", |_| {}).await;
    world.want.send_replace(wants(2, &[(0, 1)]));
    world.log_has("a", "up").await;
    world.stop.take().unwrap().send(()).unwrap();
    world.until("says that it drains", |report| report.draining && !report.workers.is_empty()).await;
    world.want.send_replace(wants(3, &[]));
    world.until_ended(End::Code(5)).await;
    world.agent_ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_that_nobody_answers_ends_within_its_bound() {
    let script = "trap 'exit 5' TERM; echo up; while :; do sleep 0.02; done";
    let mut world = World::new(script, |config| config.drain_within = Duration::from_millis(50)).await;
    world.want.send_replace(wants(2, &[(0, 1)]));
    world.log_has("a", "up").await;
    world.stop.take().unwrap().send(()).unwrap();
    world.until_ended(End::Code(5)).await;
    world.agent_ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_served_and_followed_to_their_end() {
    let script = "echo one; while ! test -e $ELASTIC_BLOBS/../go; do sleep 0.01; done; echo two";
    let mut world = World::new(script, |_| {}).await;
    world.want.send_replace(wants(2, &[(0, 1)]));
    world.log_has("a", "one").await;
    let report = world.until("tells a worker", |report| report.workers.len() == 1).await;
    let stranger = elastic_proto::Credentials::default();
    let logs = elastic_proto::client::NodeLogs::connect(&report.log_address, &stranger).await.unwrap();
    let refused = logs.list(&JobId::parse("a").unwrap()).await.unwrap_err();
    assert!(matches!(refused, Refusal::Unauthenticated(_)), "logs are for whom the agent told its token: {refused}");
    let credentials = elastic_proto::Credentials { token: Some(report.log_token.clone()), ..stranger };
    let logs = elastic_proto::client::NodeLogs::connect(&report.log_address, &credentials).await.unwrap();
    let job = JobId::parse("a").unwrap();
    let files = logs.list(&job).await.unwrap();
    assert_eq!((files.len(), files[0].sealed, files[0].bytes), (1, false, 4));
    let name = files[0].name.clone();
    let mut pieces = logs.read(LogRead { job: job.clone(), name, offset: 0, follow: true }).await.unwrap();
    let mut text = pieces.next().await.unwrap().unwrap().to_vec();
    assert_eq!(text, b"one\n");
    std::fs::write(world.dir.path().join("state/go"), "").unwrap();
    while let Some(piece) = pieces.next().await {
        text.extend_from_slice(&piece.unwrap());
    }
    assert_eq!(text, b"one\ntwo\n");
    let bad = LogRead { job, name: "../../lock".into(), offset: 0, follow: false };
    assert!(logs.read(bad).await.is_err());
    assert!(Path::new(&world.dir.path().join("state/lock")).exists());
}
