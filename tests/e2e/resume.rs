//! Everything killed at once: the run is taken up from its newest checkpoint.

use crate::cluster::{Guarded, PACE, Proof, assert_same, children, elastic, job_file, signal, wait_for};
use crate::faults::{ARGS, undisturbed};
use serde_json::Value;
use std::process::{Command, Stdio};

#[test]
fn everything_killed_in_mid_run_resumes_to_the_same_bits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let submit = |more: &[&str]| {
        let mut command = Command::new(elastic());
        command.arg("submit").arg(job_file("cnn")).args(["--local", "--json", "--workers", "2", "--runs"]);
        command.arg(dir.path().join("runs")).args(ARGS).args(more).current_dir(dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command
    };
    let mut all = Guarded(submit(&[]).env("ELASTIC_FAIL", PACE).spawn().expect("elastic starts"));
    let run = wait_for("a checkpoint", 60, || {
        let run = std::fs::read_dir(dir.path().join("runs"))
            .ok()?
            .flatten()
            .find(|e| e.path().join("checkpoints").is_dir())?;
        let is_published = |e: &std::fs::DirEntry| e.path().join("manifest.json").is_file();
        std::fs::read_dir(run.path().join("checkpoints")).ok()?.flatten().any(|e| is_published(&e)).then(|| run.path())
    });
    let workers = children(all.pid());
    signal(all.pid(), "KILL");
    workers.iter().for_each(|w| signal(*w, "KILL"));
    all.kill();
    let name = run.file_name().and_then(|n| n.to_str()).expect("the run's name").to_string();
    let out = submit(&["--resume", &name]).output().expect("elastic starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8(out.stdout).expect("text");
    let result: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    let run_dir = result["run_dir"].as_str().expect("run_dir");
    assert_same(&Proof::of(std::path::Path::new(run_dir), &result), undisturbed());
}

#[test]
fn ctrl_c_keeps_the_step_in_hand_and_the_run_goes_on_from_it() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let submit = |more: &[&str]| {
        let mut command = Command::new(elastic());
        command.arg("submit").arg(job_file("cnn")).args(["--local", "--json", "--workers", "2", "--runs"]);
        command.arg(dir.path().join("runs")).args(ARGS).args(["--set", "checkpoint.every=0"]).args(more);
        command.current_dir(dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    let first = submit(&[]).env("ELASTIC_FAIL", PACE).spawn().expect("elastic starts");
    wait_for("the workers", 20, || (children(first.id()).len() == 2).then_some(()));
    std::thread::sleep(std::time::Duration::from_secs(2));
    signal(first.id(), "INT");
    let out = first.wait_with_output().expect("it ends");
    assert_eq!(out.status.code(), Some(130), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8(out.stdout).expect("text");
    let stopped: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    let run = std::path::PathBuf::from(stopped["run_dir"].as_str().expect("run_dir"));
    let listed = crate::cluster::run(Command::new(elastic()).args(["checkpoint", "list", "--json"]).arg(&run));
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    assert!(listed[0]["step"].as_u64() > Some(0), "the step in hand was published: {listed}");
    let name = run.file_name().and_then(|n| n.to_str()).expect("the run's name").to_string();
    let out = submit(&["--resume", &name]).output().expect("elastic starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said = String::from_utf8(out.stdout).expect("text");
    let result: Value = serde_json::from_str(said.lines().last().expect("a line")).expect("JSON");
    let proof = Proof::of(&run, &result);
    // The checkpoint interval is no part of the bits.
    assert_same(&proof, undisturbed());
}
