//! Coordinators in runtimes of their own, and agents that do as they are told without a process.

use elastic_coordinator::Config;
use elastic_coordinator::store::Store;
use elastic_proto::client::Coordinator;
use elastic_proto::server::Flow;
use elastic_proto::{Access, Credentials, Refusal};
use elastic_spec::api::{JobStatus, Submit};
use elastic_spec::facts::{End, NodeReport, NodeWant, Phase, Process, WorkerReport, WorkerStatus};
use elastic_spec::job::{ParseContext, parse};
use elastic_spec::{Epoch, JobId, NodeId, Round, Step, WorkerId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

pub struct Running {
    pub address: String,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
    ended: std::sync::mpsc::Receiver<anyhow::Result<()>>,
}

pub fn config(address: &str) -> Config {
    Config {
        advertise: address.to_string(),
        runs: "/runs".into(),
        access: Access::default(),
        credentials: Credentials::default(),
        control: elastic_control::Config::default(),
    }
}

/// A coordinator on a free port.
pub fn start(store: Arc<dyn Store>) -> Running {
    start_with(store, |_| {})
}

pub fn start_with(store: Arc<dyn Store>, change: impl FnOnce(&mut Config)) -> Running {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("an address").to_string();
    let mut config = config(&address);
    change(&mut config);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, ended) = std::sync::mpsc::channel();
    runtime.spawn(async move {
        let listener = TcpListener::from_std(listener).expect("a listener");
        let result = elastic_coordinator::serve(listener, store, config, async { drop(stopped.await) }).await;
        let _ = tell.send(result);
    });
    Running { address, runtime: Some(runtime), stop: Some(stop), ended }
}

impl Running {
    /// Ends it in good order.
    pub fn stop(mut self) {
        drop(self.stop.take());
        let result = self.ended.recv_timeout(Duration::from_secs(10)).expect("it stops in time");
        result.expect("it stops in good order");
    }

    /// All its tasks are gone at once, in the middle of whatever they did.
    pub fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Tries until `attempt` gives something.
pub async fn eventually<T, F: Future<Output = Option<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = attempt().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}: not within 20 s");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

pub async fn leader(address: &str) -> Coordinator {
    leader_with(address, &Credentials::default()).await
}

pub async fn leader_with(address: &str, credentials: &Credentials) -> Coordinator {
    let urls = [address.to_string()];
    let urls = &urls;
    eventually("a leader", || async move { Coordinator::connect_leader(urls, credentials).await.ok() }).await
}

pub fn submission(name: &str) -> Submit {
    let text = "[model]\nkind = \"mlp\"\nhidden = [8]\n[data]\nkind = \"synthetic\"\nsamples = 64\nfeatures = 4\n\
                classes = 2\n[train]\nglobal_batch = 32\nsteps = 10\nlr = 0.1\n[elastic]\nmin_workers = 1\n\
                max_workers = 2\n";
    let context = ParseContext { file: "job.toml".into(), base_dir: "/jobs".into(), ..ParseContext::default() };
    let mut spec = parse(text, &context).expect("a good job file").spec;
    spec.name = name.into();
    Submit { spec_json: spec.canonical_json(), blobs: Vec::new(), resume: None }
}

pub fn report(node: &str) -> NodeReport {
    NodeReport {
        node: NodeId::parse(node).expect("a name"),
        incarnation: 7,
        slots: 2,
        host: "127.0.0.1".into(),
        log_address: "127.0.0.1:1".into(),
        log_token: String::new(),
        draining: false,
        seen: Epoch::default(),
        workers: Vec::new(),
    }
}

/// An agent whose workers are made of words.
pub struct Agent {
    report: watch::Sender<NodeReport>,
    wants: Flow<NodeWant>,
    pub want: NodeWant,
}

