//! What the CLI asks of a coordinator and what it is told.

use crate::facts::{Metrics, Published};
use crate::ids::{Digest, Epoch, JobId, NodeId, Rank, Round, Step, WorkerId};
use crate::view::Role;

#[derive(Clone, Debug, PartialEq)]
pub struct Submit {
    /// The resolved spec, canonical JSON.
    pub spec_json: String,
    /// (path in the spec, digest) of the inputs uploaded before.
    pub blobs: Vec<(String, Digest)>,
    /// Take up this run's checkpoints instead of starting at step 0.
    pub resume: Option<JobId>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct JobStatus {
    pub job: JobId,
    pub name: String,
    pub state: JobState,
    /// Why it is in that state, in words ("waits for 2 of min_workers = 3").
    pub reason: String,
    pub epoch: Option<Epoch>,
    pub members: Vec<MemberStatus>,
    pub round: Round,
    pub step: Step,
    pub steps_total: u64,
    pub metrics: Option<Metrics>,
    pub samples_per_second: f64,
    /// Attempts of slots that were started again after a fault.
    pub restarts: u32,
    /// Views so far.
    pub views: u64,
    pub last_fault: Option<Fault>,
    pub published: Option<Published>,
    pub run_dir: String,
    pub min_workers: u16,
    pub max_workers: u16,
    pub stalls_ms: Vec<u32>,
    pub submitted_unix_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for nodes, or for its workers to start.
    Pending,
    Running,
    /// Below `min_workers`: its state is held.
    Paused,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobState {
    pub fn is_over(self) -> bool {
        matches!(self, JobState::Succeeded | JobState::Failed | JobState::Cancelled)
    }
    pub fn as_str(self) -> &'static str {
        match self {
            JobState::Pending => "pending",
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Succeeded => "succeeded",
            JobState::Failed => "failed",
            JobState::Cancelled => "cancelled",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct MemberStatus {
    pub worker: WorkerId,
    pub node: NodeId,
    pub slot: u16,
    pub rank: Option<Rank>,
    pub role: Option<Role>,
    pub round: Option<Round>,
    pub silent_ms: u64,
    pub shards: u16,
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Fault {
    pub unix_ms: u64,
    pub node: NodeId,
    pub worker: WorkerId,
    /// "killed by signal 9", "silent for 1200 ms", "no progress for 8 s while others waited", …
    pub cause: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeStatus {
    pub node: NodeId,
    pub host: String,
    pub slots: u16,
    pub used: u16,
    pub draining: bool,
    pub silent_ms: u64,
    pub jobs: Vec<JobId>,
    pub strikes: u32,
}
