//! An average of the weights: the same bits on every number of workers, after a join and after a restart.

use crate::cluster::{PACE, assert_same, job_file, submit_local};

#[test]
fn an_average_is_the_same_on_any_number_of_workers_after_a_kill_and_after_a_restart() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let with = |ema: &str, workers: &str, fail: Option<&str>| {
        let once = dir.path().join(format!("once-{workers}"));
        std::fs::create_dir_all(&once).expect("a directory");
        let mut env = vec![("ELASTIC_FAIL_ONCE", once.display().to_string())];
        env.extend(fail.map(|fail| ("ELASTIC_FAIL", format!("{PACE},{fail}"))));
        let args = ["--set", "train.epochs=6", "--set", "checkpoint.every=40", "--workers", workers];
        let sets = if ema.is_empty() { vec![] } else { vec!["--set", ema] };
        let args: Vec<&str> = args.into_iter().chain(sets).collect();
        submit_local(dir.path(), &job_file("digits"), &args, &env)
    };
    let (result, alone) = with("train.ema=0.98", "1", None);
    let (plain, without) = with("", "1", None);
    assert_eq!(without.weights, alone.weights, "the average follows the weights, they do not follow it");
    assert_ne!(result["validation"], plain["validation"], "the average is what is evaluated");
    assert_same(&with("train.ema=0.98", "3", None).1, &alone);
    // A joiner takes the average from a peer; alone, the restarted worker takes it from the checkpoint.
    for workers in ["2", "1"] {
        let (result, proof) = with("train.ema=0.98", workers, Some("before-apply:100:kill"));
        assert!(result["views"].as_u64() > Some(1), "nobody was killed: {result}");
        assert_same(&proof, &alone);
    }
    let run_dir = result["run_dir"].as_str().expect("run_dir");
    let newest = std::fs::read_dir(std::path::Path::new(run_dir).join("checkpoints")).expect("checkpoints");
    let newest = newest.flatten().map(|e| e.path()).filter(|path| path.is_dir()).max().expect("a checkpoint");
    let has = |file: &str, name: &str| {
        let bytes = std::fs::read(newest.join(file)).expect("a file of the checkpoint");
        bytes.windows(name.len()).any(|window| window == name.as_bytes())
    };
    assert!(has("optimizer.safetensors", "layers.0.weight.average\""), "the average is in the checkpoint by its name");
    assert!(has("weights.safetensors", "layers.0.weight\"") && !has("weights.safetensors", ".average\""));
}
