//! The self-test's program as a person runs it, on fakes of driver, compiler and NCCL: real processes, the kernels' own
//! sources run on the processor, and every fault that it is there to find.

mod common;
#[path = "../../../../tensor/cuda/tests/common/mod.rs"]
mod cuda;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A driver and a compiler that run kernels on the processor, and an NCCL, made once.
fn fakes() -> &'static Path {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = common::temp();
        cuda::emulator_in(dir.path());
        common::fake_in(dir.path(), &[]);
        dir
    });
    dir.path()
}

/// A run that sees these libraries only. What the compiler makes is kept from one run to the next.
fn selftest(libraries: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let meeting = common::temp();
    let kept: PathBuf = cuda::emulated_cubins();
    let mut program = Command::new(env!("CARGO_BIN_EXE_elastic-nccl-selftest"));
    program.args(arguments).env("ELASTIC_CUDA_LIBS", format!("{}:-", libraries.display()));
    program.env("XDG_CACHE_HOME", kept).env("FAKE_NCCL_DIR", meeting.path()).envs(environment.iter().copied());
    let Output { status, stdout, stderr } = program.output().expect("the program starts");
    let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    (status.code().expect("no signal ended it"), said)
}

#[test]
fn one_to_four_processes_meet_reduce_abort_die_and_meet_again() {
    let (code, said) = selftest(fakes(), &[], &["--ranks", "1,2,3,4", "--floats", "200003"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.ends_with("self-test passed: 53 things\n"), "{said}");
    assert!(said.contains("NCCL: 2.28.9 (22809) in "), "{said}");
    let digests: Vec<&str> = said.lines().filter_map(|line| line.split("SHA-256 ").nth(1)).collect();
    // Each world has the same rounds, and so the same bits: 2 alone, 4 with others.
    assert_eq!(digests.len(), 2 + 3 * 4, "{said}");
    assert!(digests[2..6] == digests[6..10] && digests[6..10] == digests[10..14], "{said}");
    assert_eq!(digests[..2], digests[2..4], "{said}");
}

#[test]
fn a_death_that_nccl_does_not_notice_ends_the_wait_by_its_bound() {
    let arguments = ["--ranks", "3", "--floats", "1003", "--patience", "2"];
    let (code, said) = selftest(fakes(), &[("FAKE_NCCL_SILENT", "1")], &arguments);
    assert_eq!(code, 0, "{said}");
    // Its bound of 2 s, less what went by before the wait began.
    let told = said.split("late: the stream was not done after ").skip(1);
    let mut waited_ms = told.filter_map(|rest| rest.split_once(" ms:")?.0.parse::<u64>().ok());
    assert!(waited_ms.any(|ms| (1_000..3_000).contains(&ms)), "{said}");
}

#[test]
fn a_json_line_for_each_thing() {
    let (code, said) = selftest(fakes(), &[], &["--ranks", "1", "--floats", "7", "--json"]);
    assert_eq!(code, 0, "{said}");
    let lines: Vec<serde_json::Value> =
        said.lines().map(|line| serde_json::from_str(line).expect("each line is an object")).collect();
    assert_eq!(lines[0]["found"], "GPU");
    let thing = lines.iter().find(|line| line["thing"] == "exact reduction").expect("it is one of them");
    assert!(thing["passed"] == true && thing["ranks"] == 1 && thing["ms"].is_u64(), "{thing}");
    let last = lines.last().expect("there are lines");
    assert!(last["verdict"] == "passed" && last["failed"] == 0 && last["passed"] == 8, "{last}");
}

#[test]
fn what_goes_wrong_is_a_line_of_its_own_and_the_rest_is_not_done() {
    let arguments = ["--ranks", "2", "--floats", "1003", "--patience", "2"];
    // A transfer that the library loses: the ranks wait for it to their bound.
    let (code, said) = selftest(fakes(), &[("FAKE_NCCL_RULE", "hang stream 2")], &arguments);
    assert_eq!(code, 1, "{said}");
    let failed = said.lines().find(|line| line.contains("FAILED")).expect("a line says so");
    assert!(failed.starts_with("  exact reduction ") && failed.contains("late after 2"), "{said}");
    assert!(said.contains("the rest was not done\nself-test FAILED: 1 of the above, 2 passed\n"), "{said}");
    // One that brings other bytes.
    let (code, said) = selftest(fakes(), &[("FAKE_NCCL_FLIPS", "1")], &arguments);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("is the spec's sum; the ranks have "), "{said}");
    // A call that fails.
    let (code, said) = selftest(fakes(), &[("FAKE_NCCL_RULE", "fail ncclCommInitRankConfig 1 3")], &arguments);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("FAILED") && said.contains("  rank 0, other after ") && said.contains("NCCL_DEBUG=INFO"),
        "{said}"
    );
}

#[test]
fn where_there_is_no_gpu_or_no_nccl_there_is_nothing_to_test() {
    let empty = common::temp();
    let (code, said) = selftest(empty.path(), &[], &[]);
    assert_eq!(code, 3, "{said}");
    assert!(said.starts_with("nothing to test here: libcuda is not on this machine"), "{said}");
    let without_nccl = common::temp();
    cuda::driver_in(without_nccl.path());
    let (code, said) = selftest(without_nccl.path(), &[], &["--json"]);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("\"nothing to test\"") && said.contains("pip install nvidia-nccl-cu13"), "{said}");
}

#[test]
fn wrong_words_are_told_with_what_is_allowed() {
    for (arguments, why) in [
        (&["--ranks", "0"][..], "\"0\" is no number from 1 to 8"),
        (&["--floats"], "--floats wants a value"),
        (&["--rank"], "unknown argument: --rank"),
    ] {
        let (code, said) = selftest(fakes(), &[], arguments);
        assert_eq!(code, 2, "{said}");
        assert!(said.starts_with(&format!("error: {why}\n")) && said.contains("Usage:"), "{said}");
    }
    let (code, said) = selftest(fakes(), &[], &["--help"]);
    assert!(code == 0 && said.contains("Exit codes: 0 all passed"), "{said}");
}
