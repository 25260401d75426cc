//! Pipelines: from a raw file to a published model, killed wherever it hurts, and asked again.

use crate::cluster::{Cluster, Guarded, elastic, repo, wait_for};
use elastic_tests::s3_server::S3Server;
use elastic_tests::skip::skip;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder with a pipeline of digits, of some seconds.
struct Digits {
    dir: tempfile::TempDir,
}

impl Digits {
    fn new() -> Digits {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let job = std::fs::read_to_string(repo().join("examples/pipeline/digits/job.toml")).expect("the example");
        let job = job.replace("epochs = 10", "epochs = 3").replace("every = 100", "every = 20");
        std::fs::write(dir.path().join("job.toml"), job).expect("a writable folder");
        let file = repo().join("examples/pipeline/digits/pipeline.toml");
        let text = std::fs::read_to_string(file).expect("the example");
        let data = repo().join("examples/digits/digits.csv.gz").display().to_string();
        let text = text.replace("../../digits/digits.csv.gz", &data).replace("lower = 0.93", "lower = 0.85");
        let text = text.replace("lower = 0.8 ", "lower = 0.5 ").replace("lower = 0.8\n", "lower = 0.5\n");
        std::fs::write(dir.path().join("pipeline.toml"), text).expect("a writable folder");
        Digits { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(elastic());
        command.args(["pipeline", "run", "pipeline.toml", "--json"]).args(args).current_dir(self.dir.path());
        command.env_remove("ELASTIC_COORDINATOR").env("XDG_CONFIG_HOME", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("elastic starts")
    }

    /// Runs it to its end; gives the last line of JSON and what was said.
    #[track_caller]
    fn run(&self, args: &[&str]) -> (Value, String) {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{}: {said}", out.status);
        (last_json(&out), said)
    }

    #[track_caller]
    fn refused(&self, args: &[&str], code: i32, says: &[&str]) {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{said}");
        says.iter().for_each(|says| assert!(said.contains(says), "{says} is not in: {said}"));
        assert!(!self.path("registry/digits").exists(), "nothing is published: {said}");
    }

    fn status(&self) -> Value {
        let mut command = Command::new(elastic());
        command.args(["pipeline", "status", "--json"]).current_dir(self.dir.path());
        last_json(&command.output().expect("elastic starts"))
    }

    /// How many executions each stage has in the newest run, by state.
    fn counted(&self) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for one in self.status()["executions"].as_array().expect("executions") {
            let word = |key: &str| one[key].as_str().expect("a word").to_string();
            *counts.entry((word("stage"), word("state"))).or_default() += 1;
        }
        counts
    }
}

fn last_json(out: &Output) -> Value {
    let text = String::from_utf8_lossy(&out.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&out.stderr)))
}

fn cached(ended: &Value) -> Vec<(String, bool)> {
    let stages = ended["stages"].as_array().expect("stages").iter();
    stages.map(|s| (s["stage"].as_str().expect("a stage").to_string(), s["cached"] == true)).collect()
}

/// Every file below, with its bytes; provenance tells who and when, and is left out.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !name.ends_with("provenance.json") {
                all.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    all
}

const STAGES: [&str; 6] = ["ingest", "train", "export", "evaluate", "check", "push"];

#[test]
fn digits_go_from_a_raw_file_to_a_published_model_and_nothing_is_done_twice() {
    let digits = Digits::new();
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
    let ran: Vec<String> = cached(&mended).into_iter().filter(|(_, cached)| !cached).map(|(stage, _)| stage).collect();
    assert_eq!(ran, ["ingest"], "{said}");
    assert_eq!(mended["stages"][0]["artifacts"]["examples"], examples.as_str());

    // Another model is the next version; a rollback stays, whatever is asked again.
    let other = ["--set", "train.set=[\"train.seed=1\"]"];
    let (second, said) = digits.run(&other);
    assert_eq!(second["pushed"]["version"], 2, "{said}");
    assert!(said.contains("params.train.seed: 1, was 0") && said.contains("compared with version 1"), "{said}");
    let mut rollback = Command::new(elastic());
    rollback.args(["pipeline", "rollback", "registry", "digits", "--json"]).current_dir(digits.dir.path());
    assert_eq!(last_json(&rollback.output().expect("elastic starts"))["to"], 1);
    let (_, said) = digits.run(&other);
    assert!(said.contains("push      is done already"), "{said}");
    let labels = std::fs::read_to_string(digits.path("registry/digits/labels.json")).expect("labels");
    assert_eq!(serde_json::from_str::<Value>(&labels).expect("JSON"), serde_json::json!({"live": 1}));

    let mut lineage = Command::new(elastic());
    lineage.args(["lineage", "bundle", "--up"]).current_dir(digits.dir.path());
    let told = String::from_utf8(lineage.output().expect("elastic starts").stdout).expect("text");
    assert!(told.contains("digits.csv.gz") && told.contains("train of digits-"), "{told}");
}

