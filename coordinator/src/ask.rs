//! What calls and streams ask of the driver. Each that wants an answer brings the way for it.

use crate::links::{LinkId, LogPlace, Wants};
use elastic_control::{Event, RequestId};
use elastic_proto::Refusal;
use elastic_spec::access::Token;
use elastic_spec::api::{JobStatus, NodeStatus, Scale, Submit};
use elastic_spec::facts::NodeReport;
use elastic_spec::{JobId, NodeId, TokenName};
use std::collections::BTreeMap;
use tokio::sync::oneshot;

/// Where an answer goes. A caller that is gone is no error.
pub(crate) type Answer<T> = oneshot::Sender<T>;

pub(crate) enum Ask {
    Attach {
        link: LinkId,
        first: Box<NodeReport>,
        wants: Wants,
        answer: Answer<Result<(), Refusal>>,
    },
    Report {
        link: LinkId,
        report: Box<NodeReport>,
    },
    Detach {
        link: LinkId,
        node: NodeId,
    },
    Change {
        change: Change,
        answer: Answer<Result<(), Refusal>>,
    },
    Jobs {
        answer: Answer<Vec<JobStatus>>,
    },
    Job {
        job: JobId,
        answer: Answer<Option<JobStatus>>,
    },
    Nodes {
        answer: Answer<Vec<NodeStatus>>,
    },
    /// Where attached nodes serve their logs.
    LogPlaces {
        answer: Answer<BTreeMap<NodeId, LogPlace>>,
    },
    Tokens {
        answer: Answer<Vec<Token>>,
    },
}

/// What a person changes.
pub(crate) enum Change {
    Submit { submit: Submit, job: JobId, secret: Vec<u8>, run_dir: String },
    Scale(Scale),
    Drain(NodeId),
    Cancel(JobId),
    KeepToken(Token),
    RevokeToken(TokenName),
}

impl Change {
    pub fn event(self, request: RequestId, unix_ms: u64) -> Event {
        match self {
            Change::Submit { submit, job, secret, run_dir } => {
                Event::Submit { request, submit, job, secret, run_dir, unix_ms }
            }
            Change::Scale(Scale { job, min_workers, max_workers }) => {
                Event::Scale { request, job, min: min_workers, max: max_workers }
            }
            Change::Drain(node) => Event::Drain { request, node },
            Change::Cancel(job) => Event::Cancel { request, job },
            Change::KeepToken(token) => Event::KeepToken { request, token },
            Change::RevokeToken(name) => Event::RevokeToken { request, name },
        }
    }
}
