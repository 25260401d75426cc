//! Requests and answers of the API on the wire.

use crate::convert::{
    Wire, WireError, at_most, cut, digest, each, error_file, job, list, maybe, message, node, rank, small, text, word,
};
use crate::facts::digest_bytes;
use crate::pb;
use crate::view::{role, role_number};
use elastic_spec::access::Role;
use elastic_spec::api::{
    Fault, Health, JobState, JobStatus, MakeToken, MemberStatus, NodeStatus, Scale, Submit, TokenInfo,
};
use elastic_spec::job::JobSpec;
use elastic_spec::limits::{
    INPUTS_MAX, JOBS_MAX, NODES_MAX, SPEC_BYTES_MAX, STALLS_MAX, TOKEN_TTL_MS_MAX, TOKENS_MAX, WORKERS_MAX,
};
use elastic_spec::{Digest, JobId, NodeId, Round, Step, Term, TokenName, WorkerId};

message!(Submit, "submit");
message!(Scale, "scale");
message!(MakeToken, "token");
message!(Health, "health");
message!(JobStatus, "job");
message!(NodeStatus, "node");

impl Wire for Submit {
    type Pb = pb::SubmitRequest;

    fn read(pb: pb::SubmitRequest) -> Result<Submit, WireError> {
        at_most("spec_json", "bytes", pb.spec_json.len(), SPEC_BYTES_MAX)?;
        JobSpec::from_json(&pb.spec_json).map_err(|e| WireError::new("spec_json", e))?;
        Ok(Submit {
            spec_json: pb.spec_json,
            blobs: list("blobs", pb.blobs, INPUTS_MAX)?,
            resume: pb.resume.map(|run| job("resume", run)).transpose()?,
        })
    }

    fn write(self) -> pb::SubmitRequest {
        pb::SubmitRequest {
            spec_json: self.spec_json,
            blobs: self.blobs.into_iter().map(Wire::write).collect(),
            resume: self.resume.map(|run| run.to_string()),
        }
    }
}

impl Wire for Scale {
    type Pb = pb::ScaleRequest;

    fn read(pb: pb::ScaleRequest) -> Result<Scale, WireError> {
        let (min_workers, max_workers) = (small("min_workers", pb.min_workers)?, small("max_workers", pb.max_workers)?);
        match () {
            () if min_workers == 0 => Err(WireError::new("min_workers", "is 0, the least is 1")),
            () if max_workers < min_workers => {
                Err(WireError::new("max_workers", format_args!("{max_workers} is below min_workers = {min_workers}")))
            }
            () if max_workers > WORKERS_MAX => {
                Err(WireError::new("max_workers", format_args!("{max_workers} is above {WORKERS_MAX}")))
            }
            () => Ok(Scale { job: job("job", pb.job)?, min_workers, max_workers }),
        }
    }

    fn write(self) -> pb::ScaleRequest {
        pb::ScaleRequest {
            job: self.job.to_string(),
            min_workers: self.min_workers.into(),
            max_workers: self.max_workers.into(),
        }
    }
}

impl Wire for MakeToken {
    type Pb = pb::MakeTokenRequest;

    fn read(pb: pb::MakeTokenRequest) -> Result<MakeToken, WireError> {
        match pb.ttl_ms {
            0 => Err(WireError::new("ttl_ms", "is 0: the token would have expired")),
            ms if ms > TOKEN_TTL_MS_MAX => {
                Err(WireError::new("ttl_ms", format_args!("{ms} is above {TOKEN_TTL_MS_MAX} (ten years)")))
            }
            ttl_ms => {
                Ok(MakeToken { name: token_name("name", pb.name)?, role: access_role("role", &pb.role)?, ttl_ms })
            }
        }
    }

    fn write(self) -> pb::MakeTokenRequest {
        pb::MakeTokenRequest { name: self.name.to_string(), role: self.role.to_string(), ttl_ms: self.ttl_ms }
    }
}

impl Wire for TokenInfo {
    type Pb = pb::Token;

    fn read(pb: pb::Token) -> Result<TokenInfo, WireError> {
        Ok(TokenInfo {
            name: token_name("name", pb.name)?,
            role: access_role("role", &pb.role)?,
            made_unix_ms: pb.made_unix_ms,
            expires_unix_ms: pb.expires_unix_ms,
        })
    }

    fn write(self) -> pb::Token {
        pb::Token {
            name: self.name.to_string(),
            role: self.role.to_string(),
            made_unix_ms: self.made_unix_ms,
            expires_unix_ms: self.expires_unix_ms,
        }
    }
}

impl Wire for Vec<TokenInfo> {
    type Pb = pb::TokenList;

    fn read(pb: pb::TokenList) -> Result<Vec<TokenInfo>, WireError> {
        list("tokens", pb.tokens, TOKENS_MAX)
    }

    fn write(self) -> pb::TokenList {
        pb::TokenList { tokens: self.into_iter().map(Wire::write).collect() }
    }
}

impl Wire for TokenName {
    type Pb = pb::TokenRef;

