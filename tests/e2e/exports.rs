//! What is made of a run: the same bundle whoever trained it, and answers that are those of the training's own validation.

use crate::cluster::{PACE, elastic, job_file, submit_local};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Runs `elastic` and reads its line of JSON.
fn said(args: &[&str]) -> Value {
    let output = Command::new(elastic()).args(args).arg("--json").output().expect("elastic starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn refused(args: &[&str]) -> String {
    let output = Command::new(elastic()).args(args).output().expect("elastic starts");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

#[test]
fn a_bundle_is_the_same_whoever_trained_it_and_answers_as_the_validation_did() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let run = |workers: &str, fail: Option<&str>| {
        let once = dir.path().join(format!("once-{workers}"));
        std::fs::create_dir_all(&once).expect("a directory");
        let mut env = vec![("ELASTIC_FAIL_ONCE", once.display().to_string())];
        env.extend(fail.map(|fail| ("ELASTIC_FAIL", format!("{PACE},{fail}"))));
        let args = ["--set", "train.epochs=8", "--workers", workers];
        let (result, _) = submit_local(dir.path(), &job_file("digits"), &args, &env);
        let out = dir.path().join(format!("bundle-{workers}"));
        let run_dir = result["run_dir"].as_str().expect("run_dir").to_string();
        let exported = said(&["export", &run_dir, "--out", text(&out)]);
        assert_eq!(exported["weights_sha256"], result["weights_sha256"]);
        (result, run_dir, exported, out)
    };
    let (result, run_dir, alone, out) = run("1", None);
    let (_, _, three, _) = run("3", None);
    let (disturbed, _, killed, killed_out) = run("2", Some("before-apply:100:kill"));
    assert!(disturbed["views"].as_u64() > Some(1), "nobody was killed: {disturbed}");
    for other in [&three, &killed] {
        assert_eq!(other["content_sha256"], alone["content_sha256"]);
    }
    for file in ["model.json", "signature.json", "weights.safetensors", "manifest.json"] {
        let read = |dir: &Path| std::fs::read(dir.join(file)).expect("a file of the bundle");
        assert!(read(&out) == read(&killed_out), "{file} differs");
    }
    let provenance = std::fs::read(killed_out.join("provenance.json")).expect("provenance.json");
    let provenance: Value = serde_json::from_slice(&provenance).expect("JSON");
    let views = provenance["views"].as_array().expect("views");
    assert!(views.len() > 1, "every view that the run lived through is told: {views:?}");

    let of_run = said(&["evaluate", &run_dir]);
    let validation = &result["validation"];
    assert_eq!(of_run["accuracy"], validation["accuracy"]);
    assert_eq!(of_run["count"], 359, "a fifth of the samples is kept");
    let (found, told) = (of_run["loss"].as_f64().expect("loss"), validation["loss"].as_f64().expect("loss"));
    // Training takes each sample's loss in f32, an evaluation in f64: 4e-7 apart here.
    assert!((found - told).abs() <= 1e-5 * told.abs(), "{found} and {told}");
    let data = job_file("digits").with_file_name("digits.csv.gz");
    let whole = |threads: &str| said(&["evaluate", text(&out), "--data", text(&data), "--threads", threads]);
    let (one, two) = (whole("1"), whole("2"));
    assert_eq!(one, two, "threads change no bit of an answer");
    assert_eq!(one["count"], 1797);
    assert_eq!(one["classes"].as_array().map(Vec::len), Some(10));
    let confusion: u64 = one["confusion"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|row| row.as_array().unwrap())
        .map(|n| n.as_u64().unwrap())
        .sum();
    assert_eq!(confusion, 1797);
}

#[test]
fn what_cannot_be_exported_or_evaluated_says_why_and_what_to_do() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nowhere = dir.path().join("nowhere");
    let out = dir.path().join("out");
    assert!(
        refused(&["export", text(&nowhere), "--out", text(&out)]).contains("does not exist; name a run's directory")
    );
    assert!(refused(&["export", text(dir.path()), "--out", text(&out)]).contains("there is no job.json at"));
    let args = ["--set", "train.epochs=1", "--set", "data.validation=0"];
    let (result, _) = submit_local(dir.path(), &job_file("digits"), &args, &[]);
    let run_dir = result["run_dir"].as_str().expect("run_dir");
    assert!(refused(&["evaluate", run_dir]).contains("kept no samples for validation"));
    assert!(refused(&["export", run_dir, "--out", text(&out), "--weights", "average"]).contains("keeps no average"));
    let names = dir.path().join("names.txt");
    std::fs::write(&names, "zero\none\n").expect("a file");
    let said = refused(&["export", run_dir, "--out", text(&out), "--labels", text(&names)]);
    assert!(said.contains("--labels has 2 lines, and the model has 10 classes"), "{said}");
    let narrow = dir.path().join("narrow.csv");
    std::fs::write(&narrow, "1,2,3\n").expect("a file");
    let said = refused(&["evaluate", run_dir, "--data", text(&narrow)]);
    assert!(
        said.contains("the samples are 2 numbers of 10 classes, and the model reads 64 numbers of 10 classes"),
        "{said}"
    );
    assert!(!out.exists(), "nothing half-written is left");
}
