//! Facts and wants on the wire: what agents, workers and the coordinator tell each other.

use crate::convert::{Wire, WireError, address, at_most, cut, digest, each, job, list, maybe, message, needed, node};
use crate::convert::{error_file, one, secret, small, text, token, word, workers};
use crate::pb;
use elastic_spec::facts::{
    End, JobWant, Launch, Metrics, NodeReport, NodeWant, Phase, Process, ProcessFailure, Published, SlotWant,
    Unpublished, WorkerReport, WorkerStatus, WorkerUp,
};
use elastic_spec::layout::Tail;
use elastic_spec::limits::{INPUTS_MAX, JOBS_MAX, SPEC_BYTES_MAX, STALLS_MAX, WORKERS_MAX};
use elastic_spec::{Digest, Round, Step, Term, WorkerId};

message!(NodeReport, "report");
message!(WorkerStatus, "status");
message!(WorkerUp, "worker");
message!(NodeWant, "want");

impl Wire for NodeReport {
    type Pb = pb::NodeReport;

    fn read(pb: pb::NodeReport) -> Result<NodeReport, WireError> {
        Ok(NodeReport {
            node: node("node", pb.node)?,
            incarnation: incarnation(pb.incarnation)?,
            slots: small("slots", pb.slots)?,
            host: word("host", pb.host)?,
            log_address: address("log_address", pb.log_address)?,
            log_token: token("log_token", pb.log_token)?,
            draining: pb.draining,
            seen: needed("seen", pb.seen)?,
            workers: list("workers", pb.workers, WORKERS_MAX.into())?,
        })
    }

    fn write(self) -> pb::NodeReport {
        pb::NodeReport {
            node: self.node.to_string(),
            incarnation: self.incarnation,
            slots: self.slots.into(),
            host: self.host,
            log_address: self.log_address,
            log_token: self.log_token,
            draining: self.draining,
            seen: Some(self.seen.write()),
            workers: self.workers.into_iter().map(Wire::write).collect(),
        }
    }
}

fn incarnation(value: u64) -> Result<u64, WireError> {
    match value {
        0 => Err(WireError::new("incarnation", "is 0, which no agent draws")),
        drawn => Ok(drawn),
    }
}

impl Wire for WorkerReport {
    type Pb = pb::WorkerReport;

    fn read(pb: pb::WorkerReport) -> Result<WorkerReport, WireError> {
        use pb::worker_report::Process as Wired;
        let process = match pb.process {
            None => return Err(WireError::new("process", "is missing")),
            Some(Wired::Running(running)) => {
                Process::Running { silent_ms: running.silent_ms, status: maybe("running.status", running.status)? }
            }
            Some(Wired::Exited(exited)) => {
                Process::Exited { end: end(exited.end)?, status: maybe("exited.status", exited.status)? }
            }
        };
        let worker = WorkerId(pb.worker);
        Ok(WorkerReport {
            job: job("job", pb.job)?,
            slot: small("slot", pb.slot)?,
            attempt: pb.attempt,
            worker,
            process,
        })
    }

    fn write(self) -> pb::WorkerReport {
        use pb::worker_report::Process as Wired;
        let process = match self.process {
            Process::Running { silent_ms, status } => {
                Wired::Running(pb::Running { silent_ms, status: status.map(Wire::write) })
            }
            Process::Exited { end, status } => {
                Wired::Exited(pb::Exited { status: status.map(Wire::write), end: Some(end_pb(end)) })
            }
        };
        pb::WorkerReport {
            job: self.job.to_string(),
            slot: self.slot.into(),
            attempt: self.attempt,
            worker: self.worker.0,
            process: Some(process),
        }
    }
}

fn end(pb: Option<pb::exited::End>) -> Result<End, WireError> {
    match pb {
        None => Err(WireError::new("exited.end", "is missing")),
        Some(pb::exited::End::Code(code)) => Ok(End::Code(code)),
        Some(pb::exited::End::Signal(signal)) => Ok(End::Signal(signal)),
        Some(pb::exited::End::Unstartable(why)) => Ok(End::Unstartable(text("exited.end.unstartable", why)?)),
    }
}