    fn read(pb: pb::TokenRef) -> Result<TokenName, WireError> {
        token_name("name", pb.name)
    }

    fn write(self) -> pb::TokenRef {
        pb::TokenRef { name: self.to_string() }
    }
}

fn token_name(field: &str, value: String) -> Result<TokenName, WireError> {
    TokenName::parse(&value).map_err(|e| WireError::new(field, e))
}

fn access_role(field: &str, value: &str) -> Result<Role, WireError> {
    let shown: String = value.chars().take(80).collect();
    Role::parse(value).ok_or_else(|| {
        WireError::new(field, format_args!("{shown:?} is no role: agent, viewer, submitter and admin are"))
    })
}

impl Wire for Health {
    type Pb = pb::HealthReply;

    fn read(pb: pb::HealthReply) -> Result<Health, WireError> {
        Ok(Health {
            leads: pb.leads.map(Term),
            leader: pb.leader.map(|a| word("leader", a)).transpose()?,
            store_away: pb.store_away.map(|why| text("store_away", why)).transpose()?,
        })
    }

    fn write(self) -> pb::HealthReply {
        pb::HealthReply { leads: self.leads.map(|t| t.0), leader: self.leader, store_away: self.store_away.map(cut) }
    }
}

impl Wire for JobId {
    type Pb = pb::JobRef;

    fn read(pb: pb::JobRef) -> Result<JobId, WireError> {
        job("job", pb.job)
    }

    fn write(self) -> pb::JobRef {
        pb::JobRef { job: self.to_string() }
    }
}

impl Wire for NodeId {
    type Pb = pb::NodeRef;

    fn read(pb: pb::NodeRef) -> Result<NodeId, WireError> {
        node("node", pb.node)
    }

    fn write(self) -> pb::NodeRef {
        pb::NodeRef { node: self.to_string() }
    }
}

impl Wire for Digest {
    type Pb = pb::BlobRef;

    fn read(pb: pb::BlobRef) -> Result<Digest, WireError> {
        digest("digest", &pb.digest)
    }

    fn write(self) -> pb::BlobRef {
        pb::BlobRef { digest: digest_bytes(self) }
    }
}

impl Wire for Vec<JobStatus> {
    type Pb = pb::JobList;

    fn read(pb: pb::JobList) -> Result<Vec<JobStatus>, WireError> {
        list("jobs", pb.jobs, JOBS_MAX)
    }

    fn write(self) -> pb::JobList {
        pb::JobList { jobs: self.into_iter().map(Wire::write).collect() }
    }
}

impl Wire for Vec<NodeStatus> {
    type Pb = pb::NodeList;

    fn read(pb: pb::NodeList) -> Result<Vec<NodeStatus>, WireError> {
        list("nodes", pb.nodes, NODES_MAX)
    }

    fn write(self) -> pb::NodeList {
        pb::NodeList { nodes: self.into_iter().map(Wire::write).collect() }
    }
}

fn byte(field: &str, value: u32) -> Result<u8, WireError> {
    u8::try_from(value).map_err(|_| WireError::new(field, format_args!("{value} is above 255")))
}

impl Wire for JobStatus {
    type Pb = pb::JobStatus;

    fn read(pb: pb::JobStatus) -> Result<JobStatus, WireError> {
        at_most("stalls_ms", "entries", pb.stalls_ms.len(), STALLS_MAX * usize::from(WORKERS_MAX))?;
        Ok(JobStatus {
            job: job("job", pb.job)?,
            name: text("name", pb.name)?,
            state: state(pb.state)?,
            reason: text("reason", pb.reason)?,
            epoch: maybe("epoch", pb.epoch)?,
            members: list("members", pb.members, WORKERS_MAX.into())?,
            round: Round(pb.round),
            step: Step(pb.step),
            steps_total: pb.steps_total,
            metrics: maybe("metrics", pb.metrics)?,
            samples_per_second: pb.samples_per_second,
            restarts: pb.restarts,
            views: pb.views,
            last_fault: maybe("last_fault", pb.last_fault)?,
            published: maybe("published", pb.published)?,
            run_dir: text("run_dir", pb.run_dir)?,
            min_workers: small("min_workers", pb.min_workers)?,
            max_workers: small("max_workers", pb.max_workers)?,
            stalls_ms: pb.stalls_ms,
            submitted_unix_ms: pb.submitted_unix_ms,
            published_on: pb.published_on.map(|id| node("published_on", id)).transpose()?,
            run_dir_differs: pb.run_dir_differs.map(|words| text("run_dir_differs", words)).transpose()?,
            exit_code: pb.exit_code.map(|code| byte("exit_code", code)).transpose()?,
            error_file: pb.error_file.map(|json| error_file("error_file", json)).transpose()?,
            is_command: pb.is_command,
            unpublished: match (pb.unpublished_on, maybe("unpublished", pb.unpublished)?) {
                (None, None) => None,
                (Some(on), Some(why)) => Some((node("unpublished_on", on)?, why)),
                (Some(_), None) => return Err(WireError::new("unpublished", "is missing beside unpublished_on")),
                (None, Some(_)) => return Err(WireError::new("unpublished_on", "is missing beside unpublished")),
            },
        })
    }