/// Kill -9 at every boundary of every stage, in the middle of five of them, and in the middle of a training with two
/// workers, all in one run.
#[test]
fn a_pipeline_killed_anywhere_goes_on_repeats_nothing_finished_and_ends_with_the_same_bytes() {
    let calm = Digits::new();
    let (undisturbed, _) = calm.run(&["--set", "train.workers=1"]);
    let digits = Digits::new();
    let args = ["--set", "train.workers=2"];
    let kill_at = |point: &str| {
        let out = digits.command(&args).env("ELASTIC_PIPELINE_FAIL", point).output().expect("elastic starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), None, "{point}: it was not killed: {said}");
    };
    for stage in STAGES {
        kill_at(&format!("{stage}-begin"));
        if stage == "train" {
            let paced = digits.command(&args).env("ELASTIC_FAIL", "before-apply:every:sleep:8").spawn();
            let mut paced = Guarded(paced.expect("elastic starts"));
            wait_for("a checkpoint", 60, || {
                let all = digits.path(".pipeline/work");
                let names: Vec<String> = files(&all).into_keys().collect();
                names
                    .iter()
                    .any(|name| name.contains("checkpoints/step-") && name.ends_with("manifest.json"))
                    .then_some(())
            });
            paced.kill();
        }
        kill_at(&format!("{stage}-work"));
        if stage == "push" {
            kill_at("push-published");
        }
        kill_at(&format!("{stage}-stored"));
        kill_at(&format!("{stage}-recorded"));
    }
    let (ended, said) = digits.run(&args);
    assert!(said.contains("digits-1 goes on where it was cut off"), "{said}");
    let counted = digits.counted();
    for stage in STAGES {
        let count = |state: &str| counted.get(&(stage.to_string(), state.to_string())).copied().unwrap_or(0);
        assert_eq!((count("COMPLETE"), count("RUNNING")), (1, 0), "{stage}: {counted:?}");
        assert!(count("FAILED") >= 3, "{stage} was cut off: {counted:?}");
    }
    assert_eq!(ended["content_sha256"], undisturbed["content_sha256"]);
    let artifacts = |ended: &Value| -> Vec<Value> {
        let stages = ended["stages"].as_array().expect("stages").iter();
        // What was pushed names the folder that it was pushed to.
        stages.filter(|stage| stage["stage"] != "push").map(|stage| stage["artifacts"].clone()).collect()
    };
    assert_eq!(artifacts(&ended), artifacts(&undisturbed), "each artifact, onnx and npz too");
    assert_eq!(files(&digits.path("registry")), files(&calm.path("registry")), "byte for byte");
    let views = digits.status()["executions"]
        .as_array()
        .expect("executions")
        .iter()
        .any(|one| one["stage"] == "train" && one["events"].as_array().is_some_and(|events| !events.is_empty()));
    assert!(views, "the views that the training lived through are told: {}", digits.status());
}

#[test]
fn a_second_pipeline_in_one_workspace_is_refused_while_the_first_runs() {
    let digits = Digits::new();
    let first = digits.command(&[]).env("ELASTIC_FAIL", "before-apply:every:sleep:8").spawn();
    let mut first = Guarded(first.expect("elastic starts"));
    wait_for("the training", 60, || digits.path(".pipeline/work").read_dir().ok()?.next().map(drop));
    let out = digits.output(&[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("another process runs a pipeline in"), "{said}");
    first.kill();
}

#[test]
fn bad_files_and_a_full_disk_are_told_with_place_and_cure_and_nothing_is_published() {
    let digits = Digits::new();
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(digits.path(name), bytes).expect("a writable folder");
        digits.path(name).display().to_string()
    };
    let with = |path: &str| format!("ingest.path={path}");
    digits.refused(&["--set", "ingest.format=cvs"], 2, &["ingest.format: is the text \"cvs\"", "did you mean `csv`?"]);
    digits.refused(
        &["--set", "train.set=[\"train.lr=-1\"]"],
        2,
        &["train.lr: is the integer -1; allowed: a number above 0"],
    );
    digits.refused(&["--set", "ingest.path=nowhere.csv"], 1, &["nowhere.csv"]);

    let ragged = write("ragged.csv", b"1,2,0\n1,2,1\n1,0\n");
    digits.refused(&["--set", &with(&ragged)], 1, &["line 3 has 2 columns, line 1 has 3; all lines must have as many"]);
    let packed = std::fs::read(repo().join("examples/digits/digits.csv.gz")).expect("the digits");
    let truncated = write("truncated.csv.gz", &packed[..packed.len() / 2]);
    digits.refused(&["--set", &with(&truncated)], 1, &["the gzip stream breaks off after", "copy the file again"]);
    let parquet = write("truncated.parquet", b"PAR1 and then nothing");
    let args = ["--set", "ingest.format=parquet", "--set", "ingest.label=y", "--set", &with(&parquet)];
    digits.refused(&args, 1, &["truncated.parquet", "copy it again"]);
    let text = write("one.txt", b"one paragraph");
    let args = ["--set", "ingest.format=text", "--set", &with(&text), "--set", "evaluate.thresholds=[]"];
    digits.refused(&args, 2, &["data.kind", "the model reads numbers"]);

    digits.refused(
        &["--set", "evaluate.thresholds=[{metric = \"accuracy\", lower = 1.0}]"],
        1,
        &["the model is not blessed: accuracy is 0.", "below 1"],
    );

    // No file may grow above 160 KiB, as if the disk were full: the lineage fits, the rows do not.
    let script = "ulimit -f 160; trap '' XFSZ; exec \"$0\" \"$@\"";
    let mut full = Command::new("bash");
    full.args(["-c", script]).arg(elastic()).args([
        "pipeline",
        "run",
        "pipeline.toml",
        "--set",
        "store.workspace=full",
    ]);
    let out = full.current_dir(digits.dir.path()).output().expect("bash starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains("File too large"), "{said}");
    assert!(!digits.path("registry/digits").exists(), "{said}");
}

#[test]
fn a_text_goes_from_a_raw_file_to_a_published_model() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["pipeline.toml", "job.toml", "notes.txt"] {
        std::fs::copy(repo().join("examples/pipeline/text").join(name), dir.path().join(name)).expect("the example");
    }
    let mut command = Command::new(elastic());
    command.args(["pipeline", "run", "pipeline.toml", "--json"]).current_dir(dir.path());
    let out = command.env_remove("ELASTIC_COORDINATOR").env("XDG_CONFIG_HOME", dir.path()).output().expect("it starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let ended = last_json(&out);
    assert_eq!((&ended["state"], &ended["pushed"]["version"]), (&"COMPLETE".into(), &1.into()), "{ended}");
}

/// On a cluster the job outlives the pipeline that asked for it; it goes on while members leave, and is waited for.
#[test]
fn on_a_cluster_a_killed_pipeline_finds_its_job_again_and_membership_changes_no_byte() {
    let calm = Digits::new();
    let (undisturbed, _) = calm.run(&[]);
    let mut cluster = Cluster::start(None, 3);
    let digits = Digits::new();
    let url = cluster.url();
    let args = ["--coordinator", url.as_str()];
    let mut first = Guarded(digits.command(&args).spawn().expect("elastic starts"));
    let jobs = || -> Value {
        let out = Command::new(elastic()).args(["jobs", "--json", "--coordinator", &url]).output();
        serde_json::from_slice(&out.expect("elastic starts").stdout).expect("jobs prints JSON")
    };
    let job = wait_for("the job", 30, || jobs()[0]["job"].as_str().map(str::to_string));
    cluster.until_active(&job, 3);
    first.kill();
    drop(first);
    cluster.agents.remove("n2");
    let (ended, said) = digits.run(&args);
    assert!(said.contains("digits-1 goes on where it was cut off"), "{said}");
    assert_eq!(ended["content_sha256"], undisturbed["content_sha256"], "{said}");
    assert_eq!(files(&digits.path("registry")), files(&calm.path("registry")), "byte for byte");
    let status = digits.status();
    let training = status["executions"].as_array().expect("executions").iter();
    let training = training.filter(|one| one["stage"] == "train").last().expect("a training");
    let members: Vec<usize> = training["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|view| view["body"]["members"].as_array().expect("members").len())
        .collect();
    assert!(members.contains(&3) && members.contains(&2), "the views are told: {members:?}");
}

#[test]
fn artifacts_and_registry_in_a_bucket_are_those_of_a_folder() {
    let test = "artifacts_and_registry_in_a_bucket_are_those_of_a_folder";
    let server = match S3Server::shared() {
        Ok(server) => server,
        Err(why) => return skip(test, why),
    };
    server.make_bucket("pipelines");
    let calm = Digits::new();
    let (in_folder, _) = calm.run(&[]);
    let digits = Digits::new();
    let args = ["--set", "store.blobs=s3://pipelines/work", "--set", "push.registry=s3://pipelines/registry"];
    let run = |more: &[(&str, &str)]| {
        let mut command = digits.command(&args);
        command.envs(server.env(&server.address())).envs(more.iter().copied());
        command.output().expect("elastic starts")
    };
    assert_eq!(run(&[("ELASTIC_PIPELINE_FAIL", "push-work")]).status.code(), None, "it is killed in mid push");
    assert!(server.read("pipelines", "registry/digits/1/push.json").is_some(), "the version is taken");
    assert!(server.read("pipelines", "registry/digits/1/manifest.json").is_none(), "and not published");
    let out = run(&[]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{said}");
    let ended = last_json(&out);
    assert_eq!(ended["content_sha256"], in_folder["content_sha256"]);
    for name in ["manifest.json", "model.json", "signature.json", "push.json"] {
        let folder = std::fs::read_to_string(calm.path("registry/digits/1").join(name)).expect("a file");
        assert_eq!(server.read("pipelines", &format!("registry/digits/1/{name}")), Some(folder), "{name}");
    }
    let labels = server.read("pipelines", "registry/digits/labels.json").expect("labels");
    assert_eq!(serde_json::from_str::<Value>(&labels).expect("JSON"), serde_json::json!({"live": 1}));
    let again = last_json(&run(&[]));
    assert!(cached(&again).iter().all(|(_, cached)| *cached), "{again}");
}
