//! The node's one loop: facts come in, `converge` decides, processes and orders change, a report goes up.
//!
//! All of the node's state is here and only this loop changes it. Talking to the coordinator is `link`'s
//! business, to workers `desk`'s; how a process is started and ended `process`'.

use crate::converge::{self, Action, Life, Observed, Place, Situation, Stance};
use crate::desk::{Desk, Said, What};
use crate::identity::Identity;
use crate::inputs::{self, Inputs};
use crate::logs::{Series, Shelf, Standing};
use crate::metrics::{Meters, how};
use crate::process::{self, Group};
use crate::{AgentConfig, launch, random};
use anyhow::Result;
use elastic_spec::facts::{End, NodeReport, NodeWant, Process, WorkerReport, WorkerStatus};
use elastic_spec::limits::{BEAT_MS, GRACE_MS};
use elastic_spec::view::WorkerOrder;
use elastic_spec::{Epoch, JobId, WorkerId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

/// While it drains, a node that no coordinator answers waits so long for one before it stops its workers.
const LONELY: Duration = Duration::from_secs(5);

/// The last words of a worker that has ended are waited for, so long at most: until its connection ends,
/// which it does at once, but what it said may lie unread while this agent is stopped or starved.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// And so long for one that never spoke: it may have died before it could connect.
const FIRST_WORDS: Duration = Duration::from_millis(100);

/// What comes from the coordinator's side.
#[derive(Debug)]
pub enum FromAbove {
    Want(Box<NodeWant>),
    Attached,
    Detached,
}

/// Where the loop hears from the others, and where its report goes.
pub struct Lines {
    pub above: mpsc::Receiver<FromAbove>,
    pub said: mpsc::Receiver<Said>,
    pub report: watch::Sender<NodeReport>,
}

pub struct Node {
    config: AgentConfig,
    identity: Identity,
    desk: Desk,
    shelf: Shelf,
    clock: Instant,
    stance: Stance,
    stance_since: Instant,
    detached_since: Option<Instant>,
    want: Option<NodeWant>,
    workers: BTreeMap<WorkerId, Worker>,
    started: BTreeMap<Place, u32>,
    /// The files of each wanted job, as far as they are here.
    inputs: BTreeMap<JobId, Inputs>,
    fetches: JoinSet<(JobId, Result<inputs::Files, String>)>,
    ends: JoinSet<(WorkerId, End)>,
    log_address: String,
    meters: Arc<Meters>,
    /// Something happened that the coordinator should not learn only at the next beat.
    urgent: bool,
}

/// A worker process, or the end of one.
struct Worker {
    place: Place,
    attempt: u32,
    life: Life,
    /// None for one that could not be started.
    group: Option<Group>,
    end: Option<End>,
    /// Its process has ended; it becomes `end` when all that it said was heard.
    ended: Option<(Instant, End)>,
    hung_up: bool,
    heard: Instant,
    status: Option<WorkerStatus>,
    orders: watch::Sender<WorkerOrder>,
    standing: watch::Sender<Standing>,
}

impl Node {
    pub fn new(
        config: AgentConfig,
        identity: Identity,
        desk: Desk,
        shelf: Shelf,
        log_address: String,
        meters: Arc<Meters>,
    ) -> Node {
        let now = Instant::now();
        Node {
            config,
            identity,
            desk,
            shelf,
            clock: now,
            stance: Stance::Serving,
            stance_since: now,
            detached_since: Some(now),
            want: None,
            workers: BTreeMap::new(),
            started: BTreeMap::new(),
            inputs: BTreeMap::new(),
            fetches: JoinSet::new(),
            ends: JoinSet::new(),
            log_address,
            meters,
            urgent: false,
        }
    }

    /// Runs until `shutdown` and the drain after it are over.
    pub async fn run(mut self, mut lines: Lines, shutdown: impl Future<Output = ()>) {
        tokio::pin!(shutdown);
        let mut beat = tokio::time::interval(Duration::from_millis(BEAT_MS));
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(above) = lines.above.recv() => self.hear_above(above),
                Some(said) = lines.said.recv() => self.hear_worker(said),
                Some(Ok((worker, end))) = self.ends.join_next() => self.note_end(worker, end),
                Some(Ok((job, fetched))) = self.fetches.join_next() => self.note_fetched(job, fetched),
                () = &mut shutdown, if self.stance == Stance::Serving => self.set_stance(Stance::Draining),
                _ = beat.tick() => self.urgent = true,
            }
            self.settle_ends();
            self.close_when_alone();
            self.act();
            if std::mem::take(&mut self.urgent) {
                lines.report.send_replace(self.report());
            }
            if self.stance != Stance::Serving && self.living() == 0 {
                lines.report.send_replace(self.report());
                return;
            }
        }
    }

    /// The first report, before anything has happened.
    pub fn report(&self) -> NodeReport {
        NodeReport {
            node: self.identity.node.clone(),
            incarnation: self.identity.incarnation,
            slots: self.config.slots,
            host: self.config.advertise.clone(),
            log_address: self.log_address.clone(),
            log_token: self.config.access.token.clone().unwrap_or_default(),
            draining: self.stance != Stance::Serving,
            seen: self.want.as_ref().map_or(self.identity.seen(), |w| Epoch::new(w.term.0, w.revision)),
            workers: self.workers.iter().map(|(id, worker)| worker.report(*id)).collect(),
        }
    }

    fn hear_above(&mut self, above: FromAbove) {
        match above {
            FromAbove::Attached => self.detached_since = None,
            FromAbove::Detached => self.detached_since = Some(Instant::now()),
            FromAbove::Want(want) => self.take_want(*want),
        }
        self.meters.attached.store(self.detached_since.is_none(), Ordering::Relaxed);
        self.urgent = true;
    }

    fn take_want(&mut self, want: NodeWant) {
        let last = self.want.as_ref().map(|w| (w.term, w.revision));
        if want.term < self.identity.seen().term || last.is_some_and(|last| (want.term, want.revision) < last) {
            debug!(term = %want.term, revision = want.revision, ?last, "an older want was ignored");
            return;
        }
        self.identity.see(want.term);
        let observed = self.observed();
        converge::remember(&mut self.started, &want, &observed);
        self.inputs.retain(|job, _| want.jobs.iter().any(|j| j.job == *job));
        for (id, worker) in &self.workers {
            // A slot that is no longer named keeps its last order until it ends.
            let Some(order) = want.order_for(&worker.place.0, worker.place.1) else { continue };
            worker.give(*id, order);
        }
        self.want = Some(want);
    }

    fn hear_worker(&mut self, said: Said) {
        let Some(worker) = self.workers.get_mut(&said.worker) else { return };
        let status = match said.what {
            What::Status(status) => *status,
            What::HungUp => {
                worker.hung_up = true;
                return;
            }
        };
        worker.heard = Instant::now();
        self.urgent |= worker.status.as_ref().is_none_or(|last| is_news(last, &status));
        worker.status = Some(status);
    }

    /// Its seat stays until the end is settled: a hello that was sent may still be on its way to the desk.
    fn note_end(&mut self, id: WorkerId, end: End) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.ended = Some((Instant::now(), end));
        }
    }

    /// An end counts when the worker's last words were heard, which say why, or that the job is finished.
    fn settle_ends(&mut self) {
        for (id, worker) in &mut self.workers {
            let patience = if worker.status.is_some() { LAST_WORDS } else { FIRST_WORDS };
            let Some((_, end)) = worker.ended.take_if(|(at, _)| worker.hung_up || at.elapsed() >= patience) else {
                continue;
            };
            self.desk.close(*id);
            let why = worker.status.as_ref().and_then(|status| status.error.as_deref());
            info!(worker = %id, job = %worker.place.0, slot = worker.place.1, ?end, why, "worker ended");
            self.meters.ends.add([how(&end), ""], 1);
            worker.life = Life::Ended;
            worker.end = Some(end);
            worker.group = None;
            self.urgent = true;
        }
    }

    fn note_fetched(&mut self, job: JobId, fetched: Result<inputs::Files, String>) {
        if let Some(inputs) = self.inputs.get_mut(&job) {
            *inputs = match fetched {
                Ok(files) => Inputs::Ready(files),
                Err(why) => Inputs::Refused(why),
            };
        }
    }

    fn act(&mut self) {
        let observed = self.observed();
        let situation = Situation {
            stance: self.stance,
            want: self.want.as_ref(),
            processes: &observed,
            started: &self.started,
            grace_ms: GRACE_MS,
        };
        for action in converge::converge(self.now_ms(), situation) {
            match action {
                Action::Spawn { place, attempt } => self.start_when_ready(place, attempt),
                Action::Terminate(id) => self.signal(id, Life::Terminated { since_ms: self.now_ms() }),
                Action::Kill(id) => self.signal(id, Life::Killed),
                Action::Forget(id) => {
                    self.workers.remove(&id);
                }
            }
        }
    }

    fn signal(&mut self, id: WorkerId, life: Life) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        worker.life = life;
        match (&worker.group, life) {
            (Some(group), Life::Killed) => group.kill(),
            (Some(group), _) => group.terminate(),
            (None, _) => {}
        }
    }

    /// Starts the process if the job's inputs are here; else sees to it that they come.
    fn start_when_ready(&mut self, place: Place, attempt: u32) {
        let files = match self.inputs.get(&place.0) {
            Some(Inputs::Coming) => return,
            Some(Inputs::Ready(files)) => Ok(files.clone()),
            Some(Inputs::Refused(why)) => Err(why.clone()),
            None => return self.fetch(&place.0),
        };
        if files.is_err() {
            // Another attempt fetches anew.
            self.inputs.remove(&place.0);
        }
        let id = match random() {
            Ok(id) => WorkerId(id),
            Err(error) => {
                warn!(error = format!("{error:#}"), "cannot name a worker, so none is started");
                return;
            }
        };
        self.started.insert(place.clone(), attempt);
        let order = self.want.as_ref().and_then(|w| w.order_for(&place.0, place.1));
        let (orders, receiver) = watch::channel(order.unwrap_or(WorkerOrder { view: None, leave: false, restarts: 0 }));
        let (standing, _) = watch::channel(Standing::default());
        let heard = Instant::now();
        let mut worker = Worker {
            place,
            attempt,
            life: Life::Running,
            group: None,
            end: None,
            ended: None,
            hung_up: false,
            heard,
            status: None,
            orders,
            standing,
        };
        match files.map_err(anyhow::Error::msg).and_then(|files| self.start(id, &worker, files, receiver)) {
            Ok(group) => {
                let (job, slot) = &worker.place;
                info!(worker = %id, %job, slot, attempt, pid = group.pid(), "worker started");
                worker.group = Some(group);
                self.meters.started.fetch_add(1, Ordering::Relaxed);
                self.meters.restarts.fetch_add(u64::from(attempt > 0), Ordering::Relaxed);
            }
            Err(error) => {
                let why = format!("{error:#}");
                warn!(job = %worker.place.0, slot = worker.place.1, attempt, error = why, "worker not started");
                self.meters.ends.add(["unstartable", ""], 1);
                worker.life = Life::Ended;
                worker.end = Some(End::Unstartable(why));
            }
        }
        self.workers.insert(id, worker);
        self.urgent = true;
    }

    fn start(
        &mut self,
        id: WorkerId,
        worker: &Worker,
        files: inputs::Files,
        orders: watch::Receiver<WorkerOrder>,
    ) -> Result<Group> {
        let token = format!("{:016x}{:016x}", random()?, random()?);
        let start = launch::Start { worker: id, place: &worker.place, token: &token, files: &files };
        let program = launch::program(&self.config, self.desk.path(), &start)?;
        let dir = launch::log_dir(&self.config, &worker.place.0, &files.launch);
        self.shelf.put(&worker.place.0, dir.clone());
        let series = Series {
            dir,
            slot: worker.place.1,
            attempt: worker.attempt,
            bounds: self.config.log_bounds,
            shelf: self.shelf.clone(),
            says_standing: program.keeps.is_some(),
        };
        // Before the process exists: it may speak sooner than this function returns.
        self.desk.expect(id, token, orders);
        let (group, ended) =
            process::start(&program, series, worker.standing.subscribe()).inspect_err(|_| self.desk.close(id))?;
        self.ends.spawn(async move { (id, ended.await) });
        Ok(group)
    }

    fn fetch(&mut self, job: &JobId) {
        let want = self.want.as_ref().and_then(|w| w.jobs.iter().find(|j| j.job == *job));
        let Some(want) = want else { return };
        self.inputs.insert(job.clone(), Inputs::Coming);
        let fetch = inputs::fetch(self.config.clone(), job.clone(), want.launch.clone());
        let job = job.clone();
        self.fetches.spawn(async move { (job, fetch.await.map_err(|e| format!("{e:#}"))) });
    }

    fn set_stance(&mut self, stance: Stance) {
        info!(?stance, workers = self.living(), "this node leaves");
        self.stance = stance;
        self.stance_since = Instant::now();
        self.urgent = true;
    }

    /// A drain has a bound, and a shorter one if nobody is there to move the work.
    fn close_when_alone(&mut self) {
        if self.stance != Stance::Draining {
            return;
        }
        let lonely = self.detached_since.is_some_and(|since| since.max(self.stance_since).elapsed() > LONELY);
        if lonely || self.stance_since.elapsed() > self.config.drain_within {
            self.set_stance(Stance::Closing);
        }
    }

    fn observed(&self) -> Vec<Observed> {
        let observe = |(id, worker): (&WorkerId, &Worker)| Observed {
            worker: *id,
            place: worker.place.clone(),
            attempt: worker.attempt,
            life: worker.life,
        };
        self.workers.iter().map(observe).collect()
    }

    fn living(&self) -> usize {
        self.workers.values().filter(|w| w.life != Life::Ended).count()
    }

    fn now_ms(&self) -> u64 {
        self.clock.elapsed().as_millis() as u64
    }
}

