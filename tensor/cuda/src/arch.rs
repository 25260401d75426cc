//! What machine code is made for: `sm_90` and its like, and which GPU runs which.

use std::fmt;
use std::str::FromStr;

/// A GPU's compute capability: 9.0 is Hopper, 10.0 Blackwell of data centres.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Capability {
    pub major: u32,
    pub minor: u32,
}

/// A target of the compiler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Arch {
    pub capability: Capability,
    /// `sm_90a`: with instructions that only this very capability has.
    pub specific: bool,
}

/// What a kernel is compiled for if its file says nothing else: A100, H100 and H200, B200.
pub const DEFAULT: [Arch; 3] = [Arch::plain(8, 0), Arch::plain(9, 0), Arch::plain(10, 0)];

impl Arch {
    pub const fn plain(major: u32, minor: u32) -> Arch {
        Arch { capability: Capability { major, minor }, specific: false }
    }

    /// Whether a GPU runs this machine code: one of the same major version and not a lower minor one.
    pub fn runs_on(self, gpu: Capability) -> bool {
        let Capability { major, minor } = self.capability;
        if self.specific { self.capability == gpu } else { major == gpu.major && minor <= gpu.minor }
    }

    /// The best of some targets for a GPU.
    pub fn best(of: impl IntoIterator<Item = Arch>, gpu: Capability) -> Option<Arch> {
        of.into_iter().filter(|arch| arch.runs_on(gpu)).max_by_key(|arch| (arch.capability.minor, arch.specific))
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Capability { major, minor } = self.capability;
        write!(f, "sm_{major}{minor}{}", if self.specific { "a" } else { "" })
    }
}

impl FromStr for Arch {
    type Err = String;

    fn from_str(text: &str) -> Result<Arch, String> {
        let wrong = || format!("\"{text}\" is no target of the compiler; allowed: sm_80, sm_90a and their like");
        let rest = text.strip_prefix("sm_").ok_or_else(wrong)?;
        let specific = rest.ends_with('a');
        let number: u32 = rest.trim_end_matches('a').parse().map_err(|_| wrong())?;
        let arch = Arch { capability: Capability { major: number / 10, minor: number % 10 }, specific };
        if arch.to_string() == text { Ok(arch) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in ["sm_80", "sm_90", "sm_90a", "sm_100", "sm_103", "sm_120"] {
            assert_eq!(text.parse::<Arch>().map(|arch| arch.to_string()), Ok(text.to_string()));
        }
        for text in ["", "sm_", "sm_a", "sm_90b", "sm_90aa", "sm_090", "90", "compute_90"] {
            assert!(text.parse::<Arch>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_gpu_runs_code_of_its_major_version_and_takes_the_best() {
        let best = |targets: &str, major, minor| {
            let targets = targets.split(' ').map(|text| text.parse().expect("a target"));
            Arch::best(targets, Capability { major, minor }).map(|arch| arch.to_string())
        };
        let all = "sm_80 sm_90 sm_90a sm_100";
        assert_eq!(best(all, 8, 0).as_deref(), Some("sm_80"));
        assert_eq!(best(all, 8, 9).as_deref(), Some("sm_80"));
        assert_eq!(best(all, 9, 0).as_deref(), Some("sm_90a"));
        assert_eq!(best(all, 10, 3).as_deref(), Some("sm_100"));
        assert_eq!(best(all, 12, 0), None);
        assert_eq!(best(all, 7, 5), None);
        assert_eq!(best("sm_80 sm_86", 8, 9).as_deref(), Some("sm_86"));
    }
}
