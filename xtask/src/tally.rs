//! Reads what `cargo test` prints and counts it.
//!
//! libtest knows passed, failed and ignored, not "could not run here". A test that must skip says so and
//! returns: by a line `skipped: <test name>: <reason>` on its output, or by the same line without the first word
//! in the file named by `ELASTIC_SKIP_FILE` (docs/testing.md). It was counted as passed, so it is taken off there.

use std::collections::BTreeMap;

/// Counts of a whole run, and what a person must read of it.
#[derive(Debug, Default)]
pub struct Tally {
    passed: u64,
    ignored: u64,
    /// Names of failed tests, each with the program it is in.
    pub failed: Vec<String>,
    /// Reason by test name.
    pub skipped: BTreeMap<String, String>,
    program: Option<Program>,
}

/// The test program whose lines are being read.
#[derive(Debug)]
struct Program {
    name: String,
    lines: Vec<String>,
    has_result: bool,
}

/// What a line was, where somebody should be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    Nothing,
    /// A program has ended with these counts.
    Result {
        program: String,
        passed: u64,
        failed: u64,
    },
}

/// The three numbers of the last line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Tally {
    /// Takes the next line of the merged output.
    pub fn line(&mut self, line: &str) -> Said {
        if let Some(name) = program_name(line) {
            self.end_program();
            self.program = Some(Program { name, lines: Vec::new(), has_result: false });
            return Said::Nothing;
        }
        if let Some((name, reason)) = skip_line(line) {
            self.skip(name, reason);
        }
        if let Some((passed, failed, ignored)) = result_line(line) {
            self.passed += passed;
            self.ignored += ignored;
            let program = self.program.get_or_insert_with(|| Program {
                name: "a program".to_string(),
                lines: Vec::new(),
                has_result: false,
            });
            program.has_result = true;
            return Said::Result { program: program.name.clone(), passed, failed };
        }
        if let Some(program) = &mut self.program {
            if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
                self.failed.push(format!("{name} ({})", program.name));
            } else if let Some((name, reason)) =
                line.strip_prefix("test ").and_then(|rest| rest.split_once(" ... ignored"))
            {
                let reason = reason.trim_start_matches([',', ' ']);
                self.skipped.insert(name.to_string(), format!("ignored: {reason}"));
            }
            program.lines.push(line.to_string());
        }
        Said::Nothing
    }

    /// Counts something that is no test of a program and went well.
    pub fn pass(&mut self) {
        self.passed += 1;
    }

    /// Takes note of something that was not even started.
    pub fn leave_out(&mut self, name: &str, reason: &str) {
        self.ignored += 1;
        self.skipped.insert(name.to_string(), reason.to_string());
    }

    /// Takes note that a test could not run here.
    pub fn skip(&mut self, name: &str, reason: &str) {
        self.skipped.entry(name.trim().to_string()).or_insert_with(|| reason.trim().to_string());
    }

    /// What the program being read has printed so far.
    pub fn program_output(&self) -> &[String] {
        self.program.as_ref().map(|p| p.lines.as_slice()).unwrap_or_default()
    }

    /// A program that began its tests and never printed a result has crashed.
    pub fn end_program(&mut self) {
        let crashed = |p: &Program| !p.has_result && p.lines.iter().any(|l| l.starts_with("running "));
        if let Some(program) = self.program.take().filter(crashed) {
            self.failed.push(format!("{} ended without a result", program.name));
        }
    }

    /// `succeeded`: what cargo's exit status said. A build error is a failure though no test ran.
    pub fn counts(&mut self, succeeded: bool) -> Counts {
        self.end_program();
        if !succeeded && self.failed.is_empty() {
            self.failed.push("cargo test itself (see its messages)".to_string());
        }
        let skipped = self.skipped.len() as u64;
        // Ignored tests were never among the passed ones.
        let said_passed = skipped.saturating_sub(self.ignored);
        Counts { passed: self.passed.saturating_sub(said_passed), failed: self.failed.len() as u64, skipped }
    }
}