fn end_pb(end: End) -> pb::exited::End {
    match end {
        End::Code(code) => pb::exited::End::Code(code),
        End::Signal(signal) => pb::exited::End::Signal(signal),
        End::Unstartable(why) => pb::exited::End::Unstartable(cut(why)),
    }
}

impl Wire for WorkerStatus {
    type Pb = pb::WorkerStatus;

    fn read(pb: pb::WorkerStatus) -> Result<WorkerStatus, WireError> {
        let worker = |_: &str, id: u64| Ok(WorkerId(id));
        at_most("stalls_ms", "entries", pb.stalls_ms.len(), STALLS_MAX)?;
        Ok(WorkerStatus {
            address: address("address", pb.address)?,
            numerics: pb.numerics,
            phase: phase(pb.phase)?,
            view: maybe("view", pb.view)?,
            at: pb.at.map(Round),
            step: Step(pb.step),
            steps_total: pb.steps_total,
            progress: pb.progress,
            waiting_on: each("waiting_on", pb.waiting_on, WORKERS_MAX.into(), worker)?,
            lost_peers: each("lost_peers", pb.lost_peers, WORKERS_MAX.into(), worker)?,
            metrics: maybe("metrics", pb.metrics)?,
            published: maybe("published", pb.published)?,
            error: pb.error.map(|error| text("error", error)).transpose()?,
            stalls_ms: pb.stalls_ms,
            run_dir_id: pb.run_dir_id,
            unpublished: maybe("unpublished", pb.unpublished)?,
            failure: maybe("failure", pb.failure)?,
        })
    }

    fn write(self) -> pb::WorkerStatus {
        pb::WorkerStatus {
            address: self.address,
            numerics: self.numerics,
            phase: phase_number(self.phase),
            view: self.view.map(Wire::write),
            at: self.at.map(|r| r.0),
            step: self.step.0,
            steps_total: self.steps_total,
            progress: self.progress,
            waiting_on: workers(self.waiting_on),
            lost_peers: workers(self.lost_peers),
            metrics: self.metrics.map(Wire::write),
            published: self.published.map(Wire::write),
            error: self.error.map(cut),
            stalls_ms: self.stalls_ms,
            run_dir_id: self.run_dir_id,
            unpublished: self.unpublished.map(Wire::write),
            failure: self.failure.map(Wire::write),
        }
    }
}

impl Wire for ProcessFailure {
    type Pb = pb::ProcessFailure;

    fn read(pb: pb::ProcessFailure) -> Result<ProcessFailure, WireError> {
        use pb::process_failure::End as Wired;
        let end = match pb.end {
            None => return Err(WireError::new("failure.end", "is missing")),
            Some(Wired::Code(code)) => End::Code(code),
            Some(Wired::Signal(signal)) => End::Signal(signal),
            Some(Wired::Unstartable(why)) => End::Unstartable(text("failure.end.unstartable", why)?),
        };
        let (rank, message) = (pb.rank, text("failure.message", pb.message)?);
        let written = pb.error_file.map(|json| error_file("failure.error_file", json)).transpose()?;
        Ok(ProcessFailure { rank, end, message, age_ms: pb.age_ms, port_taken: pb.port_taken, error_file: written })
    }

    fn write(self) -> pb::ProcessFailure {
        use pb::process_failure::End as Wired;
        let end = match self.end {
            End::Code(code) => Wired::Code(code),
            End::Signal(signal) => Wired::Signal(signal),
            End::Unstartable(why) => Wired::Unstartable(cut(why)),
        };
        let (rank, age_ms, port_taken) = (self.rank, self.age_ms, self.port_taken);
        let (message, error_file) = (cut(self.message), self.error_file);
        pb::ProcessFailure { rank, end: Some(end), message, age_ms, port_taken, error_file }
    }
}

impl Wire for Unpublished {
    type Pb = pb::Unpublished;

