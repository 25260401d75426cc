//! What this worker says of itself: the member's view of things, and what trainer and publisher know.

use crate::pool::Shared;
use crate::publisher::{Copy, Failing, Place};
use elastic_member::{Member, Status};
use elastic_spec::facts::{Metrics, Phase, Published, WorkerStatus};
use elastic_spec::limits::STALLS_MAX;
use elastic_spec::{Epoch, Step};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

/// What does not come from the member.
pub struct Speaker {
    pub address: String,
    pub numerics: u64,
    pub shared: Arc<Shared>,
    pub metrics: Arc<Mutex<Option<Metrics>>>,
    pub published: Arc<Mutex<Option<Published>>>,
    pub failing: Failing,
    pub run_dir_id: Option<u64>,
    stalls_ms: VecDeque<u32>,
}

impl Speaker {
    pub fn new(
        blank: &WorkerStatus,
        shared: Arc<Shared>,
        metrics: Arc<Mutex<Option<Metrics>>>,
        published: Arc<Mutex<Option<Published>>>,
    ) -> Speaker {
        let (address, numerics) = (blank.address.clone(), blank.numerics);
        let (failing, run_dir_id, stalls_ms) = (Failing::default(), None, VecDeque::new());
        Speaker { address, numerics, shared, metrics, published, failing, run_dir_id, stalls_ms }
    }

    pub fn stalled(&mut self, ms: u64) {
        self.stalls_ms.truncate(STALLS_MAX.saturating_sub(1));
        self.stalls_ms.push_front(ms.try_into().unwrap_or(u32::MAX));
    }

    /// The last state is published, if not by this worker: its digests are the same here. The writer that cannot see it,
    /// because an earlier writer put it where this node does not look, writes it once more: it lies with the last writer.
    pub fn complete(&self, place: &mut Place, writes_in: Option<Epoch>) {
        let state = self.shared.state.read().expect("the state is whole");
        let mut published = self.published.lock().expect("no one panics with this lock");
        if published.as_ref().is_some_and(|p| p.round == state.round) {
            return;
        }
        let contents = self.shared.job.contents(&state);
        let dir = place.checkpoints.dir().to_path_buf();
        let (step, weights_sha256) = (contents.step, contents.weights_digest());
        // Another's checkpoint may lie where this node cannot see it.
        let there = place.checkpoints.list().unwrap_or_default();
        let there = there.into_iter().find(|c| c.step == step && c.weights_sha256 == Some(weights_sha256));
        if let (None, Some(epoch)) = (&there, writes_in) {
            match place.write(&self.shared.job, &Copy { state: state.clone(), epoch }) {
                Ok(written) => return *published = Some(written),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the last checkpoint lies on another node only")
                }
            }
        }
        let path = there.map_or(dir, |checkpoint| checkpoint.path);
        *published = Some(Published {
            round: state.round,
            step,
            path: path.display().to_string(),
            weights_sha256,
            state_sha256: contents.state_digest(),
        });
    }

    pub fn status(&self, member: &Member) -> WorkerStatus {
        let Status { phase, view, at, progress, waiting_on, lost_peers, .. } = member.status();
        let schedule = self.shared.job.schedule;
        WorkerStatus {
            address: self.address.clone(),
            numerics: self.numerics,
            phase,
            view,
            at,
            step: at.map_or(Step(0), |round| schedule.step_at(round)),
            steps_total: schedule.steps,
            progress: progress + self.shared.progress.load(Ordering::Relaxed),
            waiting_on,
            lost_peers,
            metrics: *self.metrics.lock().expect("no one panics with this lock"),
            published: self.published.lock().expect("no one panics with this lock").clone(),
            error: None,
            stalls_ms: self.stalls_ms.iter().rev().copied().collect(),
            run_dir_id: self.run_dir_id,
            unpublished: self.failing.lock().expect("no one panics with this lock").clone(),
            failure: None,
        }
    }
}

/// The status of a worker that has read nothing yet.
pub fn blank(address: String, numerics: u64) -> WorkerStatus {
    WorkerStatus {
        address,
        numerics,
        phase: Phase::Booting,
        view: None,
        at: None,
        step: Step(0),
        steps_total: 0,
        progress: 0,
        waiting_on: Vec::new(),
        lost_peers: Vec::new(),
        metrics: None,
        published: None,
        error: None,
        stalls_ms: Vec::new(),
        run_dir_id: None,
        unpublished: None,
        failure: None,
    }
}
