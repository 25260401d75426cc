//! The sources of all kernels, and what each is compiled for.
//!
//! They lie in `kernels/*.cu`, with their headers in `kernels/*.cuh`; the list is that of the files. A line
//! `// targets: sm_80, sm_90a` in a file says what it is compiled for, if that is not the default.

use crate::arch::{Arch, DEFAULT};
use crate::nvrtc::Source;

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

    pub fn kernels() -> &'static [(&'static str, &'static str)] {
        KERNELS
    }

    pub fn headers() -> &'static [(&'static str, &'static str)] {
        HEADERS
    }

    pub fn cubins() -> &'static [(&'static str, &'static [u8])] {
        CUBINS
    }
}

/// Sources by their files' names, with all headers.
pub fn all() -> impl Iterator<Item = Source<'static>> {
    let headers = embedded::headers();
    embedded::kernels().iter().map(|(name, text)| Source { name, text, headers })
}

/// The kernel of a file, by its name without `.cu`.
pub fn named(name: &str) -> Option<Source<'static>> {
    all().find(|source| source.name.strip_suffix(".cu") == Some(name))
}

/// Machine code that was put into this program when it was built, by the names of its files.
pub fn embedded_cubins() -> &'static [(&'static str, &'static [u8])] {
    embedded::cubins()
}

/// What a source says that it is compiled for.
pub fn targets(source: &Source) -> Result<Vec<Arch>, String> {
    let said = source.text.lines().find_map(|line| line.strip_prefix("// targets:"));
    let Some(said) = said else { return Ok(DEFAULT.to_vec()) };
    let read = |word: &str| word.trim().parse().map_err(|why| format!("{}: targets: {why}", source.name));
    said.split(',').map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_says_targets_that_there_are() {
        assert!(named("fill").is_some() && named("nothing").is_none());
        for source in all() {
            assert!(!targets(&source).expect("targets").is_empty(), "{}", source.name);
        }
    }

    #[test]
    fn targets_stand_in_the_source() {
        let of = |text| targets(&Source { name: "a.cu", text, headers: &[] });
        assert_eq!(of("// maths\n"), Ok(DEFAULT.to_vec()));
        assert_eq!(of("// targets: sm_90a\nint a;"), Ok(vec!["sm_90a".parse().expect("a target")]));
        assert_eq!(of("// targets: sm_80, sm_90\n").map(|targets| targets.len()), Ok(2));
        assert!(of("// targets: sm_80 sm_90").is_err_and(|why| why.starts_with("a.cu: targets: \"sm_80 sm_90\"")));
    }
}