    fn read(pb: pb::Unpublished) -> Result<Unpublished, WireError> {
        Ok(Unpublished { round: Round(pb.round), error: text("error", pb.error)?, since_unix_ms: pb.since_unix_ms })
    }

    fn write(self) -> pb::Unpublished {
        pb::Unpublished { round: self.round.0, error: cut(self.error), since_unix_ms: self.since_unix_ms }
    }
}

fn phase(value: i32) -> Result<Phase, WireError> {
    match pb::Phase::try_from(value) {
        Ok(pb::Phase::Booting) => Ok(Phase::Booting),
        Ok(pb::Phase::Ready) => Ok(Phase::Ready),
        Ok(pb::Phase::Learning) => Ok(Phase::Learning),
        Ok(pb::Phase::CaughtUp) => Ok(Phase::CaughtUp),
        Ok(pb::Phase::Active) => Ok(Phase::Active),
        Ok(pb::Phase::Finished) => Ok(Phase::Finished),
        Ok(pb::Phase::Unspecified) | Err(_) => Err(WireError::new("phase", format_args!("{value} is not a phase"))),
    }
}

fn phase_number(phase: Phase) -> i32 {
    let phase = match phase {
        Phase::Booting => pb::Phase::Booting,
        Phase::Ready => pb::Phase::Ready,
        Phase::Learning => pb::Phase::Learning,
        Phase::CaughtUp => pb::Phase::CaughtUp,
        Phase::Active => pb::Phase::Active,
        Phase::Finished => pb::Phase::Finished,
    };
    phase.into()
}

impl Wire for WorkerUp {
    type Pb = pb::WorkerUp;

    fn read(pb: pb::WorkerUp) -> Result<WorkerUp, WireError> {
        match pb.body {
            None => Err(WireError::new("body", "is missing")),
            Some(pb::worker_up::Body::Status(status)) => Ok(WorkerUp::Status(Box::new(one("status", status)?))),
            Some(pb::worker_up::Body::Hello(hello)) => {
                Ok(WorkerUp::Hello { worker: WorkerId(hello.worker), token: word("hello.token", hello.token)? })
            }
        }
    }

    fn write(self) -> pb::WorkerUp {
        let body = match self {
            WorkerUp::Hello { worker, token } => pb::worker_up::Body::Hello(pb::Hello { worker: worker.0, token }),
            WorkerUp::Status(status) => pb::worker_up::Body::Status(status.write()),
        };
        pb::WorkerUp { body: Some(body) }
    }
}

impl Wire for Metrics {
    type Pb = pb::Metrics;

    fn read(pb: pb::Metrics) -> Result<Metrics, WireError> {
        let validation = match pb.validation {
            None => None,
            Some(v) => Some((Step(v.step), needed("validation.tail", v.tail)?)),
        };
        Ok(Metrics {
            step: Step(pb.step),
            train: needed("train", pb.train)?,
            lr: pb.lr,
            grad_norm: pb.grad_norm,
            skipped: pb.skipped,
            validation,
            step_us: pb.step_us,
            input_wait_us: pb.input_wait_us,
        })
    }

    fn write(self) -> pb::Metrics {
        let validation = self.validation.map(|(step, tail)| pb::Validation { step: step.0, tail: Some(tail.write()) });
        pb::Metrics {
            step: self.step.0,
            train: Some(self.train.write()),
            lr: self.lr,
            grad_norm: self.grad_norm,
            skipped: self.skipped,
            validation,
            step_us: self.step_us,
            input_wait_us: self.input_wait_us,
        }
    }
}

impl Wire for Tail {
    type Pb = pb::Tail;

    fn read(pb: pb::Tail) -> Result<Tail, WireError> {
        Ok(Tail { loss: pb.loss, count: pb.count, correct: pb.correct })
    }

    fn write(self) -> pb::Tail {
        pb::Tail { loss: self.loss, count: self.count, correct: self.correct }
    }
}

impl Wire for Published {
    type Pb = pb::Published;

