//! NCCL's versions, and the oldest one that works.

use std::fmt;

/// The oldest version that works: the configuration of a communicator has had its present form since.
pub const OLDEST: Version = Version(21_800);

/// As `ncclGetVersion` counts: 2.28.9 is 22809. Until 2.8 a minor version had one digit less: 2.8.4 was 2804.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Version(code) = self;
        let major = if *code < 10_000 { code / 1000 } else { code / 10_000 };
        let minor = if *code < 10_000 { code / 100 % 10 } else { code / 100 % 100 };
        write!(f, "{major}.{minor}.{}", code % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_said_as_people_say_them() {
        let said = [2804, 21_005, 22_809, 23_203].map(|code| Version(code).to_string());
        assert_eq!(said, ["2.8.4", "2.10.5", "2.28.9", "2.32.3"]);
    }
}
