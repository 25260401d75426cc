//! Why a request has no answer: one enum for all protocols, with its HTTP status, its gRPC code and the reason under
//! which it is counted.

use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The request is wrong as it stands.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unauthenticated(String),
    /// A key was shown whose role does not cover what is asked.
    #[error("{0}")]
    Forbidden(String),
    /// No such model, version, label or path.
    #[error("{0}")]
    NotFound(String),
    #[error("{method} is not served at this path; allowed: {allowed}")]
    Method { method: String, allowed: &'static str },
    #[error("{0}")]
    Conflict(String),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    MediaType(String),
    /// The client took too long to send its request.
    #[error("{0}")]
    Slow(String),
    /// A queue is full: the same request may be sent again after a while.
    #[error("{what}; send it again in {retry_after_s} s")]
    Full { what: String, retry_after_s: u64 },
    /// The client went away, or said so.
    #[error("the request was cancelled")]
    Cancelled,
    /// The model, or the whole server, does not answer now.
    #[error("{0}")]
    Unready(String),
    /// The deadline passed first.
    #[error("{0}")]
    Late(String),
    #[error("{0}")]
    Unimplemented(String),
    /// The model failed, or we did.
    #[error("{0}")]
    Internal(String),
}

impl Refusal {
    pub fn invalid(text: impl Into<String>) -> Refusal {
        Refusal::Invalid(text.into())
    }

    pub fn status(&self) -> u16 {
        match self {
            Refusal::Invalid(_) => 400,
            Refusal::Unauthenticated(_) => 401,
            Refusal::Forbidden(_) => 403,
            Refusal::NotFound(_) => 404,
            Refusal::Method { .. } => 405,
            Refusal::Slow(_) => 408,
            Refusal::Conflict(_) => 409,
            Refusal::TooLarge(_) => 413,
            Refusal::MediaType(_) => 415,
            Refusal::Full { .. } => 429,
            Refusal::Cancelled => 499,
            Refusal::Internal(_) => 500,
            Refusal::Unimplemented(_) => 501,
            Refusal::Unready(_) => 503,
            Refusal::Late(_) => 504,
        }
    }

    pub fn code(&self) -> tonic::Code {
        use tonic::Code;
        match self {
            Refusal::Invalid(_) | Refusal::TooLarge(_) | Refusal::MediaType(_) => Code::InvalidArgument,
            Refusal::Unauthenticated(_) => Code::Unauthenticated,
            Refusal::Forbidden(_) => Code::PermissionDenied,
            Refusal::NotFound(_) => Code::NotFound,
            Refusal::Conflict(_) => Code::Aborted,
            Refusal::Full { .. } => Code::ResourceExhausted,
            Refusal::Cancelled => Code::Cancelled,
            Refusal::Unready(_) => Code::Unavailable,
            Refusal::Late(_) | Refusal::Slow(_) => Code::DeadlineExceeded,
            Refusal::Method { .. } | Refusal::Unimplemented(_) => Code::Unimplemented,
            Refusal::Internal(_) => Code::Internal,
        }
    }

    /// Seconds after which the same request may succeed.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            Refusal::Full { retry_after_s, .. } => Some(*retry_after_s),
            Refusal::Unready(_) => Some(1),
            _ => None,
        }
    }

    /// As `nv_inference_request_failure` names it.
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::Full { .. } | Refusal::Unready(_) => Reason::Rejected,
            Refusal::Cancelled => Reason::Canceled,
            Refusal::Internal(_) => Reason::Backend,
            _ => Reason::Other,
        }
    }
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> tonic::Status {
        tonic::Status::new(refusal.code(), refusal.to_string())
    }
}

/// Under what a request without an answer is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    Rejected,
    Canceled,
    Backend,
    Other,
}

impl Reason {
    pub const ALL: [Reason; 4] = [Reason::Rejected, Reason::Canceled, Reason::Backend, Reason::Other];

    pub fn word(self) -> &'static str {
        match self {
            Reason::Rejected => "REJECTED",
            Reason::Canceled => "CANCELED",
            Reason::Backend => "BACKEND",
            Reason::Other => "OTHER",
        }
    }
}

/// A client's text as an error quotes it: short, and without control characters.
pub fn quote(text: &str) -> String {
    let clean = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut out: String = text.chars().take(crate::limits::QUOTE_CHARS_MAX).map(clean).collect();
    if text.chars().nth(crate::limits::QUOTE_CHARS_MAX).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_sent_is_quoted_short_and_printable() {
        assert_eq!(quote("a\nb"), "a\u{fffd}b");
        assert_eq!(quote(&"x".repeat(200)).chars().count(), crate::limits::QUOTE_CHARS_MAX + 1);
    }

    #[test]
    fn only_what_may_pass_by_itself_says_when_to_come_again() {
        let full = Refusal::Full { what: "the queue is full".into(), retry_after_s: 2 };
        assert_eq!((full.status(), full.retry_after_s()), (429, Some(2)));
        assert_eq!(Refusal::invalid("x").retry_after_s(), None);
    }
}
