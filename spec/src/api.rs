//! What the CLI asks of a coordinator and what it is told.

use crate::access;
use crate::facts::{Metrics, Published, Unpublished};
use crate::ids::{Digest, Epoch, Gen, JobId, NodeId, Rank, Round, Step, Term, TokenName, WorkerId};
use crate::view::Role;
use bytes::Bytes;

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
    /// The node that holds `published`, as far as known.
    pub published_on: Option<NodeId>,
    /// Which nodes see different run directories, in words; none: as far as known all see the same.
    pub run_dir_differs: Option<String>,
    /// The writer's checkpoints do not come off: its node, and why.
    pub unpublished: Option<(NodeId, Unpublished)>,
    /// Of a command that is over: the code that its root cause ended with, 128 and the number of a signal.
    pub exit_code: Option<u8>,
    /// Of a command that failed: the error file of its root cause; JSON. Not known to a coordinator that came later.
    pub error_file: Option<String>,
    /// The job runs a command.
    pub is_command: bool,
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

/// New bounds of a job's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    pub job: JobId,
    pub min_workers: u16,
    pub max_workers: u16,
}

/// Asks for a token; what it is shows once, in the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MakeToken {
    pub name: TokenName,
    pub role: access::Role,
    pub ttl_ms: u64,
}

/// What is shown of a token: all but the digest.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TokenInfo {
    pub name: TokenName,
    pub role: access::Role,
    pub made_unix_ms: u64,
    pub expires_unix_ms: u64,
}

/// How a coordinator process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// None: it is a standby.
    pub leads: Option<Term>,
    /// Where the leader is, as far as this one knows.
    pub leader: Option<String>,
    /// Why the store cannot be written at present; views are served all the same.
    pub store_away: Option<String>,
}

/// Which logs of a job are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsQuery {
    pub job: JobId,
    /// None: those of every rank.
    pub rank: Option<Rank>,
    /// None: those of every generation.
    pub gen_: Option<Gen>,
    /// Go on as they grow, until the caller hangs up or the job is over.
    pub follow: bool,
}

/// One log that an agent keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogFile {
    /// The view in force when it was opened; None: the worker was in none yet.
    pub epoch: Option<Epoch>,
    pub rank: Option<Rank>,
    pub slot: u16,
    pub attempt: u32,
    /// The agent's own name for it, to be given back when it is read.
    pub name: String,
    pub bytes: u64,
    /// Nothing will be added to it.
    pub sealed: bool,
}

/// Asks an agent for a log from a byte on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRead {
    pub job: JobId,
    pub name: String,
    pub offset: u64,
    /// Go on as it grows, until it is sealed.
    pub follow: bool,
}

/// A piece of a job's logs, in the order of its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogPiece {
    Text {
        node: NodeId,
        rank: Option<Rank>,
        slot: u16,
        text: Bytes,
    },
    /// A node's logs, or some of them, could not be read.
    Missing {
        node: NodeId,
        why: String,
    },
}