/// `     Running unittests src/lib.rs (target/release/deps/elastic_spec-0f3c)`, `   Doc-tests elastic_spec`
fn program_name(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} examples in docs"));
    }
    let (what, file) = line.strip_prefix("Running ")?.rsplit_once(" (")?;
    let stem = file.strip_suffix(')')?.rsplit('/').next()?;
    let (crate_name, _hash) = stem.rsplit_once('-')?;
    let kind = what.strip_prefix("unittests ").map_or("tests", |_| "unit tests");
    Some(format!("{crate_name} {kind}"))
}

/// `test result: ok. 41 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.02s`
fn result_line(line: &str) -> Option<(u64, u64, u64)> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = counts.split("; ").find(|part| part.ends_with(word))?;
        part.split(' ').next()?.parse::<u64>().ok()
    };
    Some((number("passed")?, number("failed")?, number("ignored")?))
}

/// `skipped: etcd_conformance: no etcd on PATH`; a name has no spaces, but may have `::`.
fn skip_line(line: &str) -> Option<(&str, &str)> {
    skip_entry(line.strip_prefix("skipped: ")?)
}

/// A line of the skip file: `<test name>: <reason>`.
pub fn skip_entry(line: &str) -> Option<(&str, &str)> {
    let (name, reason) = line.split_once(": ")?;
    (!name.is_empty() && !name.contains(' ') && !reason.trim().is_empty()).then_some((name, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Tally {
        let mut tally = Tally::default();
        for line in text.lines() {
            tally.line(line);
        }
        tally
    }

    const GOOD: &str = "\
     Running unittests src/lib.rs (target/release/deps/elastic_spec-0f3c4d)

running 3 tests
test ids::tests::a ... ok
test b ... ok
test c ... ignored, only by hand

successes:

---- b stdout ----
skipped: store::b: no etcd on PATH

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.02s

   Doc-tests elastic_spec

running 0 tests

test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_skipped_test_is_not_a_passed_one() {
        let mut tally = read(GOOD);
        assert_eq!(tally.counts(true), Counts { passed: 1, failed: 0, skipped: 2 });
        assert_eq!(tally.skipped["store::b"], "no etcd on PATH");
        assert_eq!(tally.skipped["c"], "ignored: only by hand");
    }

    #[test]
    fn what_was_not_started_is_no_passed_test() {
        let mut tally = read(GOOD);
        tally.leave_out("bench::torchrun", "no python3 on PATH");
        assert_eq!(tally.counts(true), Counts { passed: 1, failed: 0, skipped: 3 });
    }

    #[test]
    fn a_skip_said_twice_counts_once() {
        let mut tally = read(GOOD);
        let (name, reason) = skip_entry("store::b: no etcd on PATH").unwrap();
        tally.skip(name, reason);
        assert_eq!(tally.counts(true).skipped, 2);
    }

    #[test]
    fn a_program_that_dies_is_a_failure_though_no_test_says_so() {
        let mut tally = read(
            "     Running tests/e2e.rs (target/release/deps/e2e-11)\n\nrunning 2 tests\ntest a ... ok\n\
             error: test failed, to rerun pass `-p x`\nCaused by:\n  process didn't exit successfully (signal: 6)\n\
             \x20    Running tests/sim.rs (target/release/deps/sim-22)\n\nrunning 1 test\ntest s ... ok\n\n\
             test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n",
        );
        assert_eq!(tally.counts(false), Counts { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(tally.failed, vec!["e2e tests ended without a result"]);
    }

    #[test]
    fn a_build_that_fails_is_a_failure() {
        let mut tally = read("error[E0425]: cannot find value `x`\nerror: could not compile `elastic-spec`\n");
        assert_eq!(tally.counts(false), Counts { passed: 0, failed: 1, skipped: 0 });
    }

    #[test]
    fn failed_tests_are_named_with_their_program() {
        let mut tally = read(
            "     Running tests/tidy/main.rs (target/release/deps/tidy-33)\n\nrunning 2 tests\ntest arrows ... FAILED\n\
             test words ... ok\n\ntest result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 0.10s\n",
        );
        assert_eq!(tally.counts(false), Counts { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(tally.failed, vec!["arrows (tidy tests)"]);
    }
}
