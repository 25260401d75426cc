//! The last step, interrupted at each of its points.

use crate::cluster::{assert_same, job_file, submit_local};

const POINTS: [&str; 10] = [
    "before-compute",
    "after-compute",
    "after-contribute",
    "owner-summed",
    "after-reduced-sent",
    "before-apply",
    "after-apply",
    "publish-begin",
    "publish-before-rename",
    "finished",
];

#[test]
fn the_last_step_interrupted_at_any_point_costs_no_bit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = job_file("digits");
    let args = ["--set", "train.epochs=2", "--set", "checkpoint.every=0", "--set", "train.validate_every=0"];
    let alone: Vec<&str> = args.iter().copied().chain(["--workers", "1"]).collect();
    let (result, proof) = submit_local(dir.path(), &job, &alone, &[]);
    let steps = result["steps"].as_u64().expect("steps");
    for point in POINTS {
        // Points inside a round are passed once in each; the last training step is round `steps`.
        let hit = match point {
            "publish-begin" | "publish-before-rename" | "finished" => 1,
            _ => steps,
        };
        let once = dir.path().join(point);
        std::fs::create_dir_all(&once).expect("a directory");
        let env = [("ELASTIC_FAIL", format!("{point}:{hit}:kill")), ("ELASTIC_FAIL_ONCE", once.display().to_string())];
        let two: Vec<&str> = args.iter().copied().chain(["--workers", "2"]).collect();
        let (_, killed) = submit_local(dir.path(), &job, &two, &env);
        assert_eq!(std::fs::read_dir(&once).expect("the directory").count(), 1, "{point}: nobody was killed");
        assert_same(&killed, &proof);
    }
}
