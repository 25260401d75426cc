//! What happened, as data: the driver's log, the simulator's trace and the scenarios' expected output.

use elastic_spec::access::Role;
use elastic_spec::api::JobState;
use elastic_spec::facts::End;
use elastic_spec::view::{Pace, exit};
use elastic_spec::{Epoch, JobId, NodeId, Round, Term, TokenName, WorkerId};
use std::fmt;

/// Why a worker is no longer counted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    Ended(End),
    /// It ended, and said why before.
    Error {
        code: i32,
        error: String,
    },
    Silent {
        ms: u64,
    },
    /// Its node is silent.
    NodeSilent {
        ms: u64,
    },
    /// Its peers lost it and it was silent besides.
    LinkLost {
        ms: u64,
    },
    /// Its agent was started again, so its process is gone.
    AgentRestarted,
    Hung {
        ms: u64,
    },
    /// It did nothing for long, although nobody is seen to wait.
    StoodStill {
        ms: u64,
    },
    /// A learner that did not catch up.
    Stuck {
        ms: u64,
    },
    NeverSpoke {
        ms: u64,
    },
    /// Its node speaks of it no more.
    Vanished,
    Numerics {
        has: u64,
        job: u64,
    },
    /// A process of a command failed, in words.
    Process(String),
    /// As asked: drain, scale-down, the end of the job.
    Left,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Ended(End::Signal(signal)) => write!(f, "killed by signal {signal}"),
            Cause::Ended(End::Code(exit::DONE)) => write!(f, "exited before the job was finished"),
            Cause::Ended(End::Code(exit::ORPHANED)) => write!(f, "lost its agent"),
            Cause::Ended(End::Code(exit::DRAINED)) => write!(f, "left unasked"),
            Cause::Ended(End::Code(code)) => write!(f, "exited with code {code}"),
            Cause::Ended(End::Unstartable(why)) => write!(f, "could not be started: {why}"),
            Cause::Error { code, error } => write!(f, "exited with code {code}: {error}"),
            Cause::Silent { ms } => write!(f, "silent for {ms} ms"),
            Cause::NodeSilent { ms } => write!(f, "node silent for {ms} ms"),
            Cause::LinkLost { ms } => write!(f, "lost by its peers and silent for {ms} ms"),
            Cause::AgentRestarted => write!(f, "its agent was started again"),
            Cause::Hung { ms } => write!(f, "no progress for {:.1} s while others waited", *ms as f64 / 1e3),
            Cause::StoodStill { ms } => write!(f, "no progress for {:.1} s", *ms as f64 / 1e3),
            Cause::Stuck { ms } => write!(f, "did not catch up: no progress for {:.1} s", *ms as f64 / 1e3),
            Cause::NeverSpoke { ms } => write!(f, "did not become ready: no progress for {:.1} s", *ms as f64 / 1e3),
            Cause::Vanished => write!(f, "its node knows nothing of it any more"),
            Cause::Numerics { has, job } => {
                write!(f, "computes other bits: numerics class {has:016x}, the job's is {job:016x}")
            }
            Cause::Process(what) => f.write_str(what),
            Cause::Left => write!(f, "left as asked"),
        }
    }
}

/// What an operator has to do about a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// A transition.
    Info,
    /// Look today: we coped.
    Warn,
    /// Act: work is lost.
    Error,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    NodeJoined {
        node: NodeId,
        slots: u16,
    },
    AgentRestarted {
        node: NodeId,
    },
    NodeSilent {
        node: NodeId,
        ms: u64,
    },
    NodeBack {
        node: NodeId,
    },
    NodeForgotten {
        node: NodeId,
    },
    /// There are too many nodes already.
    NodeTurnedAway {
        node: NodeId,
    },
    NodeDrains {
        node: NodeId,
    },
    Submitted {
        job: JobId,
        min: u16,
        max: u16,
    },
    Scaled {
        job: JobId,
        min: u16,
        max: u16,
    },
    /// A process is wanted.
    Placed {
        job: JobId,
        slot: u16,
        attempt: u32,
        node: NodeId,
    },
    /// A process of an earlier leader's is kept.
    SlotAdopted {
        job: JobId,
        slot: u16,
        attempt: u32,
        node: NodeId,
    },
    /// A process is asked to leave.
    Leaves {
        job: JobId,
        slot: u16,
        node: NodeId,
        why: &'static str,
    },
    /// A slot is given up; the process in it, if any, is stopped.
    Freed {
        job: JobId,
        slot: u16,
        node: NodeId,
        why: String,
    },
    /// A process fits this slot's attempt.
    Started {
        job: JobId,
        slot: u16,
        node: NodeId,
        worker: WorkerId,
    },
    KeptOut {
        job: JobId,
        node: NodeId,
        worker: WorkerId,
        cause: Cause,
    },
    View(ViewNote),
    ViewAdopted {
        job: JobId,
        epoch: Epoch,
    },
    Evicted {
        job: JobId,
        worker: WorkerId,
        node: NodeId,
        cause: Cause,
    },
    /// A suspect is heard again.
    Returned {
        job: JobId,
        worker: WorkerId,
        node: NodeId,
    },
    Fault {
        job: JobId,
        worker: WorkerId,
        node: NodeId,
        cause: Cause,
    },
    /// A slot is started again after a fault.
    Restart {
        job: JobId,
        slot: u16,
        attempt: u32,
        node: NodeId,
        in_ms: u64,
        left: u32,
    },
    /// A process is started anew to take up a newer checkpoint than it holds; not a fault.
    Refreshed {
        job: JobId,
        slot: u16,
        attempt: u32,
        node: NodeId,
        round: Round,
    },
    /// No restart is left, but the job has enough workers to go on; progress gives restarts back.
    GoesOnWithout {
        job: JobId,
        slot: u16,
    },
    State {
        job: JobId,
        state: JobState,
        reason: String,
    },
    /// Nodes of one job see different run directories.
    RunDirDiffers {
        job: JobId,
        words: String,
    },
    /// Our own loop stood still: nobody's silence counts.
    Gap {
        ms: u64,
    },
    StandDown {
        ours: Term,
        seen: Term,
    },
    TokenMade {
        name: TokenName,
        role: Role,
    },
    TokenRevoked {
        name: TokenName,
    },
}

