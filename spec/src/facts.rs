//! Facts go up, wanted state comes down: the messages between coordinator, agents and workers.
//!
//! Both directions say the whole of what they know each time, so lost, repeated and reordered messages
//! need no special case. Wire forms of these are in `proto`.

use crate::ids::{Digest, Epoch, JobId, NodeId, Round, Step, Term, WorkerId};
use crate::layout::Tail;
use crate::view::{View, WorkerOrder};
use serde::{Deserialize, Serialize};

/// Agent -> coordinator: everything that the node knows.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeReport {
    pub node: NodeId,
    /// Drawn when the agent process starts; a new one means that all its former workers are gone.
    pub incarnation: u64,
    /// Workers that this node can run at once.
    pub slots: u16,
    /// The host that other nodes reach this one by.
    pub host: String,
    /// host:port where the agent serves the logs of its workers; the coordinator reads them there.
    pub log_address: String,
    /// What must be shown there; drawn anew by each agent process.
    pub log_token: String,
    /// The agent was asked to leave (SIGTERM, `elastic drain`).
    pub draining: bool,
    /// (term, revision) of the newest order that the agent acts on; of an earlier life, the term at least. No
    /// leader may go below, and what is not confirmed by it is said again.
    pub seen: Epoch,
    /// One for each worker process that runs or whose end has not been acknowledged.
    pub workers: Vec<WorkerReport>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WorkerReport {
    pub job: JobId,
    pub slot: u16,
    /// The attempt of [`SlotWant`] that this process was started for.
    pub attempt: u32,
    pub worker: WorkerId,
    pub process: Process,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    Running {
        /// Since the worker was last heard by its agent, in ms.
        silent_ms: u64,
        /// None until it first speaks.
        status: Option<WorkerStatus>,
    },
    Exited {
        end: End,
        /// The last that it said.
        status: Option<WorkerStatus>,
    },
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    Code(i32),
    Signal(i32),
    /// The program could not be started at all.
    Unstartable(String),
}

/// Worker -> agent (-> coordinator): all that the control plane may need from one rank.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerStatus {
    /// host:port of its data plane.
    pub address: String,
    /// Hash of a fixed probe computed by its kernels: one numerics class a job.
    pub numerics: u64,
    pub phase: Phase,
    /// The view that it acts on.
    pub view: Option<View>,
    /// The state that it holds, if any.
    pub at: Option<Round>,
    pub step: Step,
    /// Steps of the whole job, known once the data was read.
    pub steps_total: u64,
    /// Rises with every unit of work done, also inside a round: what the hang watchdog looks at.
    pub progress: u64,
    /// While a round waits for others' work: the workers whose shards or chunks are missing.
    pub waiting_on: Vec<WorkerId>,
    /// Peers whose data link broke, since the view that it acts on.
    pub lost_peers: Vec<WorkerId>,
    pub metrics: Option<Metrics>,
    /// The newest checkpoint that it knows to be published.
    pub published: Option<Published>,
    /// Why it is about to exit, in words for a person.
    pub error: Option<String>,
    /// Longest waits of this worker from a fault to its next commit, in ms, newest last, bounded.
    pub stalls_ms: Vec<u32>,
    /// Which run directory it sees: a random number that lies in it. None: not known, or it could not be read.
    pub run_dir_id: Option<u64>,
    /// Why its newest try to publish a checkpoint did not come off; none once one did.
    pub unpublished: Option<Unpublished>,
    /// Of a group of processes that run a command: which of them failed first in the view that it acts on.
    pub failure: Option<ProcessFailure>,
}

/// The end of a process of a command that was not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFailure {
    /// In the whole job.
    pub rank: u32,
    pub end: End,
    /// From its error file, else what it printed last; in words for a person.
    pub message: String,
    /// Since it failed, in ms: clocks of nodes differ.
    pub age_ms: u64,
    /// The port that the group was told to meet at was taken by somebody else.
    pub port_taken: bool,
    /// Its error file as it wrote it, where there is one; JSON.
    pub error_file: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Reads data, builds the model, looks for a checkpoint.
    Booting,
    /// Could be in a view; `at` says whether it has state.
    Ready,
    /// In a view without state, or behind.
    Learning,
    /// A learner at most a round behind: may become active.
    CaughtUp,
    Active,
    /// Every active member has the last round and the final checkpoint is published.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct Metrics {
    pub step: Step,
    /// Of the last training step: sum and count.
    pub train: Tail,
    pub lr: f64,
    pub grad_norm: f64,
    /// Steps so far whose gradient was not finite, so that they moved nothing (`train.non_finite = "skip"`).
    pub skipped: u64,
    /// Of the last validation, and the step it was taken at.
    pub validation: Option<(Step, Tail)>,
    /// Median step time lately, in microseconds.
    pub step_us: u64,
    /// Mean time lately that a step waited for its samples on the worker that tells this, in microseconds.
    pub input_wait_us: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    pub round: Round,
    pub step: Step,
    pub path: String,
    pub weights_sha256: Digest,
    pub state_sha256: Digest,
}

/// A checkpoint that could not be written, and is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpublished {
    /// Of the state that was to be written last.
    pub round: Round,
    /// In words for a person.
    pub error: String,
    /// The first try of the row that failed; unix time in ms, for persons only.
    pub since_unix_ms: u64,
}

/// What a worker sends to its agent over their socket: first who it is, then its whole status each time.
#[derive(Clone, Debug, PartialEq)]
pub enum WorkerUp {
    Hello {
        worker: WorkerId,
        /// Given to the process by the agent that started it.
        token: String,
    },
    Status(Box<WorkerStatus>),
}

/// Coordinator -> agent: everything that the node shall do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeWant {
    pub term: Term,
    /// Rises with each change inside the term; (term, revision) orders wants.
    pub revision: u64,
    pub jobs: Vec<JobWant>,
    /// The coordinator has taken note of these ends: the agent may forget the processes.
    pub acknowledged: Vec<WorkerId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobWant {
    pub job: JobId,
    pub config: Digest,
    pub launch: Launch,
    pub slots: Vec<SlotWant>,
    pub view: Option<View>,
    /// Restarts after failures so far, as a command's processes are told.
    pub restarts: u32,
}

/// One worker process that shall be there. The agent starts a process for (slot, attempt) once; when it
/// ends, it stays ended until the coordinator asks for a higher attempt. A slot that is not named shall
/// be stopped: SIGTERM, then SIGKILL after the grace time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotWant {
    pub slot: u16,
    pub attempt: u32,
    /// The worker shall hand over and leave by itself.
    pub leave: bool,
}

/// What a node needs to start a job's workers: the same for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Launch {
    /// The resolved spec as canonical JSON; its digest is the job's config digest.
    pub spec_json: String,
    /// Inputs that travelled with the job: (path in the spec, digest); fetched from the coordinator.
    pub blobs: Vec<(String, Digest)>,
    /// Proof of membership between this job's workers.
    pub secret: Vec<u8>,
    /// Where the run directory is, as seen by the nodes.
    pub run_dir: String,
    /// The program to start instead of `elastic worker`, for models of one's own.
    pub program: Option<String>,
}

impl NodeWant {
    /// What the worker in `slot` of `job` is to be told.
    pub fn order_for(&self, job: &JobId, slot: u16) -> Option<WorkerOrder> {
        let job = self.jobs.iter().find(|j| j.job == *job)?;
        let slot = job.slots.iter().find(|s| s.slot == slot)?;
        Some(WorkerOrder { view: job.view.clone(), leave: slot.leave, restarts: job.restarts })
    }
}