    fn write(self) -> pb::JobStatus {
        let (unpublished_on, unpublished) = self.unpublished.unzip();
        pb::JobStatus {
            job: self.job.to_string(),
            name: self.name,
            state: state_number(self.state),
            reason: cut(self.reason),
            epoch: self.epoch.map(Wire::write),
            members: self.members.into_iter().map(Wire::write).collect(),
            round: self.round.0,
            step: self.step.0,
            steps_total: self.steps_total,
            metrics: self.metrics.map(Wire::write),
            samples_per_second: self.samples_per_second,
            restarts: self.restarts,
            views: self.views,
            last_fault: self.last_fault.map(Wire::write),
            published: self.published.map(Wire::write),
            run_dir: self.run_dir,
            min_workers: self.min_workers.into(),
            max_workers: self.max_workers.into(),
            stalls_ms: self.stalls_ms,
            submitted_unix_ms: self.submitted_unix_ms,
            published_on: self.published_on.map(|node| node.to_string()),
            run_dir_differs: self.run_dir_differs.map(cut),
            unpublished: unpublished.map(Wire::write),
            unpublished_on: unpublished_on.map(|node| node.to_string()),
            exit_code: self.exit_code.map(u32::from),
            error_file: self.error_file,
            is_command: self.is_command,
        }
    }
}

fn state(value: i32) -> Result<JobState, WireError> {
    match pb::JobState::try_from(value) {
        Ok(pb::JobState::Pending) => Ok(JobState::Pending),
        Ok(pb::JobState::Running) => Ok(JobState::Running),
        Ok(pb::JobState::Paused) => Ok(JobState::Paused),
        Ok(pb::JobState::Succeeded) => Ok(JobState::Succeeded),
        Ok(pb::JobState::Failed) => Ok(JobState::Failed),
        Ok(pb::JobState::Cancelled) => Ok(JobState::Cancelled),
        Ok(pb::JobState::Unspecified) | Err(_) => Err(WireError::new("state", format_args!("{value} is not a state"))),
    }
}

fn state_number(state: JobState) -> i32 {
    let state = match state {
        JobState::Pending => pb::JobState::Pending,
        JobState::Running => pb::JobState::Running,
        JobState::Paused => pb::JobState::Paused,
        JobState::Succeeded => pb::JobState::Succeeded,
        JobState::Failed => pb::JobState::Failed,
        JobState::Cancelled => pb::JobState::Cancelled,
    };
    state.into()
}

impl Wire for MemberStatus {
    type Pb = pb::MemberStatus;

    fn read(pb: pb::MemberStatus) -> Result<MemberStatus, WireError> {
        Ok(MemberStatus {
            worker: WorkerId(pb.worker),
            node: node("node", pb.node)?,
            slot: small("slot", pb.slot)?,
            rank: pb.rank.map(|r| rank("rank", r)).transpose()?,
            role: pb.role.map(|r| role("role", r)).transpose()?,
            round: pb.round.map(Round),
            silent_ms: pb.silent_ms,
            shards: small("shards", pb.shards)?,
        })
    }

    fn write(self) -> pb::MemberStatus {
        pb::MemberStatus {
            worker: self.worker.0,
            node: self.node.to_string(),
            slot: self.slot.into(),
            rank: self.rank.map(|r| r.0.into()),
            role: self.role.map(role_number),
            round: self.round.map(|r| r.0),
            silent_ms: self.silent_ms,
            shards: self.shards.into(),
        }
    }
}

impl Wire for Fault {
    type Pb = pb::Fault;

    fn read(pb: pb::Fault) -> Result<Fault, WireError> {
        Ok(Fault {
            unix_ms: pb.unix_ms,
            node: node("node", pb.node)?,
            worker: WorkerId(pb.worker),
            cause: text("cause", pb.cause)?,
        })
    }

    fn write(self) -> pb::Fault {
        pb::Fault { unix_ms: self.unix_ms, node: self.node.to_string(), worker: self.worker.0, cause: cut(self.cause) }
    }
}

impl Wire for NodeStatus {
    type Pb = pb::NodeStatus;

    fn read(pb: pb::NodeStatus) -> Result<NodeStatus, WireError> {
        Ok(NodeStatus {
            node: node("node", pb.node)?,
            host: text("host", pb.host)?,
            slots: small("slots", pb.slots)?,
            used: small("used", pb.used)?,
            draining: pb.draining,
            silent_ms: pb.silent_ms,
            jobs: each("jobs", pb.jobs, JOBS_MAX, job)?,
            strikes: pb.strikes,
        })
    }

    fn write(self) -> pb::NodeStatus {
        pb::NodeStatus {
            node: self.node.to_string(),
            host: self.host,
            slots: self.slots.into(),
            used: self.used.into(),
            draining: self.draining,
            silent_ms: self.silent_ms,
            jobs: self.jobs.into_iter().map(|j| j.to_string()).collect(),
            strikes: self.strikes,
        }
    }
}