    fn read(pb: pb::Published) -> Result<Published, WireError> {
        Ok(Published {
            round: Round(pb.round),
            step: Step(pb.step),
            path: word("path", pb.path)?,
            weights_sha256: digest("weights_sha256", &pb.weights_sha256)?,
            state_sha256: digest("state_sha256", &pb.state_sha256)?,
        })
    }

    fn write(self) -> pb::Published {
        pb::Published {
            round: self.round.0,
            step: self.step.0,
            path: self.path,
            weights_sha256: digest_bytes(self.weights_sha256),
            state_sha256: digest_bytes(self.state_sha256),
        }
    }
}

pub(crate) fn digest_bytes(digest: Digest) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&digest.0)
}

impl Wire for NodeWant {
    type Pb = pb::NodeWant;

    fn read(pb: pb::NodeWant) -> Result<NodeWant, WireError> {
        Ok(NodeWant {
            term: Term(pb.term),
            revision: pb.revision,
            jobs: list("jobs", pb.jobs, JOBS_MAX)?,
            acknowledged: each("acknowledged", pb.acknowledged, WORKERS_MAX.into(), |_, id| Ok(WorkerId(id)))?,
        })
    }

    fn write(self) -> pb::NodeWant {
        pb::NodeWant {
            term: self.term.0,
            revision: self.revision,
            jobs: self.jobs.into_iter().map(Wire::write).collect(),
            acknowledged: workers(self.acknowledged),
        }
    }
}

impl Wire for JobWant {
    type Pb = pb::JobWant;

    fn read(pb: pb::JobWant) -> Result<JobWant, WireError> {
        Ok(JobWant {
            job: job("job", pb.job)?,
            config: digest("config", &pb.config)?,
            launch: needed("launch", pb.launch)?,
            slots: list("slots", pb.slots, WORKERS_MAX.into())?,
            view: maybe("view", pb.view)?,
            restarts: pb.restarts,
        })
    }

    fn write(self) -> pb::JobWant {
        pb::JobWant {
            job: self.job.to_string(),
            config: digest_bytes(self.config),
            launch: Some(self.launch.write()),
            slots: self.slots.into_iter().map(Wire::write).collect(),
            restarts: self.restarts,
            view: self.view.map(Wire::write),
        }
    }
}

impl Wire for SlotWant {
    type Pb = pb::SlotWant;

    fn read(pb: pb::SlotWant) -> Result<SlotWant, WireError> {
        Ok(SlotWant { slot: small("slot", pb.slot)?, attempt: pb.attempt, leave: pb.leave })
    }

    fn write(self) -> pb::SlotWant {
        pb::SlotWant { slot: self.slot.into(), attempt: self.attempt, leave: self.leave }
    }
}

impl Wire for Launch {
    type Pb = pb::Launch;

    fn read(pb: pb::Launch) -> Result<Launch, WireError> {
        at_most("spec_json", "bytes", pb.spec_json.len(), SPEC_BYTES_MAX)?;
        Ok(Launch {
            spec_json: pb.spec_json,
            blobs: list("blobs", pb.blobs, INPUTS_MAX)?,
            secret: secret("secret", pb.secret.into())?,
            run_dir: word("run_dir", pb.run_dir)?,
            program: pb.program.map(|p| word("program", p)).transpose()?,
        })
    }

    fn write(self) -> pb::Launch {
        pb::Launch {
            spec_json: self.spec_json,
            blobs: self.blobs.into_iter().map(Wire::write).collect(),
            secret: self.secret.into(),
            run_dir: self.run_dir,
            program: self.program,
        }
    }
}

/// An input that travelled with a job: its path in the spec, its digest.
impl Wire for (String, Digest) {
    type Pb = pb::Input;

    fn read(pb: pb::Input) -> Result<(String, Digest), WireError> {
        Ok((word("path", pb.path)?, digest("digest", &pb.digest)?))
    }

    fn write(self) -> pb::Input {
        pb::Input { path: self.0, digest: digest_bytes(self.1) }
    }
}
