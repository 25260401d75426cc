//! Pipelines: from a raw file to a published and served model, killed wherever it hurts, and asked again.

use crate::cluster::{Guarded, children, repo, signal, wait_for};
use crate::pipeline::{Example, Pipeline, cached, ended_well, files, last_json, ran};
use elastic_pipeline::fail::{Moment, Point};
use elastic_spec::pipeline::Stage;
use serde_json::Value;

#[test]
fn digits_go_from_a_raw_file_to_a_published_model_and_nothing_is_done_twice() {
    let digits = Pipeline::of(Example::Digits);
    let (first, said) = digits.run(&[]);
    assert!(said.contains("the change of accuracy was not looked at: there is no blessed model yet"), "{said}");
    assert_eq!(first["pushed"]["version"], 1, "{first}");
    let labels = std::fs::read_to_string(digits.path("registry/digits/labels.json")).expect("labels");
    assert_eq!(serde_json::from_str::<Value>(&labels).expect("JSON"), serde_json::json!({"live": 1}));

    let (again, said) = digits.run(&[]);
    assert!(cached(&again).iter().all(|(_, cached)| *cached), "{said}");
    assert_eq!(again["content_sha256"], first["content_sha256"]);

    // A blob that is gone is made again, and its stage alone.
    let examples = digits.status()["executions"][0]["outputs"]["examples"].as_str().expect("examples").to_string();
    let blobs = digits.path(".pipeline/store/blobs");
    let train = files(&blobs).into_iter().find(|(_, bytes)| bytes.starts_with(b"0,0,5")).expect("the rows").0;
    std::fs::remove_file(blobs.join(&train)).expect("it goes");
    let explained = digits.output(&["--explain-cache"]);
    assert!(String::from_utf8_lossy(&explained.stdout).contains("is gone"), "{explained:?}");
    let (mended, said) = digits.run(&[]);
    assert!(said.contains("is gone"), "{said}");
    assert_eq!(ran(&mended), ["ingest"], "{said}");
    assert_eq!(mended["stages"][0]["artifacts"]["examples"], examples.as_str());

    // Another model is the next version; a rollback stays, whatever is asked again.
    let other = ["--set", "train.set=[\"train.seed=1\"]"];
    let (second, said) = digits.run(&other);
    assert_eq!(second["pushed"]["version"], 2, "{said}");
    assert!(said.contains("params.train.seed: 1, was 0") && said.contains("compared with version 1"), "{said}");
    let server = digits.serve();
    let default = || server.get("/v2/models/digits")["parameters"].clone();
    assert_eq!((&default()["version"], &default()["content_sha256"]), (&"2".into(), &second["content_sha256"]));
    let rollback = digits.elastic(&["pipeline", "rollback", "registry", "digits", "--json"]).output();
    assert_eq!(last_json(&rollback.expect("elastic starts"))["to"], 1);
    let (_, said) = digits.run(&other);
    assert!(said.contains("push      is done already"), "{said}");
    let labels = std::fs::read_to_string(digits.path("registry/digits/labels.json")).expect("labels");
    assert_eq!(serde_json::from_str::<Value>(&labels).expect("JSON"), serde_json::json!({"live": 1}));

    // Who names neither a version nor a label gets the version before, though the newer one is there.
    wait_for("the version before", 30, || (default()["version"] == "1").then_some(()));
    assert_eq!(default()["content_sha256"], first["content_sha256"]);
    let seven = std::fs::read_to_string(repo().join("examples/digits/request.json")).expect("the example");
    let asked = |at: &str| server.ask(&format!("/v1/models/digits{at}:predict"), &seven)["predictions"].clone();
    assert_eq!(asked(""), asked("/versions/1"));
    assert_eq!(asked(""), asked("/labels/live"));
    assert_ne!(asked(""), asked("/versions/2"));

    let lineage = digits.elastic(&["lineage", "bundle", "--up"]).output().expect("elastic starts");
    let told = String::from_utf8(lineage.stdout).expect("text");
    assert!(told.contains("digits.csv.gz") && told.contains("train of digits-"), "{told}");

    // What is published without the label, past all bounds, answers only who names it.
    let job = repo().join("examples/digits/job.toml").display().to_string();
    let submit =
        ["submit", &job, "--local", "--set", "train.epochs=1", "--runs", "runs", "--export", "registry", "--json"];
    let (_, said) = ended_well(digits.elastic(&submit).output().expect("elastic starts"));
    assert!(said.contains("version 1, labelled live, goes on answering who names none"), "{said}");
    assert!(said.contains("\n  elastic pipeline label registry digits live 3\n"), "{said}");
    wait_for("version 3", 30, || server.may_get("/v2/models/digits/versions/3"));
    assert_eq!(default()["version"], "1");
    assert_eq!((&asked("")[0]["class"], asked("")), (&7.into(), asked("/labels/live")));
}

