//! Many seeded worlds: none breaks a promise, every situation that matters is met often, every mutant is caught.
//!
//! `ELASTIC_SEEDS` sets the number of worlds; a failing seed is replayed by `cargo run --release -p elastic-sim
//! --bin sim -- --seed N` (with `--oracle` for the second half) and goes to `seeds.txt`.

use elastic_sim::{Counts, Mutant, Outcome, World};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Worlds in CI, a quarter of them under the oracle.
const SEEDS: u64 = 20_000;
/// Each named situation is met at least so often.
const SITUATIONS_MIN: u64 = 100;

fn world(seed: u64, is_oracle: bool, mutant: Option<Mutant>) -> Outcome {
    let world = World::new(seed, mutant, false);
    if is_oracle { world.under_oracle().run() } else { world.run() }
}

/// Runs worlds on all cores; stops early once `enough` says so.
fn run_all(
    seeds: u64,
    run: impl Fn(u64) -> Outcome + Sync,
    enough: impl Fn(&[String]) -> bool + Sync,
) -> (Counts, Vec<String>) {
    let next = AtomicU64::new(0);
    let sums = Mutex::new((Counts::default(), Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds || enough(&sums.lock().expect("no worker panicked").1) {
                        return;
                    }
                    let outcome = run(seed);
                    let mut sums = sums.lock().expect("no worker panicked");
                    sums.0.add(&outcome.counts);
                    sums.1.extend(outcome.violations.into_iter().map(|v| format!("seed {seed}: {v}")));
                }
            });
        }
    });
    sums.into_inner().expect("no worker panicked")
}

fn seeds() -> u64 {
    std::env::var("ELASTIC_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SEEDS)
}

#[test]
fn no_world_breaks_a_promise_and_every_situation_is_met() {
    let seeds = seeds();
    let is_oracle = |seed: u64| seed % 4 == 3;
    let (counts, violations) = run_all(seeds, |seed| world(seed, is_oracle(seed), None), |v| v.len() >= 10);
    let faults: u64 = counts.faults.values().sum();
    println!("{} worlds, {faults} faults {:?}, {} frames lost", counts.runs, counts.faults, counts.frames_lost);
    println!(
        "{} processes started, {} restored from a checkpoint, {} views",
        counts.spawned, counts.restored, counts.views_taken
    );
    let situations = [
        ("late segment used", counts.late_segments),
        ("owner lost after k chunks", counts.owner_lost_after_k_chunks),
        ("leader change in mid-view", counts.leader_changed_in_mid_view),
        ("joiner past the log", counts.past_the_log),
        ("state installed from peers", counts.states_installed),
        ("old leader fenced at its write", counts.fenced),
        ("old order dropped by an agent", counts.wants_dropped),
    ];
    for (name, times) in situations {
        println!("{name}: {times}");
    }
    assert!(violations.is_empty(), "{}", violations.join("\n"));
    for (name, times) in situations {
        assert!(times >= SITUATIONS_MIN * seeds / SEEDS, "{name}: met only {times} times");
    }
}

#[test]
fn the_same_seed_gives_the_same_world_bit_for_bit() {
    for seed in 0..50 {
        let (a, b) = (world(seed, seed % 2 == 1, None), world(seed, seed % 2 == 1, None));
        assert_eq!(a.fingerprint, b.fingerprint, "seed {seed}");
    }
}

#[test]
fn every_seed_that_once_failed_passes() {
    for line in include_str!("../seeds.txt").lines().filter(|l| !l.trim().is_empty() && !l.starts_with('#')) {
        let mut words = line.split_whitespace();
        let seed: u64 = words.next().and_then(|w| w.parse().ok()).expect("a seed begins the line");
        let outcome = world(seed, words.next() == Some("oracle"), None);
        assert!(outcome.violations.is_empty(), "seed {seed}: {:?}", outcome.violations);
    }
}

fn is_caught(mutant: Mutant) {
    let (counts, violations) = run_all(2_000, |seed| world(seed, seed % 4 == 3, Some(mutant)), |v| !v.is_empty());
    let first = violations.first().unwrap_or_else(|| panic!("{mutant:?} got through {} worlds", counts.runs));
    println!("{mutant:?} caught after {} worlds: {first}", counts.runs);
}

#[test]
fn a_member_without_the_fence_is_caught() {
    is_caught(Mutant::NoFence);
}

#[test]
fn segments_freed_too_early_are_caught() {
    is_caught(Mutant::EarlyFree);
}

#[test]
fn a_checkpoint_called_published_before_it_is_synced_is_caught() {
    is_caught(Mutant::PublishBeforeSync);
}

#[test]
fn a_joiner_counted_too_early_is_caught() {
    is_caught(Mutant::JoinerCountedEarly);
}

#[test]
fn a_segment_of_the_wrong_step_is_caught() {
    is_caught(Mutant::WrongStepSegment);
}
