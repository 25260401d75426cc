//! How a wire message becomes a domain value: the trait, the error with its path, and the checks that
//! many fields share.

use elastic_spec::limits::{ERROR_FILE_BYTES_MAX, SECRET_BYTES_MAX, TEXT_BYTES_MAX};
use elastic_spec::{Digest, JobId, NodeId, Rank, WorkerId};
use std::fmt;

/// A domain type with a wire form. `read` is the door: nothing else checks wire input.
pub trait Wire: Sized {
    type Pb;
    fn read(pb: Self::Pb) -> Result<Self, WireError>;
    fn write(self) -> Self::Pb;
}

/// What is wrong with a message, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError {
    path: String,
    problem: String,
}

impl WireError {
    pub(crate) fn new(field: &str, problem: impl fmt::Display) -> WireError {
        WireError { path: field.to_string(), problem: problem.to_string() }
    }

    /// Says which field of the outer message it was.
    pub(crate) fn within(mut self, outer: impl fmt::Display) -> WireError {
        self.path = match self.path.as_str() {
            "" => outer.to_string(),
            inner => format!("{outer}.{inner}"),
        };
        self
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.problem)
    }
}

impl std::error::Error for WireError {}

/// Gives a message its public conversions; `root` is how errors call it.
macro_rules! message {
    ($domain:ty, $root:literal) => {
        impl TryFrom<<$domain as crate::convert::Wire>::Pb> for $domain {
            type Error = crate::convert::WireError;
            fn try_from(pb: <$domain as crate::convert::Wire>::Pb) -> Result<$domain, crate::convert::WireError> {
                crate::convert::Wire::read(pb).map_err(|e: crate::convert::WireError| e.within($root))
            }
        }
        impl From<$domain> for <$domain as crate::convert::Wire>::Pb {
            fn from(value: $domain) -> Self {
                crate::convert::Wire::write(value)
            }
        }
    };
}
pub(crate) use message;

pub(crate) fn one<T: Wire>(field: &str, pb: T::Pb) -> Result<T, WireError> {
    T::read(pb).map_err(|e| e.within(field))
}

pub(crate) fn needed<T: Wire>(field: &str, pb: Option<T::Pb>) -> Result<T, WireError> {
    one(field, pb.ok_or_else(|| WireError::new(field, "is missing"))?)
}

pub(crate) fn maybe<T: Wire>(field: &str, pb: Option<T::Pb>) -> Result<Option<T>, WireError> {
    pb.map(|pb| one(field, pb)).transpose()
}

pub(crate) fn list<T: Wire>(field: &str, pbs: Vec<T::Pb>, most: usize) -> Result<Vec<T>, WireError> {
    at_most(field, "entries", pbs.len(), most)?;
    pbs.into_iter().enumerate().map(|(i, pb)| T::read(pb).map_err(|e| e.within(format_args!("{field}[{i}]")))).collect()
}

/// A list whose entries have no wire message of their own.
pub(crate) fn each<A, B>(
    field: &str,
    values: Vec<A>,
    most: usize,
    read: impl Fn(&str, A) -> Result<B, WireError>,
) -> Result<Vec<B>, WireError> {
    at_most(field, "entries", values.len(), most)?;
    values.into_iter().enumerate().map(|(i, v)| read(&format!("{field}[{i}]"), v)).collect()
}

pub(crate) fn at_most(field: &str, what: &str, have: usize, most: usize) -> Result<(), WireError> {
    match have <= most {
        true => Ok(()),
        false => Err(WireError::new(field, format_args!("has {have} {what}, the most is {most}"))),
    }
}

/// A number that the domain keeps smaller than the wire does.
pub(crate) fn small(field: &str, value: u32) -> Result<u16, WireError> {
    u16::try_from(value).map_err(|_| WireError::new(field, format_args!("{value} is above {}", u16::MAX)))
}

pub(crate) fn rank(field: &str, value: u32) -> Result<Rank, WireError> {
    small(field, value).map(Rank)
}

/// Text for people or paths; may be empty.
pub(crate) fn text(field: &str, value: String) -> Result<String, WireError> {
    at_most(field, "bytes", value.len(), TEXT_BYTES_MAX)?;
    Ok(value)
}

/// What a process wrote down of its failure.
pub(crate) fn error_file(field: &str, value: String) -> Result<String, WireError> {
    at_most(field, "bytes", value.len(), ERROR_FILE_BYTES_MAX)?;
    Ok(value)
}

/// Text that stands for something: not empty.
pub(crate) fn word(field: &str, value: String) -> Result<String, WireError> {
    match value.is_empty() {
        true => Err(WireError::new(field, "is empty")),
        false => text(field, value),
    }
}

pub(crate) fn secret(field: &str, value: Vec<u8>) -> Result<Vec<u8>, WireError> {
    at_most(field, "bytes", value.len(), SECRET_BYTES_MAX)?;
    Ok(value)
}

/// A token as it travels in a header; may be empty.
pub(crate) fn token(field: &str, value: String) -> Result<String, WireError> {
    at_most(field, "bytes", value.len(), SECRET_BYTES_MAX)?;
    match value.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(value),
        false => Err(WireError::new(field, "has characters that cannot travel in a header")),
    }
}

pub(crate) fn job(field: &str, value: String) -> Result<JobId, WireError> {
    JobId::parse(&value).map_err(|e| WireError::new(field, e))
}

pub(crate) fn node(field: &str, value: String) -> Result<NodeId, WireError> {
    NodeId::parse(&value).map_err(|e| WireError::new(field, e))
}

pub(crate) fn digest(field: &str, value: &[u8]) -> Result<Digest, WireError> {
    <[u8; 32]>::try_from(value)
        .map(Digest)
        .map_err(|_| WireError::new(field, format_args!("has {} bytes, a digest has 32", value.len())))
}

/// host:port, as others dial it.
pub(crate) fn address(field: &str, value: String) -> Result<String, WireError> {
    at_most(field, "bytes", value.len(), ADDRESS_BYTES_MAX)?;
    let good = value.rsplit_once(':').is_some_and(|(host, port)| {
        let graphic = host.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
        !host.is_empty() && graphic && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    match good {
        true => Ok(value),
        false => {
            let shown: String = value.chars().take(80).collect();
            Err(WireError::new(field, format_args!("{shown:?} is not host:port")))
        }
    }
}

pub(crate) fn workers(ids: Vec<WorkerId>) -> Vec<u64> {
    ids.into_iter().map(|w| w.0).collect()
}

/// Words for a person may be cut; what is cut would have been refused at the other end.
pub(crate) fn cut(mut words: String) -> String {
    words.truncate(words.floor_char_boundary(TEXT_BYTES_MAX));
    words
}

/// A host name has at most 253 bytes; brackets, colon and port come on top.
const ADDRESS_BYTES_MAX: usize = 264;