#[test]
fn a_slice_is_evaluated_by_itself_and_stops_the_push_below_its_threshold() {
    let digits = Pipeline::sliced();
    let one = ["--set", "train.workers=1"];
    let (ended, said) = digits.run(&one);
    assert_eq!(ended["pushed"]["version"], 1, "{said}");
    let report: Value = serde_json::from_str(&digits.blob("evaluate", "evaluation", "evaluation.json")).expect("JSON");
    let candidate = &report["candidate"];
    let slices = candidate["slices"].as_object().expect("slices");
    let names: Vec<String> = (0..10).map(|digit| format!("64={digit}")).collect();
    assert_eq!(slices.keys().cloned().collect::<Vec<_>>(), names);
    for count in ["count", "correct"] {
        let of = |figures: &Value| figures[count].as_u64().unwrap_or_else(|| panic!("{count}: {figures}"));
        assert_eq!(slices.values().map(of).sum::<u64>(), of(&candidate["all"]), "{count}: the slices are all samples");
    }
    // As slice by slice, so class by class: the recall of a class is the accuracy on its samples.
    let accuracy = |slice: &str| slices[slice]["accuracy"].as_f64().expect("an accuracy");
    let classes = candidate["all"]["classes"].as_array().expect("classes");
    for (digit, class) in classes.iter().enumerate() {
        assert_eq!(class["recall"].as_f64(), Some(accuracy(&format!("64={digit}"))), "{class}");
    }

    let worst = names.iter().min_by(|a, b| accuracy(a).total_cmp(&accuracy(b))).expect("ten");
    let bound = |lower: f64| {
        format!("evaluate.thresholds=[{{ metric = \"accuracy\", slice = \"{worst}\", lower = {lower:.6} }}]")
    };
    let (above, below) = (bound(accuracy(worst) + 0.001), bound(accuracy(worst) - 0.001));
    let asked = |bound: &str| [&one[..], &["--set", "push.registry=other", "--set", bound]].concat().join("\n");
    let out = digits.output(&asked(&above).split('\n').collect::<Vec<_>>());
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("evaluate: the model is not blessed: accuracy where {worst} is 0.")), "{said}");
    assert!(!digits.path("other/digits").exists(), "nothing is published: {said}");
    let (ended, said) = digits.run(&asked(&below).split('\n').collect::<Vec<_>>());
    assert_eq!(ended["pushed"]["version"], 1, "{said}");
    assert!(digits.path("other/digits/1/manifest.json").exists());
}

