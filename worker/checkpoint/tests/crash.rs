//! The writer against a disk that loses, tears and reorders what was not synced, stopped at every operation.

mod common;

use common::{origin, small};
use elastic_checkpoint::simulated::{Failure, SimDisk, Syncs};
use elastic_checkpoint::{Checkpoints, Contents, Keep};
use std::sync::Arc;

/// Publishes steps 10, 20 and 30 and cleans up after each. What was promised: steps whose publishing
/// returned `Ok`.
fn life(checkpoints: &Checkpoints) -> Vec<u64> {
    let mut promised = Vec::new();
    for (step, gen_) in [(10, 1), (20, 1), (30, 2)] {
        let origin = origin(1, gen_);
        if checkpoints.publish(&origin, &small(step)).is_err() {
            break;
        }
        promised.push(step);
        let _ = checkpoints.clean(&origin, &Keep { newest: 2, in_use: vec![] });
    }
    promised
}

fn at(disk: &SimDisk) -> Checkpoints {
    Checkpoints::on(Arc::new(disk.clone()), "/run/checkpoints")
}

/// What a crash at `operation` leaves: (steps promised, the newest state found, how many were refused).
fn crash(syncs: Syncs, operation: u64, failure: Failure) -> (Vec<u64>, Option<Contents>, usize) {
    let disk = SimDisk::new(syncs);
    disk.crash_at(operation);
    let promised = life(&at(&disk));
    let found = at(&disk.after(failure)).newest_verified().unwrap();
    (promised, found.newest.map(|r| r.contents), found.refused.len())
}

/// Says what is wrong with what was found.
fn judge(promised: &[u64], newest: Option<&Contents>) -> Result<(), String> {
    let last = promised.last().copied();
    match newest {
        Some(found) if *found != small(found.step.0) => Err(format!("step {} is not as it was written", found.step)),
        Some(found) if Some(found.step.0) < last => Err(format!("step {} instead of {last:?}", found.step)),
        None if last.is_some() => Err(format!("nothing instead of step {last:?}")),
        _ => Ok(()),
    }
}

fn operations() -> u64 {
    let disk = SimDisk::default();
    assert_eq!(life(&at(&disk)), [10, 20, 30]);
    disk.operations()
}

#[test]
fn after_a_crash_at_any_operation_the_old_or_the_new_checkpoint_is_whole() {
    let (mut points, mut refused, mut new, mut old) = (0, 0, 0, 0);
    for operation in 0..operations() {
        let powers = (0..16).map(|seed| Failure::Power { seed: seed * 1000 + operation });
        for failure in powers.chain([Failure::Process]) {
            let (promised, newest, bad) = crash(Syncs::Kept, operation, failure);
            if let Err(what) = judge(&promised, newest.as_ref()) {
                panic!("crash at operation {operation}, {failure:?}: {what}");
            }
            points += 1;
            refused += bad;
            match newest.map(|c| c.step.0) > promised.last().copied() {
                true => new += 1,
                false => old += 1,
            }
        }
    }
    println!(
        "{points} crash points: {old} left the old checkpoint, {new} the new one, {refused} torn ones were refused"
    );
    assert!(points >= 1_000, "{points} crash points");
    assert!(old > 100 && new > 10, "both outcomes were seen: {old} old, {new} new");
}

#[test]
fn a_writer_that_does_not_sync_is_caught() {
    let caught = (0..operations())
        .filter(|operation| {
            (0..4).any(|seed| {
                let (promised, newest, _) = crash(Syncs::Ignored, *operation, Failure::Power { seed });
                judge(&promised, newest.as_ref()).is_err()
            })
        })
        .count();
    assert!(caught > 10, "a mutant that publishes before its bytes are on the disk must be found, {caught} times");
}

#[test]
fn a_run_goes_on_after_a_crash_and_tidies_up() {
    for operation in (0..operations()).step_by(3) {
        let disk = SimDisk::default();
        disk.crash_at(operation);
        life(&at(&disk));
        let disk = disk.after(Failure::Power { seed: operation });
        let later = origin(2, 1);
        let checkpoints = at(&disk);
        checkpoints.publish(&later, &small(40)).unwrap();
        checkpoints.clean(&later, &Keep { newest: 1, in_use: vec![] }).unwrap();
        use elastic_checkpoint::Disk;
        let names = disk.names(checkpoints.dir()).unwrap();
        assert_eq!(names, ["step-00000040.t2.g1"], "after a crash at operation {operation}");
    }
}
