//! What Prometheus and probes read of an agent: from its newest report, and from what it counts.

use crate::logs::Shelf;
use elastic_spec::facts::{End, NodeReport, Process};
use elastic_spec::view::exit;
use elastic_web::Routes;
use elastic_web::axum::Router;
use elastic_web::axum::extract::State;
use elastic_web::axum::http::{HeaderMap, StatusCode};
use elastic_web::axum::routing::get;
use elastic_web::metrics::{Counts, Page};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::sync::watch;

/// What is counted where it happens.
#[derive(Debug, Default)]
pub struct Meters {
    /// Whether a coordinator hears this agent.
    pub attached: AtomicBool,
    pub started: AtomicU64,
    /// Of those, later attempts than a slot's first.
    pub restarts: AtomicU64,
    /// Ends of processes, by how.
    pub ends: Counts,
}

/// One word of a list for how a process ended.
pub fn how(end: &End) -> &'static str {
    match end {
        End::Code(exit::DONE) => "done",
        End::Code(exit::DRAINED) => "drained",
        End::Code(exit::USER_ERROR) => "user_error",
        End::Code(exit::JOB_ERROR) => "job_error",
        End::Code(_) => "code",
        End::Signal(_) => "signal",
        End::Unstartable(_) => "unstartable",
    }
}

#[derive(Clone)]
pub struct Seen {
    pub meters: Arc<Meters>,
    pub shelf: Shelf,
    pub reports: watch::Receiver<NodeReport>,
}

impl Seen {
    pub fn routes(self) -> Routes {
        Routes {
            open: Router::new().route("/readyz", get(ready)).with_state(self.clone()),
            guarded: Router::new().route("/metrics", get(scrape)).with_state(self),
        }
    }

    /// Whether this node takes work; if not, why.
    fn readiness(&self) -> Result<(), &'static str> {
        match (self.reports.borrow().draining, self.meters.attached.load(Ordering::Relaxed)) {
            (true, _) => Err("this node drains"),
            (false, false) => Err("no coordinator hears this agent"),
            (false, true) => Ok(()),
        }
    }

    fn write(&self, page: &mut Page) {
        let report = self.reports.borrow().clone();
        let meters = &self.meters;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.gauges("elastic_build_info", "The version of this program.", [(&version[..], 1.0)]);
        let attached = meters.attached.load(Ordering::Relaxed) as u8;
        page.gauge("elastic_agent_attached", "Whether a coordinator hears this agent.", attached);
        page.gauge("elastic_agent_draining", "Whether this node drains.", report.draining as u8);
        page.gauge("elastic_agent_slots", "Workers that may run here at once.", report.slots);
        let is_running = |process: &Process| matches!(process, Process::Running { .. });
        let running = report.workers.iter().filter(|worker| is_running(&worker.process)).count();
        let states = [("running", running), ("ended", report.workers.len() - running)];
        let states = states.map(|(state, count)| ([("state", state)], count as f64));
        let help = "Worker processes; ended: those that the coordinator has not noted yet.";
        page.gauges("elastic_agent_processes", help, states.iter().map(|(labels, count)| (&labels[..], *count)));
        let started = meters.started.load(Ordering::Relaxed);
        page.counter("elastic_agent_processes_started_total", "Worker processes started.", started);
        let restarts = meters.restarts.load(Ordering::Relaxed);
        page.counter("elastic_agent_restarts_total", "Started in a slot that had one before.", restarts);
        page.counts("elastic_agent_process_ends_total", "Ends of worker processes.", ["how", ""], &meters.ends);
        let (bytes, dropped) = self.shelf.counted();
        page.counter("elastic_agent_log_bytes_total", "Bytes of workers' output that were kept.", bytes);
        page.counter("elastic_agent_log_lines_dropped_total", "Lines that could not be kept.", dropped);
    }
}

/// For probes: a rollout of agents waits for it. Work that is under way does not depend on it.
async fn ready(State(seen): State<Seen>) -> (StatusCode, String) {
    match seen.readiness() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

async fn scrape(State(seen): State<Seen>, headers: HeaderMap) -> Page {
    let mut page = Page::for_caller(&headers);
    seen.write(&mut page);
    page
}
