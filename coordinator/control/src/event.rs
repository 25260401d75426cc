//! What goes into the machine and what comes out of it.

use crate::note::Note;
use elastic_spec::access::Token;
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::{JobId, NodeId, Term, TokenName, api, limits};

#[derive(Clone, Debug)]
pub enum Event {
    /// The id and the secret are drawn by the shell, which also knows the run directory.
    Submit {
        request: RequestId,
        submit: api::Submit,
        job: JobId,
        secret: Vec<u8>,
        run_dir: String,
        unix_ms: u64,
    },
    Scale {
        request: RequestId,
        job: JobId,
        min: u16,
        max: u16,
    },
    Drain {
        request: RequestId,
        node: NodeId,
    },
    Cancel {
        request: RequestId,
        job: JobId,
    },
    /// Drawn by the shell; the machine sees a digest only.
    KeepToken {
        request: RequestId,
        token: Token,
    },
    RevokeToken {
        request: RequestId,
        name: TokenName,
    },
    /// All that a node knows, and the wall clock for what people read.
    Report(NodeReport, u64),
    /// A node's stream broke: evidence, not proof.
    NodeLost {
        node: NodeId,
        incarnation: u64,
    },
    /// Time has passed; see [`crate::Machine::next_deadline`].
    Tick,
}

/// In this order: first the records, under the leader's term; only when they stand, all the rest.
#[derive(Debug, Default)]
#[must_use]
pub struct Effects {
    pub persist: Vec<Record>,
    pub then_send: Vec<(NodeId, NodeWant)>,
    pub then_reply: Vec<(RequestId, Reply)>,
    pub notes: Vec<Note>,
    /// Somebody has seen a higher term than ours: lead no more. A leader that comes after needs a term
    /// above this one (a store that was put back from a backup may count from too low).
    pub stand_down: Option<Term>,
}

/// One key of the store. `None` deletes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: String,
    /// JSON.
    pub value: Option<Vec<u8>>,
}

/// Names a caller that waits for a reply; drawn by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    Submitted { job: JobId },
    Done,
    Refused(Refusal),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("job {0} is not known; `elastic jobs` lists those that are")]
    UnknownJob(JobId),
    #[error("node {0} is not known; `elastic nodes` lists those that are")]
    UnknownNode(NodeId),
    #[error("job {0} exists already")]
    JobExists(JobId),
    #[error("job {job} is {state} already")]
    JobOver { job: JobId, state: &'static str },
    #[error("{0}")]
    BadSpec(String),
    #[error("min_workers = {min} and max_workers = {max} do not fit: 1 <= min_workers <= max_workers <= {most}")]
    BadScale { min: u16, max: u16, most: u16 },
    #[error("the run directory {run_dir} is in use by job {job}: cancel it or wait for its end")]
    RunInUse { job: JobId, run_dir: String },
    #[error("this coordinator takes no jobs that run commands; whoever runs it allows them with --allow-commands")]
    CommandsForbidden,
    #[error("{live} jobs are queued or running, which is the most; cancel some or wait")]
    TooManyJobs { live: usize },
    #[error("there is no token {0}; `elastic token list` lists those that are")]
    UnknownToken(TokenName),
    #[error("there is a token {0}: revoke it first, or take another name")]
    TokenExists(TokenName),
    #[error("there are {0} tokens, which is the most; revoke some")]
    TooManyTokens(usize),
}

/// Every time and bound that the machine decides by. Milliseconds.
#[derive(Clone, Debug)]
pub struct Config {
    pub suspect_ms: u64,
    pub suspect_with_evidence_ms: u64,
    pub replace_ms: u64,
    pub coalesce_ms: u64,
    pub hang_ms_min: u64,
    pub hang_steps: u64,
    /// A standstill that nobody is seen to cause, or before the first step told a pace.
    pub hang_blind_ms: u64,
    /// From the moment when a first view is possible to the moment when it is made without the others.
    pub gather_ms: u64,
    /// How long a new leader gives members that it has not heard of. At least `suspect_ms`.
    pub leader_grace_ms: u64,
    /// A started process says its first word, or shows progress while it boots, within this time.
    pub boot_ms: u64,
    /// A learner that shows no progress for so long is started again.
    pub learn_ms: u64,
    /// How long a sole worker that must leave may take to publish what it holds, or to hand it over.
    pub hand_over_ms: u64,
    /// A worker that was asked to leave and has not is stopped after this.
    pub leave_ms: u64,
    /// Faults of a job this close after a charged one are charged with it.
    pub charge_window_ms: u64,
    /// So many steps give one restart back, as does each newly published checkpoint.
    pub refill_steps: u64,
    pub backoff_ms_min: u64,
    pub backoff_ms_max: u64,
    /// Restarts that a node may cause more than its best peer before it gets no more work.
    pub quarantine_strikes: u32,
    /// A node's strikes are forgotten after so long without a new one.
    pub strikes_ms: u64,
    /// An order that its node has not confirmed is said again after.
    pub resend_ms: u64,
    /// A silent node without work is forgotten after.
    pub forget_ms: u64,
    /// Nodes that join a command's job come together for so long.
    pub join_ms: u64,
    /// A process that was lost on a node that is there is waited for so long before the others go on without it.
    pub rejoin_ms: u64,
    /// Whether jobs may run commands.
    pub allow_commands: bool,
    pub nodes_max: usize,
    pub jobs_live_max: usize,
    /// Ended jobs that stay listed; the oldest go first.
    pub jobs_over_max: usize,
    /// A token that has expired stays listed for so long.
    pub token_listed_ms: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            suspect_ms: limits::SUSPECT_MS,
            suspect_with_evidence_ms: limits::SUSPECT_WITH_EVIDENCE_MS,
            replace_ms: limits::REPLACE_MS,
            coalesce_ms: limits::COALESCE_MS,
            hang_ms_min: limits::HANG_MS_MIN,
            hang_steps: limits::HANG_STEPS,
            hang_blind_ms: 30_000,
            gather_ms: 300,
            leader_grace_ms: 3_000,
            boot_ms: 600_000,
            learn_ms: 60_000,
            hand_over_ms: 60_000,
            leave_ms: 2 * limits::GRACE_MS,
            charge_window_ms: 1_000,
            refill_steps: 100,
            backoff_ms_min: 100,
            backoff_ms_max: 30_000,
            quarantine_strikes: 10,
            strikes_ms: 600_000,
            resend_ms: 500,
            forget_ms: 3_600_000,
            join_ms: limits::JOIN_MS,
            rejoin_ms: 500,
            allow_commands: false,
            nodes_max: 4_096,
            jobs_live_max: 1_000,
            jobs_over_max: 1_000,
            token_listed_ms: 7 * 24 * 3_600_000,
        }
    }
}
