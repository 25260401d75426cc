//! The small words of the domain: who, which, when. One newtype each, so that they cannot be mixed.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(/// Position of an active worker in its view, 0..world size.
    Rank(u16));
number!(/// Optimizer updates of the whole job done so far.
    Step(u64));
number!(/// Reductions of the whole job done so far: every step is one round, every validation is one more.
    /// A worker "at round r" holds the state that r rounds have made.
    Round(u64));
number!(/// One of the V fixed logical pieces of every global batch.
    Shard(u16));
number!(/// The store revision that made the leader: the fencing token.
    Term(u64));
number!(/// The leader's counter inside its term.
    Gen(u64));

impl Round {
    /// The round after this one.
    pub fn next(self) -> Round {
        Round(self.0 + 1)
    }
}

/// One life of one worker process: drawn at random by the agent that starts it, never used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerId(pub u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w{:08x}", self.0 as u32 ^ (self.0 >> 32) as u32)
    }
}

/// (term, gen): the order of views. A higher epoch always wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    pub term: Term,
    pub gen_: Gen,
}

impl Epoch {
    pub fn new(term: u64, gen_: u64) -> Epoch {
        Epoch { term: Term(term), gen_: Gen(gen_) }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.gen_)
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// 1 to 63 characters out of a-z, 0-9, '-', '.' and '_', first and last a letter or digit.
            pub fn parse(text: &str) -> Result<$name, BadName> {
                match name_is_good(text) {
                    true => Ok($name(text.to_string())),
                    false => Err(BadName { what: $what, text: text.chars().take(80).collect() }),
                }
            }
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<$name, D::Error> {
                let text = String::deserialize(d)?;
                $name::parse(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

name!(/// One execution of a job: also its run directory's name.
    JobId, "job id");
name!(/// A machine, VM or pod, by a name that survives restarts of its agent.
    NodeId, "node name");
name!(/// Names one token among those of a cluster.
    TokenName, "token name");

/// A name that cannot be a path segment, a key and a label at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} \"{text}\" is not 1 to 63 characters out of a-z, 0-9, '-', '.' and '_' that begin and end with a letter or digit"
)]
pub struct BadName {
    pub what: &'static str,
    pub text: String,
}

fn name_is_good(text: &str) -> bool {
    let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(b))
}

/// A SHA-256, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    pub fn of(bytes: &[u8]) -> Digest {
        use sha2::Digest as _;
        Digest(sha2::Sha256::digest(bytes).into())
    }

    /// The first eight bytes, for frame headers: enough to tell configurations apart, not to trust.
    pub fn short(&self) -> u64 {
        u64::from_be_bytes(self.0[..8].try_into().expect("eight of 32 bytes"))
    }

    pub fn parse(text: &str) -> Option<Digest> {
        // One spelling only: a digest that reads the same must be written the same.
        let is_digit = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        if text.len() != 64 || !text.as_bytes().iter().all(is_digit) {
            return None;
        }
        let mut out = [0; 32];
        for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Digest(out))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Digest, D::Error> {
        let text = String::deserialize(d)?;
        Digest::parse(&text).ok_or_else(|| serde::de::Error::custom("a digest is 64 hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for bad in ["", "..", "a/b", "-a", "a-", "A", "a b", &"x".repeat(64), "ü"] {
            assert!(JobId::parse(bad).is_err(), "{bad:?} must be refused");
        }
        assert_eq!(JobId::parse("digits-7.f_3").unwrap().as_str(), "digits-7.f_3");
    }

    #[test]
    fn a_digest_reads_back_as_written() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(Digest::parse(&digest.to_string()), Some(digest));
        let text = digest.to_string();
        for bad in ["zz", &text[1..], &text.to_uppercase(), &text.replacen("ba", "+a", 1)] {
            assert_eq!(Digest::parse(bad), None, "{bad} has another spelling");
        }
    }

    #[test]
    fn a_later_term_beats_any_gen_of_an_earlier_one() {
        assert!(Epoch::new(2, 0) > Epoch::new(1, 99));
    }
}
