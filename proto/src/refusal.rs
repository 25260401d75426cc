//! Why a call was not answered: the domain's word for a gRPC status.

use crate::WireError;
use tonic::{Code, Status};

/// What the caller can do about it decides the variant; the text is for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is wrong whatever the cluster's state.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    NotFound(String),
    /// It cannot be done in the present state.
    #[error("{0}")]
    NotNow(String),
    /// The token is missing or wrong.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller is known, and may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// Ask the leader instead.
    #[error("this coordinator is a standby, {}", leader.as_ref().map_or("and knows no leader yet".into(), |a| format!("the leader is {a}")))]
    Standby { leader: Option<String> },
    /// Nobody answers there, or the store is away: try again.
    #[error("{0}")]
    Unavailable(String),
    /// A bound was reached.
    #[error("{0}")]
    TooMuch(String),
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    /// Whether the same call may succeed later or elsewhere.
    pub fn is_passing(&self) -> bool {
        matches!(self, Refusal::Standby { .. } | Refusal::Unavailable(_))
    }
}

impl From<WireError> for Refusal {
    fn from(e: WireError) -> Refusal {
        Refusal::Invalid(e.to_string())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let words = refusal.to_string();
        let code = match &refusal {
            Refusal::Invalid(_) => Code::InvalidArgument,
            Refusal::NotFound(_) => Code::NotFound,
            Refusal::NotNow(_) => Code::FailedPrecondition,
            Refusal::Unauthenticated(_) => Code::Unauthenticated,
            Refusal::Forbidden(_) => Code::PermissionDenied,
            Refusal::Standby { .. } | Refusal::Unavailable(_) => Code::Unavailable,
            Refusal::TooMuch(_) => Code::ResourceExhausted,
            Refusal::Internal(_) => Code::Internal,
        };
        let mut status = Status::new(code, words);
        if let Refusal::Standby { leader } = refusal {
            let value =
                leader.as_deref().unwrap_or("").parse().unwrap_or(tonic::metadata::MetadataValue::from_static(""));
            status.metadata_mut().insert(LEADER_KEY, value);
        }
        status
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Refusal {
        if let Some(leader) = status.metadata().get(LEADER_KEY) {
            let leader = leader.to_str().ok().filter(|a| !a.is_empty()).map(String::from);
            return Refusal::Standby { leader };
        }
        // A status with a source was made on this side: the connection broke, or never spoke HTTP/2.
        if let Some(source) = std::error::Error::source(&status) {
            return Refusal::Unavailable(format!("{}: {source}", status.message()));
        }
        let words = status.message().to_string();
        match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Refusal::Invalid(words),
            Code::NotFound => Refusal::NotFound(words),
            Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted => Refusal::NotNow(words),
            Code::Unauthenticated => Refusal::Unauthenticated(words),
            Code::PermissionDenied => Refusal::Forbidden(words),
            Code::ResourceExhausted => Refusal::TooMuch(words),
            // A connection that breaks shows as Unknown or Cancelled.
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Refusal::Unavailable(words),
            Code::Ok | Code::Internal | Code::DataLoss | Code::Unimplemented => Refusal::Internal(words),
        }
    }
}

/// Present in the answers of a standby; empty while it knows no leader.
const LEADER_KEY: &str = "elastic-leader";
