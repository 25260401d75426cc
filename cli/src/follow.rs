//! Watches a job to its end, wherever it runs.

use crate::progress::Progress;
use crate::reach::Cluster;
use anyhow::{Result, anyhow};
use elastic_proto::Refusal;
use elastic_proto::client::Coordinator;
use elastic_spec::JobId;
use elastic_spec::api::JobStatus;
use std::time::{Duration, Instant};

/// While nothing has happened yet, and then.
const FIRST_EVERY: Duration = Duration::from_millis(10);
const EVERY: Duration = Duration::from_millis(100);
/// For a coordinator that is away.
const AGAIN_EVERY: Duration = Duration::from_millis(500);

pub struct Follow {
    pub cluster: Cluster,
    pub job: JobId,
    pub since: Instant,
    pub first_step_ms: Option<u64>,
    pub progress: Progress,
}

impl Follow {
    /// `since`: when the work began that the user waits for.
    pub fn new(cluster: Cluster, job: JobId, since: Instant) -> Follow {
        Follow { cluster, job, since, first_step_ms: None, progress: Progress::new() }
    }

    /// Returns the status of the job when it is over. A coordinator that is away is waited for.
    pub async fn until_end(&mut self, coordinator: &Coordinator) -> Result<JobStatus> {
        let mut coordinator = coordinator.clone();
        let mut away = false;
        let mut first_step = None;
        loop {
            match coordinator.status(&self.job).await {
                Ok(status) => {
                    if std::mem::take(&mut away) {
                        self.progress.say("the coordinator is back");
                    }
                    let began = *first_step.get_or_insert(status.step);
                    if self.first_step_ms.is_none() && status.step > began {
                        self.first_step_ms = Some(self.since.elapsed().as_millis() as u64);
                    }
                    self.progress.show(&status);
                    if status.state.is_over() {
                        self.progress.finish();
                        return Ok(status);
                    }
                }
                Err(refusal) if refusal.is_passing() => {
                    if !std::mem::replace(&mut away, true) {
                        self.progress.say(&format!("the coordinator is away ({refusal}); the job goes on"));
                    }
                    if let Ok(found) = self.cluster.connect().await {
                        coordinator = found;
                    }
                    tokio::time::sleep(AGAIN_EVERY).await;
                    continue;
                }
                Err(Refusal::NotFound(_)) => return Err(anyhow!("the coordinator has forgotten job {}", self.job)),
                Err(refusal) => return Err(refusal.into()),
            }
            tokio::time::sleep(if self.first_step_ms.is_some() { EVERY } else { FIRST_EVERY }).await;
        }
    }
}