/// An agent that is dropped in the middle, as a test's may be, leaves no process behind.
impl Drop for Node {
    fn drop(&mut self) {
        self.workers.values().filter_map(|worker| worker.group.as_ref()).for_each(Group::kill);
    }
}

impl Worker {
    /// Its log is filed under the view that it was told of, before it can print anything about it.
    fn give(&self, id: WorkerId, order: WorkerOrder) {
        let view = order.view.as_ref().filter(|view| view.member(id).is_some());
        let standing = Standing { view: view.map(|view| view.epoch), rank: view.and_then(|view| view.rank_of(id)) };
        self.standing.send_if_modified(|last| std::mem::replace(last, standing) != standing);
        self.orders.send_if_modified(|last| std::mem::replace(last, order.clone()) != order);
    }

    fn report(&self, id: WorkerId) -> WorkerReport {
        let status = self.status.clone();
        let process = match &self.end {
            Some(end) => Process::Exited { end: end.clone(), status },
            None => Process::Running { silent_ms: self.heard.elapsed().as_millis() as u64, status },
        };
        let (job, slot) = self.place.clone();
        WorkerReport { job, slot, attempt: self.attempt, worker: id, process }
    }
}

/// Whether the coordinator may act on the difference; a step more is told with the next beat.
fn is_news(last: &WorkerStatus, now: &WorkerStatus) -> bool {
    let view = |status: &WorkerStatus| status.view.as_ref().map(|v| v.epoch);
    last.phase != now.phase
        || view(last) != view(now)
        || last.address != now.address
        || last.lost_peers != now.lost_peers
        || last.published != now.published
        || last.error != now.error
        || last.failure.is_some() != now.failure.is_some()
        || last.at.is_some() != now.at.is_some()
}
