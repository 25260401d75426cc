//! What can go wrong, each with the object's address and what cures it.

use crate::cause::Cause;
use elastic_spec::Digest;
use std::io;
use std::path::PathBuf;

/// `place` is the whole address of an object: `s3://bucket/prefix/name` or a path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no {place}")]
    NotFound { place: String },
    #[error("{place} has {bytes} bytes, and {limit} are allowed here")]
    TooLarge { place: String, bytes: u64, limit: u64 },
    #[error("{place} ends at byte {bytes}, before byte {end}")]
    Short { place: String, bytes: u64, end: u64 },
    #[error("there are more than {limit} objects under {place}")]
    TooMany { place: String, limit: usize },
    #[error("{place} is damaged: its SHA-256 is {found}")]
    Damaged { place: String, found: Digest },
    #[error("{place} was replaced while it was read: read it again")]
    Replaced { place: String },
    #[error("{} changed while it was sent to {place}: send it again when nobody writes to it", path.display())]
    Changed { path: PathBuf, place: String },
    #[error("\"{address}\" is not where a store can be: {why}")]
    Address { address: String, why: String },
    #[error("{name:?} cannot be an object's name: {why}")]
    Name { name: String, why: String },
    #[error("{address}: {why}")]
    Settings { address: String, why: String },
    #[error("{doing} {place}: {cause}{}", Detail(detail))]
    Failed { doing: &'static str, place: String, cause: Cause, detail: String },
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
}

struct Detail<'a>(&'a str);

impl std::fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => Ok(()),
            detail => write!(f, " ({detail})"),
        }
    }
}

impl Error {
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::NotFound { .. })
    }

    /// Whether the same call may go well later with nothing mended.
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Failed { cause, .. } => cause.is_passing(),
            Error::Replaced { .. } => true,
            _ => false,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match &error {
            Error::NotFound { .. } => io::ErrorKind::NotFound,
            Error::TooLarge { .. } | Error::TooMany { .. } => io::ErrorKind::FileTooLarge,
            Error::Short { .. } => io::ErrorKind::UnexpectedEof,
            Error::Damaged { .. } => io::ErrorKind::InvalidData,
            Error::Address { .. } | Error::Name { .. } => io::ErrorKind::InvalidInput,
            Error::Failed { cause: Cause::Denied | Cause::Forbidden, .. } => io::ErrorKind::PermissionDenied,
            Error::Failed { cause: Cause::Full, .. } => io::ErrorKind::StorageFull,
            Error::Failed { cause: Cause::Unreachable, .. } => io::ErrorKind::NotConnected,
            Error::Failed { cause: Cause::Slow, .. } => io::ErrorKind::TimedOut,
            Error::File { error, .. } => error.kind(),
            _ => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}
