//! A communicator's whole life in real processes, on the fake NCCL: made, used, aborted in the middle, made anew after a
//! kill -9, closed; and the exact reduction on it, with the bits of the spec's tree for every number of ranks.

#[path = "../common/mod.rs"]
mod common;
mod job;
mod rank;
mod world;

use elastic_nccl::Spread;
use elastic_spec::WorkerId;
use job::{Job, undisturbed};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;
use world::{Outcome, Script, World};

/// Not a test of its own: the rank that the others start.
#[test]
fn a_rank_process() {
    if let (Ok(id), Ok(job)) = (std::env::var("NCCL_TEST_RANK"), std::env::var("NCCL_TEST_JOB")) {
        rank::main(WorkerId(id.parse().expect("a number")), Job::from_text(&job));
    }
}

/// Folders with the library, made once: of 2.28.9, and of a version that cannot call a thread back.
fn library(can_revoke: bool) -> PathBuf {
    static BOTH: OnceLock<[TempDir; 2]> = OnceLock::new();
    let both = BOTH.get_or_init(|| {
        let (new, old) = (common::temp(), common::temp());
        common::fake_in(new.path(), &[]);
        common::fake_in(old.path(), &["-DVERSION=22703", "-DNO_REVOKE"]);
        [new, old]
    });
    both[usize::from(!can_revoke)].path().into()
}

fn job() -> Job {
    Job {
        library: library(true),
        rounds: 12,
        shards: 16,
        floats: 1000,
        spread: Spread::Sends,
        // So long that no test waits for it to end: what ends a wait is an abort.
        patience: Duration::from_secs(45),
    }
}

/// All that were not killed have come to the bits of the undisturbed job.
fn check(job: &Job, ended: usize, outcome: &Outcome) {
    let wanted = undisturbed(job).to_string();
    assert_eq!(outcome.digests.len(), ended, "{outcome:?}");
    assert!(outcome.digests.values().all(|digest| *digest == wanted), "{wanted} is wanted: {outcome:?}");
}

#[test]
fn one_to_four_processes_come_to_the_same_bits() {
    for spread in [Spread::Sends, Spread::Broadcast] {
        let job = Job { spread, ..job() };
        for world in 1..=4 {
            let outcome = World::run(&job, world, Script::default());
            check(&job, world as usize, &outcome);
            assert_eq!((outcome.views, outcome.lost.len()), (1, 0), "{outcome:?}");
        }
    }
}

#[test]
fn large_chunks_that_no_socket_takes_whole_come_to_the_same_bits() {
    let job = Job { floats: 600_000, rounds: 2, ..job() };
    check(&job, 3, &World::run(&job, 3, Script::default()));
}

#[test]
fn a_killed_rank_costs_a_view_and_no_bit() {
    let job = job();
    // The lowest rank too, which made the id.
    for (victim, at) in [(1, 3), (2, 5), (4, 11)] {
        let outcome = World::run(&job, 4, Script { kill: Some((victim, at)), ..Script::default() });
        check(&job, 3, &outcome);
        assert!(outcome.views >= 2, "{outcome:?}");
    }
}

#[test]
fn a_death_that_nccl_does_not_notice_is_ended_by_an_abort_from_another_thread() {
    let job = job();
    let outcome = World::run(&job, 4, Script { kill: Some((2, 4)), is_silent: true, ..Script::default() });
    check(&job, 3, &outcome);
    // The ranks would have waited 45 s.
    assert!(outcome.aborted_ms_max < 5000, "{outcome:?}");
}

#[test]
fn a_view_in_the_middle_of_a_round_aborts_it_and_all_meet_again() {
    let job = Job { rounds: 40, ..job() };
    let outcome = World::run(&job, 3, Script { view_at: Some(7), ..Script::default() });
    check(&job, 3, &outcome);
    assert!(outcome.views >= 2, "{outcome:?}");
}

#[test]
fn a_rank_that_hangs_on_its_stream_is_ended_with_the_others() {
    let job = job();
    let script = Script { rule: Some((2, "hang stream 5".into())), is_watched: true, ..Script::default() };
    check(&job, 3, &World::run(&job, 3, script));
}

#[test]
fn a_call_that_does_not_return_is_called_back() {
    let job = job();
    for call in ["ncclSend", "ncclGroupEnd", "ncclCommGetAsyncError", "ncclCommUserRank"] {
        let number = if call == "ncclCommUserRank" { 1 } else { 6 };
        let script = Script { rule: Some((2, format!("hang {call} {number}"))), is_watched: true, ..Script::default() };
        check(&job, 3, &World::run(&job, 3, script));
    }
}

#[test]
fn where_it_cannot_be_called_back_the_process_says_so_and_ends() {
    let job = Job { library: library(false), ..job() };
    let script = Script { rule: Some((2, "hang ncclSend 6".into())), is_watched: true, ..Script::default() };
    let outcome = World::run(&job, 3, script);
    check(&job, 2, &outcome);
    let said = outcome.stuck.first().expect("it says so");
    assert!(said.starts_with("ncclGroupEnd has not returned for ") && said.contains("2.28.7"), "{said}");
}

#[test]
fn each_call_that_fails_is_named_and_costs_a_view_and_no_bit() {
    let job = Job { rounds: 3, ..job() };
    let calls = [
        ("ncclCommInitRankConfig", 1),
        ("ncclCommGetAsyncError", 2),
        ("ncclCommGetAsyncError", 9),
        ("ncclCommCount", 1),
        ("ncclCommUserRank", 1),
        ("ncclGroupStart", 2),
        ("ncclSend", 3),
        ("ncclRecv", 4),
        ("ncclGroupEnd", 3),
        ("ncclCommFinalize", 1),
    ];
    for (call, number) in calls {
        let rule = Some((2, format!("fail {call} {number} 3")));
        let outcome = World::run(&job, 2, Script { rule, ..Script::default() });
        check(&job, 2, &outcome);
        let is_named = |said: &String| {
            said.contains(&format!("{call}: internal error (3): so says the test; a fault inside NCCL"))
        };
        // What a poll finds is said of the call that is waited for.
        let is_poll = call == "ncclCommGetAsyncError";
        assert!(is_poll && !outcome.lost.is_empty() || outcome.lost.iter().any(is_named), "{call}: {outcome:?}");
    }
}

#[test]
fn a_transfer_that_fails_on_the_stream_is_an_error_of_the_round() {
    let job = job();
    let outcome = World::run(&job, 3, Script { rule: Some((3, "fail stream 7 6".into())), ..Script::default() });
    check(&job, 3, &outcome);
    assert!(outcome.lost.iter().any(|said| said.contains("remote process exited (6)")), "{outcome:?}");
}