/// A view was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewNote {
    pub job: JobId,
    pub epoch: Epoch,
    pub pace: Pace,
    /// In rank order, with the number of shards of each.
    pub active: Vec<(WorkerId, u16)>,
    pub learners: Vec<WorkerId>,
    /// The highest round that a member holds, as far as known.
    pub round: Option<Round>,
}

impl Note {
    pub fn level(&self) -> Level {
        match self {
            Note::State { state: JobState::Failed, .. } => Level::Error,
            Note::StandDown { .. } => Level::Error,
            Note::NodeSilent { .. }
            | Note::NodeTurnedAway { .. }
            | Note::AgentRestarted { .. }
            | Note::KeptOut { .. }
            | Note::Evicted { .. }
            | Note::Fault { .. }
            | Note::GoesOnWithout { .. }
            | Note::RunDirDiffers { .. }
            | Note::State { state: JobState::Paused, .. }
            | Note::Gap { .. } => Level::Warn,
            _ => Level::Info,
        }
    }

    /// One word for what happened: of a list that the program knows, so that it can be counted.
    pub fn kind(&self) -> &'static str {
        match self {
            Note::NodeJoined { .. } => "node_joined",
            Note::AgentRestarted { .. } => "agent_restarted",
            Note::NodeSilent { .. } => "node_silent",
            Note::NodeBack { .. } => "node_back",
            Note::NodeForgotten { .. } => "node_forgotten",
            Note::NodeTurnedAway { .. } => "node_turned_away",
            Note::NodeDrains { .. } => "node_drains",
            Note::Submitted { .. } => "submitted",
            Note::Scaled { .. } => "scaled",
            Note::Placed { .. } => "placed",
            Note::SlotAdopted { .. } => "slot_adopted",
            Note::Leaves { .. } => "leaves",
            Note::Freed { .. } => "freed",
            Note::Started { .. } => "started",
            Note::KeptOut { .. } => "kept_out",
            Note::View(_) => "view",
            Note::ViewAdopted { .. } => "view_adopted",
            Note::Evicted { .. } => "evicted",
            Note::Returned { .. } => "returned",
            Note::Fault { .. } => "fault",
            Note::Restart { .. } => "restart",
            Note::Refreshed { .. } => "refreshed",
            Note::GoesOnWithout { .. } => "goes_on_without",
            Note::State { .. } => "state",
            Note::RunDirDiffers { .. } => "run_dir_differs",
            Note::Gap { .. } => "gap",
            Note::StandDown { .. } => "stand_down",
            Note::TokenMade { .. } => "token_made",
            Note::TokenRevoked { .. } => "token_revoked",
        }
    }

    pub fn job(&self) -> Option<&JobId> {
        match self {
            Note::Submitted { job, .. }
            | Note::Scaled { job, .. }
            | Note::Placed { job, .. }
            | Note::SlotAdopted { job, .. }
            | Note::Leaves { job, .. }
            | Note::Freed { job, .. }
            | Note::Started { job, .. }
            | Note::KeptOut { job, .. }
            | Note::View(ViewNote { job, .. })
            | Note::ViewAdopted { job, .. }
            | Note::Evicted { job, .. }
            | Note::Returned { job, .. }
            | Note::Fault { job, .. }
            | Note::Restart { job, .. }
            | Note::Refreshed { job, .. }
            | Note::GoesOnWithout { job, .. }
            | Note::RunDirDiffers { job, .. }
            | Note::State { job, .. } => Some(job),
            _ => None,
        }
    }

    pub fn node(&self) -> Option<&NodeId> {
        match self {
            Note::NodeJoined { node, .. }
            | Note::AgentRestarted { node }
            | Note::NodeSilent { node, .. }
            | Note::NodeBack { node }
            | Note::NodeForgotten { node }
            | Note::NodeTurnedAway { node }
            | Note::NodeDrains { node }
            | Note::Placed { node, .. }
            | Note::SlotAdopted { node, .. }
            | Note::Leaves { node, .. }
            | Note::Freed { node, .. }
            | Note::Started { node, .. }
            | Note::KeptOut { node, .. }
            | Note::Evicted { node, .. }
            | Note::Returned { node, .. }
            | Note::Fault { node, .. }
            | Note::Restart { node, .. }
            | Note::Refreshed { node, .. } => Some(node),
            _ => None,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::NodeJoined { node, slots } => write!(f, "node {node} joined with {slots} slots"),
            Note::AgentRestarted { node } => write!(f, "node {node}: its agent was started again"),
            Note::NodeSilent { node, ms } => write!(f, "node {node} silent for {ms} ms"),
            Note::NodeBack { node } => write!(f, "node {node} is back"),
            Note::NodeForgotten { node } => write!(f, "node {node} is forgotten"),
            Note::NodeTurnedAway { node } => write!(f, "node {node} turned away: there are too many nodes"),
            Note::NodeDrains { node } => write!(f, "node {node} drains"),
            Note::Submitted { job, min, max } => write!(f, "{job} submitted for {min} to {max} workers"),
            Note::Scaled { job, min, max } => write!(f, "{job} scaled to {min} to {max} workers"),
            Note::Placed { job, slot, attempt, node } => write!(f, "{job}/{slot} attempt {attempt} placed on {node}"),
            Note::SlotAdopted { job, slot, attempt, node } => {
                write!(f, "{job}/{slot} attempt {attempt} found on {node}")
            }
            Note::Leaves { job, slot, node, why } => write!(f, "{job}/{slot} on {node} leaves: {why}"),
            Note::Freed { job, slot, node, why } => write!(f, "{job}/{slot} on {node} freed: {why}"),
            Note::Started { job, slot, node, worker } => write!(f, "{job}/{slot} on {node} is {worker}"),
            Note::KeptOut { job, node, worker, cause } => write!(f, "{job}: {worker} on {node} kept out: {cause}"),
            Note::View(view) => view.fmt(f),
            Note::ViewAdopted { job, epoch } => write!(f, "{job} view {epoch} adopted"),
            Note::Evicted { job, worker, node, cause } => write!(f, "{job}: {worker} on {node} suspected: {cause}"),
            Note::Returned { job, worker, node } => write!(f, "{job}: {worker} on {node} is heard again"),
            Note::Fault { job, worker, node, cause } => write!(f, "{job}: {worker} on {node} lost: {cause}"),
            Note::Restart { job, slot, attempt, node, in_ms, left } => {
                write!(f, "{job}/{slot} attempt {attempt} starts on {node} in {in_ms} ms, {left} restarts left")
            }
            Note::Refreshed { job, slot, attempt, node, round } => {
                write!(f, "{job}/{slot} attempt {attempt} starts on {node} to take up the checkpoint of round {round}")
            }
            Note::GoesOnWithout { job, slot } => write!(f, "{job}/{slot} stays down: no restart is left"),
            Note::State { job, state, reason } => write!(f, "{job} {}: {reason}", state.as_str()),
            Note::RunDirDiffers { job, words } => write!(f, "{job}: {words}"),
            Note::Gap { ms } => write!(f, "our own loop stood still for {ms} ms: suspicion starts anew"),
            Note::StandDown { ours, seen } => write!(f, "term {seen} was seen, ours is {ours}: stand down"),
            Note::TokenMade { name, role } => write!(f, "token {name} made for the role {role}"),
            Note::TokenRevoked { name } => write!(f, "token {name} revoked"),
        }
    }
}

impl fmt::Display for ViewNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pace = match self.pace {
            Pace::Run => "run",
            Pace::Pause => "pause",
        };
        write!(f, "{} view {} {pace}:", self.job, self.epoch)?;
        self.active.iter().try_for_each(|(worker, shards)| write!(f, " {worker}:{shards}"))?;
        self.learners.iter().try_for_each(|worker| write!(f, " +{worker}"))?;
        self.round.map_or(Ok(()), |round| write!(f, " at round {round}"))
    }
}