/// Kill -9 at every boundary of every stage, in the middle of each, and in the middle of a training with two workers, all
/// in one run.
fn check_kills(example: Example) {
    let pipeline = Pipeline::of(example);
    let args = ["--set", "train.workers=2", "--set", "train.backoff=0"];
    let points = Point::all();
    assert!(Stage::ALL.iter().all(|stage| points.contains(&Point::Of(*stage, Moment::Recorded))));
    for point in points {
        if point == Point::Of(Stage::Train, Moment::Work) {
            kill_in_mid_training(&pipeline, &args);
        }
        pipeline.killed_at(&point.to_string(), &args);
    }
    let (ended, said) = pipeline.run(&args);
    assert!(said.contains(&format!("{}-1 goes on where it was cut off", example.model())), "{said}");
    let counted = pipeline.counted();
    for stage in Stage::ALL {
        let count = |state: &str| counted.get(&(stage.word().to_string(), state.to_string())).copied().unwrap_or(0);
        assert_eq!((count("COMPLETE"), count("RUNNING")), (1, 0), "{stage}: {counted:?}");
        assert!(count("FAILED") >= 3, "{stage} was cut off: {counted:?}");
    }
    pipeline.assert_undisturbed(&ended);
    assert!(!pipeline.members_of_views().is_empty(), "the views of the training are told: {}", pipeline.status());
}

/// First the child that trains alone, which the pipeline starts again, then the pipeline itself, which takes it along.
fn kill_in_mid_training(pipeline: &Pipeline, args: &[&str]) {
    let slow = pipeline.command(args).env("ELASTIC_FAIL", "before-apply:every:sleep:20").spawn();
    let mut slow = Guarded(slow.expect("elastic starts"));
    let checkpoints = || {
        let names: Vec<String> = files(&pipeline.path(".pipeline/work")).into_keys().collect();
        names.iter().filter(|name| name.contains("checkpoints/step-") && name.ends_with("manifest.json")).count()
    };
    wait_for("a checkpoint", 60, || (checkpoints() >= 1).then_some(()));
    let trainer = children(slow.pid());
    assert_eq!(trainer.len(), 1, "one stage runs");
    signal(trainer[0], "KILL");
    wait_for("the next try", 60, || children(slow.pid()).first().filter(|child| **child != trainer[0]).map(drop));
    wait_for("another checkpoint", 60, || (checkpoints() >= 2).then_some(()));
    slow.kill();
}

#[test]
fn a_pipeline_killed_anywhere_goes_on_repeats_nothing_finished_and_ends_with_the_same_bytes() {
    check_kills(Example::Digits);
}

#[test]
fn a_pipeline_of_a_text_killed_anywhere_goes_on_and_ends_with_the_same_bytes() {
    check_kills(Example::Text);
}

#[test]
fn a_second_pipeline_in_one_workspace_is_refused_while_the_first_runs() {
    let digits = Pipeline::of(Example::Digits);
    let first = digits.command(&[]).env("ELASTIC_FAIL", "before-apply:every:sleep:8").spawn();
    let mut first = Guarded(first.expect("elastic starts"));
    wait_for("the training", 60, || digits.path(".pipeline/work").read_dir().ok()?.next().map(drop));
    let out = digits.output(&[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("another process runs a pipeline in"), "{said}");
    first.kill();
}

#[test]
fn a_text_goes_from_a_raw_file_to_a_published_model_that_goes_on_with_one() {
    let notes = Pipeline::of(Example::Text);
    let (ended, said) = notes.run(&["--set", "train.workers=1"]);
    assert_eq!((&ended["state"], &ended["pushed"]["version"]), (&"COMPLETE".into(), &1.into()), "{said}");
    let server = notes.serve();
    let signature = server.get("/v2/models/notes");
    let input = &signature["inputs"][0];
    let tokens: Vec<u8> = b"the rive".to_vec();
    let request = serde_json::json!({
        "inputs": [{ "name": input["name"], "datatype": input["datatype"], "shape": [1, tokens.len()], "data": tokens }],
        "outputs": [{ "name": "logits" }],
    });
    let answer = server.ask("/v2/models/notes/infer", &request.to_string());
    let output = &answer["outputs"][0];
    assert_eq!(output["shape"], serde_json::json!([1, tokens.len(), 256]), "{answer}");
    let logits: Vec<f64> = output["data"].as_array().expect("logits").iter().flat_map(Value::as_f64).collect();
    assert!(logits.len() == tokens.len() * 256 && logits.iter().all(|logit| logit.is_finite()), "{answer}");
}
