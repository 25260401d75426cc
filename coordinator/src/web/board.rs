//! What the page shows, looked at twice a second: the newest state of all jobs and nodes, and each job's curve.
//!
//! A look is one value that all readers share. Each reader is sent what differs from the look that it was sent
//! last, so a slow one misses looks and costs no memory.

use super::curve::Curve;
use super::diary::Diary;
use crate::clock::unix_ms;
use crate::service::Service;
use elastic_proto::server::Api;
use elastic_spec::api::{Health, JobStatus, NodeStatus};
use elastic_spec::{JobId, NodeId, json as words};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// Everything at one moment.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// Rises with each look.
    pub tick: u64,
    pub health: Arc<str>,
    pub jobs: BTreeMap<JobId, Arc<Shown>>,
    pub nodes: BTreeMap<NodeId, Arc<str>>,
}

/// A job, as status and as JSON.
#[derive(Debug)]
pub(crate) struct Shown {
    status: JobStatus,
    pub whole: Arc<str>,
    /// Without members: for the list.
    pub short: Arc<str>,
}

pub(crate) struct Board {
    service: Arc<Service>,
    pub diary: Arc<Diary>,
    curves: Mutex<BTreeMap<JobId, Curve>>,
    newest: watch::Sender<Arc<Look>>,
}

impl Board {
    pub fn new(service: Arc<Service>, diary: Arc<Diary>) -> Board {
        Board { service, diary, curves: Mutex::default(), newest: watch::Sender::new(Arc::default()) }
    }

    pub fn looks(&self) -> watch::Receiver<Arc<Look>> {
        self.newest.subscribe()
    }

    pub fn points(&self, job: &JobId, since: u64) -> Vec<Value> {
        self.curves().get(job).map(|curve| curve.since(since)).unwrap_or_default()
    }

    fn curves(&self) -> MutexGuard<'_, BTreeMap<JobId, Curve>> {
        self.curves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks for as long as it is polled.
    pub async fn run(&self) -> std::convert::Infallible {
        loop {
            let begun = Instant::now();
            self.look().await;
            // However many jobs there are, most of the leader's time is for deciding.
            tokio::time::sleep(PERIOD.max(begun.elapsed() * COST_SHARE)).await;
        }
    }

    async fn look(&self) {
        let last = self.newest.borrow().clone();
        let health = self.service.health().await;
        // A standby, or a leader that ends just now, has none.
        let jobs = self.service.jobs().await.unwrap_or_default();
        let nodes = self.service.nodes().await.unwrap_or_default();
        let look = self.next(&last, &health, jobs, nodes);
        self.newest.send_replace(Arc::new(look));
    }

    fn next(&self, last: &Look, health: &Health, mut jobs: Vec<JobStatus>, mut nodes: Vec<NodeStatus>) -> Look {
        let tick = last.tick + 1;
        // In ms each look would differ from the last.
        jobs.iter_mut().flat_map(|job| &mut job.members).for_each(|member| in_seconds(&mut member.silent_ms));
        nodes.iter_mut().for_each(|node| in_seconds(&mut node.silent_ms));
        let known: BTreeSet<&JobId> = jobs.iter().map(|job| &job.job).collect();
        self.diary.keep(&known);
        let mut curves = self.curves();
        curves.retain(|job, _| known.contains(job));
        for job in jobs.iter().filter(|job| job.metrics.is_some()) {
            curves.entry(job.job.clone()).or_default().look(job, tick, unix_ms());
        }
        drop(known);
        drop(curves);
        let shown = |status: JobStatus| match last.jobs.get(&status.job) {
            Some(same) if same.status == status => (status.job, same.clone()),
            _ => (status.job.clone(), Arc::new(Shown::new(status))),
        };
        Look {
            tick,
            health: about(health).to_string().into(),
            jobs: jobs.into_iter().map(shown).collect(),
            nodes: nodes.iter().map(|node| (node.node.clone(), words::node(node).to_string().into())).collect(),
        }
    }
}

impl Shown {
    fn new(status: JobStatus) -> Shown {
        let mut value = words::job(&status);
        let whole = value.to_string().into();
        let active = status.members.iter().filter(|m| m.rank.is_some()).count();
        value["workers"] = active.into();
        for heavy in ["members", "stalls_ms", "published", "unpublished"] {
            value.as_object_mut().expect("a job is an object").remove(heavy);
        }
        Shown { status, whole, short: value.to_string().into() }
    }
}

fn in_seconds(silent_ms: &mut u64) {
    *silent_ms = *silent_ms / 1000 * 1000;
}

pub(crate) fn about(health: &Health) -> Value {
    json!({
        "leads": health.leads.is_some(),
        "term": health.leads,
        "leader": health.leader,
        "store_away": health.store_away,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

const PERIOD: Duration = Duration::from_millis(500);
/// The pause after a look is at least so many times its own time.
const COST_SHARE: u32 = 20;
