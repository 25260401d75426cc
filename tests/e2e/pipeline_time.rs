//! Stages that hang: each is ended when its time is over, with all that it has started, and tried again.

use crate::cluster::{Guarded, children, elastic, is_alive, wait_for};
use crate::pipeline::{Example, Pipeline};
use elastic_pipeline::child::Program;
use elastic_pipeline::{Ended, Flags, Note};
use elastic_spec::pipeline::Stage;
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

/// The product, but for one of these commands it hangs instead, with a child that does not heed SIGTERM: once each, or
/// every time. Its process numbers are left in `hung/COMMAND`.
fn hanging(pipeline: &Pipeline, commands: &str, mark: &str) -> Program {
    let hung = pipeline.path("hung");
    fs::create_dir_all(&hung).expect("a folder");
    let home = pipeline.path("").display().to_string();
    let script = format!(
        "#!/bin/sh\n\
         export XDG_CONFIG_HOME={home}\n\
         unset ELASTIC_COORDINATOR\n\
         case $3 in {commands})\n\
         if {mark} {hung}/$3.mark 2> /dev/null; then\n\
         (trap '' TERM; exec sleep 600) &\n\
         echo $$ $! >> {hung}/$3\n\
         wait\n\
         fi\n\
         esac\n\
         exec {elastic} \"$@\"\n",
        hung = hung.display(),
        elastic = elastic().display(),
    );
    let path = pipeline.path("program");
    fs::write(&path, script).expect("a writable folder");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it may be run");
    Program { elastic: path, reach: Vec::new() }
}

const ONCE: &str = "mkdir";
const ALWAYS: &str = "mkdir -p";

fn run(pipeline: &Pipeline, program: &Program, set: &[&str]) -> (Ended, Vec<(Stage, String)>) {
    let set: Vec<String> = set.iter().map(|setting| setting.to_string()).collect();
    let asked =
        elastic_pipeline::read(&pipeline.path("pipeline.toml"), &set).expect("it is read").expect("no mistakes");
    let mut retries = Vec::new();
    let mut tell = |note| {
        if let Note::Retry { stage, error, .. } = note {
            retries.push((stage, error));
        }
    };
    let ended = elastic_pipeline::run(&asked, &Flags::default(), program, &mut tell).expect("the pipeline runs");
    (ended, retries)
}

fn assert_gone(pipeline: &Pipeline, command: &str) {
    let pids = fs::read_to_string(pipeline.path("hung").join(command)).unwrap_or_else(|e| panic!("{command}: {e}"));
    let pids: Vec<u32> = pids.split_whitespace().map(|pid| pid.parse().expect("a number")).collect();
    assert!(pids.len() >= 2, "{command} hung, with a child: {pids:?}");
    wait_for(&format!("the end of {command} and its child"), 10, || {
        pids.iter().all(|pid| !is_alive(*pid)).then_some(())
    });
}

#[test]
fn a_stage_that_hangs_is_ended_with_its_children_and_tried_again() {
    let digits = Pipeline::of(Example::Digits);
    let program = hanging(&digits, "export|evaluate|serve", ONCE);
    let patience =
        |stage: &str| [format!("{stage}.timeout=3"), format!("{stage}.retries=50"), format!("{stage}.backoff=0")];
    let set = ["export", "evaluate", "check"].iter().flat_map(|stage| patience(stage)).collect::<Vec<_>>();
    let set: Vec<&str> = ["train.workers=1"].into_iter().chain(set.iter().map(String::as_str)).collect();
    let (ended, retries) = run(&digits, &program, &set);
    digits.assert_undisturbed(&json!(ended));
    let stages = [(Stage::Export, "export"), (Stage::Evaluate, "evaluate"), (Stage::Check, "serve")];
    for (stage, command) in stages {
        assert_gone(&digits, command);
        let says = format!("; {stage}.timeout is 3 s: raise it if that is too short");
        let told = |(of, error): &(Stage, String)| {
            *of == stage && error.contains("the stage's time is over") && error.ends_with(&says)
        };
        assert!(retries.iter().any(told), "{stage}: {retries:?}");
        let counted = digits.counted();
        let count = |state: &str| counted.get(&(stage.word().to_string(), state.to_string())).copied();
        assert_eq!((count("COMPLETE"), count("FAILED") >= Some(1)), (Some(1), true), "{counted:?}");
    }
}

#[test]
fn a_stage_that_hangs_every_time_ends_the_run_with_its_name_and_the_cure() {
    let digits = Pipeline::of(Example::Digits);
    let program = hanging(&digits, "evaluate", ALWAYS);
    let set = ["train.workers=1", "evaluate.timeout=1", "evaluate.retries=1", "evaluate.backoff=0"];
    let (ended, retries) = run(&digits, &program, &set);
    let reason = ended.reason.expect("it failed");
    let begins = "evaluate: `elastic evaluate` was ended: the stage's time is over (what it said is in ";
    let cure = "; evaluate.timeout is 1 s: raise it if that is too short (tried 2 times)";
    assert!(reason.starts_with(begins) && reason.ends_with(cure), "{reason}");
    assert_eq!((ended.state.as_str(), retries.len()), ("FAILED", 1), "{retries:?}");
    assert_gone(&digits, "evaluate");
    assert!(!digits.path("registry/digits").exists(), "nothing is published");
    // With more time, and a program that does not hang, the rest is done.
    let program = hanging(&digits, "nothing", ONCE);
    let (ended, _) = run(&digits, &program, &["train.workers=1"]);
    let cached: Vec<Stage> = ended.stages.iter().filter(|stage| stage.cached).map(|stage| stage.stage).collect();
    assert_eq!(cached, [Stage::Ingest, Stage::Train, Stage::Export]);
    digits.assert_undisturbed(&json!(ended));
}

/// Each worker's training thread hangs at its 80th round while its heart beats: who begins anew never comes to the end.
#[test]
fn a_training_that_hangs_is_ended_with_its_workers_and_goes_on_from_its_checkpoint() {
    let digits = Pipeline::of(Example::Digits);
    let set = ["train.workers=2", "train.timeout=3", "train.retries=50", "train.backoff=0"];
    let args: Vec<&str> = set.iter().flat_map(|setting| ["--set", setting]).collect();
    let mut command = digits.command(&args);
    command.env("ELASTIC_FAIL", "before-apply:80:sleep:600000");
    let open = |name: &str| File::create(digits.path(name)).expect("a file");
    let mut process = Guarded(command.stdout(open("out")).stderr(open("err")).spawn().expect("elastic starts"));
    let said = || fs::read_to_string(digits.path("err")).unwrap_or_default();
    let mut seen = BTreeSet::new();
    wait_for("the next try", 120, || {
        let submit = children(process.pid());
        seen.extend(submit.iter().flat_map(|pid| children(*pid)).chain(submit.iter().copied()));
        said().contains("; train.timeout is 3 s: raise it").then_some(())
    });
    let status = process.0.wait().expect("its end");
    assert!(status.success(), "{status}: {}", said());
    assert!(seen.len() >= 3, "a submit and two workers: {seen:?}");
    wait_for("the end of all of them", 30, || seen.iter().all(|pid| !is_alive(*pid)).then_some(()));
    let out = fs::read_to_string(digits.path("out")).expect("what it printed");
    let ended = serde_json::from_str(out.lines().last().expect("a last line")).expect("JSON");
    digits.assert_undisturbed(&ended);
    let counted = digits.counted();
    let failed = counted.get(&("train".to_string(), "FAILED".to_string())).copied();
    assert!(failed >= Some(1), "{counted:?}");
}