impl Agent {
    pub async fn attach(coordinator: &Coordinator, first: NodeReport) -> Result<Agent, Refusal> {
        let (report, mut newest) = watch::channel(first);
        let (up, reports) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let now = newest.borrow_and_update().clone();
                if up.send(now).await.is_err() {
                    return;
                }
                // Every beat and on change, as the real one.
                if let Ok(Err(_)) = tokio::time::timeout(Duration::from_millis(100), newest.changed()).await {
                    return;
                }
            }
        });
        let wants = coordinator.attach(ReceiverStream::new(reports)).await?;
        let want = NodeWant { term: Default::default(), revision: 0, jobs: vec![], acknowledged: vec![] };
        Ok(Agent { report, wants, want })
    }

    pub fn report(&self) -> NodeReport {
        self.report.borrow().clone()
    }

    pub fn change(&self, change: impl FnOnce(&mut NodeReport)) {
        self.report.send_modify(change);
    }

    /// The next want; `None` when the stream ended in order.
    pub async fn next(&mut self) -> Result<Option<NodeWant>, Refusal> {
        let next = tokio::time::timeout(Duration::from_secs(20), self.wants.next()).await;
        match next.expect("a want within 20 s").transpose()? {
            None => Ok(None),
            Some(want) => {
                self.want = want.clone();
                self.change(|r| r.seen = Epoch::new(want.term.0, want.revision));
                Ok(Some(want))
            }
        }
    }

    /// Obeys wants until one is as wished.
    pub async fn obey_until(&mut self, what: &str, wished: impl Fn(&NodeWant) -> bool) -> NodeWant {
        for _ in 0..200 {
            if wished(&self.want) {
                return self.want.clone();
            }
            let want = self.next().await.unwrap_or_else(|e| panic!("{what}: {e}"));
            let want = want.unwrap_or_else(|| panic!("{what}: the stream ended"));
            self.change(|report| obey(report, &want));
        }
        panic!("{what}: not within 200 wants; the last: {:?}", self.want);
    }

    /// All workers have done the whole job and are gone.
    pub fn finish(&self) {
        self.change(|report| {
            for worker in &mut report.workers {
                if let Process::Running { status: Some(status), .. } = &worker.process {
                    let mut status = status.clone();
                    status.phase = Phase::Finished;
                    status.step = Step(status.steps_total);
                    worker.process = Process::Exited { end: End::Code(0), status: Some(status) };
                }
            }
        });
    }
}

/// One worker for each wanted slot, active in the wanted view; acknowledged ends are forgotten.
fn obey(report: &mut NodeReport, want: &NodeWant) {
    report.workers.retain(|w| !want.acknowledged.contains(&w.worker));
    for job in &want.jobs {
        for slot in &job.slots {
            let is_there = |w: &WorkerReport| w.job == job.job && w.slot == slot.slot && w.attempt == slot.attempt;
            if !report.workers.iter().any(is_there) {
                let worker = WorkerId(report.incarnation << 32 | u64::from(slot.slot) << 16 | u64::from(slot.attempt));
                let process = Process::Running { silent_ms: 0, status: Some(ready(9000 + slot.slot)) };
                let (job, slot, attempt) = (job.job.clone(), slot.slot, slot.attempt);
                report.workers.push(WorkerReport { job, slot, attempt, worker, process });
            }
        }
        let Some(view) = &job.view else { continue };
        for worker in report.workers.iter_mut().filter(|w| w.job == job.job) {
            if let Process::Running { status: Some(status), .. } = &mut worker.process
                && view.rank_of(worker.worker).is_some()
            {
                (status.phase, status.view, status.at) = (Phase::Active, Some(view.clone()), Some(Round(0)));
            }
        }
    }
}

fn ready(port: u16) -> WorkerStatus {
    WorkerStatus {
        address: format!("127.0.0.1:{port}"),
        numerics: 1,
        phase: Phase::Ready,
        view: None,
        at: Some(Round(0)),
        step: Step(0),
        steps_total: 10,
        progress: 0,
        waiting_on: vec![],
        lost_peers: vec![],
        metrics: None,
        published: None,
        error: None,
        stalls_ms: vec![],
        run_dir_id: None,
        unpublished: None,
        failure: None,
    }
}

pub async fn status_when(
    coordinator: &Coordinator,
    job: &JobId,
    what: &str,
    wished: impl Fn(&JobStatus) -> bool,
) -> JobStatus {
    let wished = &wished;
    eventually(what, || async move { coordinator.status(job).await.ok().filter(|status| wished(status)) }).await
}
