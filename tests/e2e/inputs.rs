//! Batches that are slow to come: the wait is told, and no bit changes.

use crate::cluster::{PACE, assert_same, job_file, submit_local};

/// Making a batch takes far longer than a step (60 and 3 ms), or less (1 and 3 ms).
#[test]
fn waits_for_slow_inputs_are_told_and_batches_made_ahead_are_not_waited_for() {
    let train = |name: &str, points: String| {
        let dir = tempfile::tempdir().expect("a directory");
        let args = ["--workers", "2", "--set", "train.epochs=1"];
        let (result, proof) = submit_local(dir.path(), &job_file(name), &args, &[("ELASTIC_FAIL", points)]);
        (result["input_wait_us"].as_u64().expect("the wait is told"), proof)
    };
    let (_, plain) = train("digits", PACE.into());
    let (ahead, first) = train("digits", format!("{PACE},before-input:every:sleep:1"));
    let (late, second) = train("digits", format!("{PACE},before-input:every:sleep:60"));
    assert_same(&first, &plain);
    assert_same(&second, &plain);
    assert!(late > 20_000, "a batch takes 60 ms, the rest of a step 4: {late} us");
    assert!(2 * ahead < late, "a batch of 1 ms is ready when the step begins: {ahead} us, and {late} us of slow ones");
}
