//! Where a store is: the text that a person writes, checked.

use crate::error::Error;
use crate::name;
use std::fmt;
use std::path::PathBuf;

/// A folder, or a prefix in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Folder(PathBuf),
    /// `prefix` has no slash at its ends; empty for the whole bucket.
    S3 {
        bucket: String,
        prefix: String,
    },
    /// Of this process alone, for tests.
    Memory,
}

impl Address {
    /// `s3://bucket/prefix`, `file:///folder`, or the path of a folder.
    pub fn parse(text: &str) -> Result<Address, Error> {
        let bad = |why: String| Err(Error::Address { address: text.to_string(), why });
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
            if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(is_plain) {
                return bad(format!("{bucket:?} is no bucket's name (3 to 63 of a-z, 0-9, '.' and '-')"));
            }
            let prefix = prefix.trim_end_matches('/');
            if !prefix.is_empty() {
                name::check(prefix).or_else(|error| bad(error.to_string()).map(|_: Address| ()))?;
            }
            return Ok(Address::S3 { bucket: bucket.to_string(), prefix: prefix.to_string() });
        }
        let path = match (text.strip_prefix("file://"), text.split_once("://")) {
            (Some(path), _) if !path.starts_with('/') => {
                return bad("a file:// address is that of a folder here: file:///folder, with three slashes".into());
            }
            (Some(path), _) => path,
            (None, Some((scheme, _))) => {
                return bad(format!("{scheme}:// is not known; use s3://bucket/prefix, file:///folder or /folder"));
            }
            (None, None) => text,
        };
        match path {
            "" => bad("it is empty; use s3://bucket/prefix, file:///folder or /folder".into()),
            path if path.contains('\0') => bad("it holds a NUL".into()),
            path => Ok(Address::Folder(PathBuf::from(path))),
        }
    }

    /// Whether a text is meant for a store on the network rather than for a folder.
    pub fn is_remote(text: &str) -> bool {
        text.starts_with("s3://")
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Folder(path) => write!(f, "{}", path.display()),
            Address::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Address::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Address::Memory => f.write_str("memory:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_written() {
        let s3 = |bucket: &str, prefix: &str| Address::S3 { bucket: bucket.into(), prefix: prefix.into() };
        for (text, wanted, written) in [
            ("s3://models", s3("models", ""), "s3://models"),
            ("s3://models/", s3("models", ""), "s3://models"),
            ("s3://models/a/b/", s3("models", "a/b"), "s3://models/a/b"),
            ("file:///data/x", Address::Folder("/data/x".into()), "/data/x"),
            ("/data/x", Address::Folder("/data/x".into()), "/data/x"),
            ("out", Address::Folder("out".into()), "out"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!((&address, address.to_string().as_str()), (&wanted, written));
        }
    }

    #[test]
    fn what_is_no_address_says_what_would_be_one() {
        for (text, says) in [
            ("", "s3://bucket/prefix"),
            ("s3://", "no bucket's name"),
            ("s3://Models/a", "no bucket's name"),
            ("s3://models/a//b", "an empty part"),
            ("s3://models/../b", "\"..\""),
            ("gs://models/a", "gs:// is not known; use s3://"),
            ("file://data", "three slashes"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }
}
