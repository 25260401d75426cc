//! A gradient that is not finite ends a job, or is left out, the same on every number of workers.

use crate::cluster::{assert_same, elastic, submit_local};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A job whose sample 100 is so far off that its layer's sums are infinite: once in each of 4 epochs of 8 steps.
fn job(dir: &Path) -> PathBuf {
    let mut word = 7u64;
    let mut line = |i: usize| {
        let mut features: Vec<String> = Vec::new();
        for feature in 0..4 {
            word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (word >> 40) as f64 / f64::from(1 << 24) - 0.5;
            let far = if i == 100 { 3e38 } else { f64::from(i as u32 % 3 * (feature + 1)) * 0.3 + noise };
            features.push(far.to_string());
        }
        format!("{},{}\n", features.join(","), i % 3)
    };
    let text: String = (0..256).map(&mut line).collect();
    std::fs::write(dir.join("data.csv"), text).expect("a file");
    let file = dir.join("job.toml");
    let text = "[model]\nkind = \"mlp\"\nhidden = [16]\n\n[data]\nkind = \"csv\"\npath = \"data.csv\"\nclasses = 3\n\
                validation = 0.0\n\n[train]\nglobal_batch = 32\nepochs = 4\nlr = 0.01\nclip_norm = 1.0\n";
    std::fs::write(&file, text).expect("a file");
    file
}

#[test]
fn steps_that_are_not_finite_are_skipped_alike_on_one_to_three_workers_and_after_a_kill() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = job(dir.path());
    let once = dir.path().join("once");
    std::fs::create_dir_all(&once).expect("a directory");
    let with = |workers: &str, env: &[(&str, String)]| {
        let args = ["--set", "train.non_finite=\"skip\"", "--set", "checkpoint.every=8", "--workers", workers];
        submit_local(dir.path(), &job, &args, env)
    };
    let (result, alone) = with("1", &[]);
    let rows: Vec<Value> = alone.rows.lines().map(|line| serde_json::from_str(line).expect("a row")).collect();
    let skipped: Vec<&Value> = rows.iter().filter(|row| row["skipped"] == true).collect();
    assert_eq!((rows.len(), skipped.len()), (32, 4), "once in each epoch");
    assert!(skipped.iter().all(|row| row["grad_norm"].is_null()));
    let loss = |row: &Value| row["loss"].as_f64();
    let others: Vec<f64> = rows.iter().filter(|row| row["skipped"].is_null()).filter_map(loss).collect();
    assert_eq!(others.len(), 28, "the loss of every other step is finite");
    assert!(others[27] < others[0] * 0.9, "it learns all the same: {others:?}");
    assert_same(&with("2", &[]).1, &alone);
    assert_same(&with("3", &[]).1, &alone);
    // The first to contribute its sixth time dies, wherever the sample is.
    let kill =
        [("ELASTIC_FAIL", "after-contribute:6:kill".to_string()), ("ELASTIC_FAIL_ONCE", once.display().to_string())];
    assert_same(&with("3", &kill).1, &alone);
    assert_eq!(std::fs::read_dir(&once).expect("the directory").count(), 1, "nobody was killed");

    // A job that ended for such a step goes on from its checkpoint as if it had skipped them from the start.
    let mut command = Command::new(elastic());
    command.arg("submit").arg(&job).args(["--local", "--json", "--set", "checkpoint.every=1", "--runs"]);
    let out = command.arg(dir.path().join("runs")).current_dir(dir.path()).output().expect("elastic starts");
    let said = String::from_utf8(out.stdout).expect("text");
    let failed: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    assert_eq!(failed["state"], "failed", "{failed}");
    let run = Path::new(failed["run_dir"].as_str().expect("run_dir"));
    let name = run.file_name().and_then(|name| name.to_str()).expect("the run's name");
    let args =
        ["--set", "train.non_finite=\"skip\"", "--set", "checkpoint.every=8", "--workers", "2", "--resume", name];
    assert_same(&submit_local(dir.path(), &job, &args, &[]).1, &alone);
    assert_eq!(result["steps"], 32);
}

#[test]
fn by_default_such_a_step_ends_the_job_and_says_where_it_began() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = job(dir.path());
    let reason = |workers: &str| {
        let mut command = Command::new(elastic());
        command.arg("submit").arg(&job).args(["--local", "--json", "--workers", workers, "--runs"]);
        let out = command.arg(dir.path().join("runs")).current_dir(dir.path()).output().expect("elastic starts");
        assert_eq!(out.status.code(), Some(1), "{}", String::from_utf8_lossy(&out.stderr));
        let said = String::from_utf8(out.stdout).expect("text");
        let line: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
        assert_eq!(line["state"], "failed", "{line}");
        let run = Path::new(line["run_dir"].as_str().expect("run_dir")).join("result.json");
        let result: Value = serde_json::from_slice(&std::fs::read(run).expect("a result")).expect("JSON");
        assert_eq!(result["restarts"], 0, "nothing is charged: {result}");
        result["reason"].as_str().expect("a reason").to_string()
    };
    let alone = reason("1");
    for part in [
        "step ",
        ": the gradient of `",
        "` is not finite (element ",
        "; the loss was not finite either",
        "; the first value that is not finite came out of linear at `",
        "(forward, shard ",
        "; lower train.lr (0.01), set train.clip_norm, or leave such steps out with train.non_finite = \"skip\"",
    ] {
        assert!(alone.contains(part), "{part}: {alone}");
    }
    for workers in ["2", "3"] {
        assert_eq!(reason(workers), alone, "every worker says the same");
    }
}
