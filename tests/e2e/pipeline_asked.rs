//! What may be asked of a pipeline beside its file: to do stages once more, and what was done, from any folder.

use crate::cluster::{elastic, repo};
use crate::pipeline::{Example, Pipeline, artifacts, cached, last_json, ran};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output, Stdio};

#[track_caller]
fn printed(out: &Output) -> String {
    assert!(out.status.success(), "{}: {}", out.status, String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Stages and kinds of artifacts in a tree of lineage.
fn walk(node: &Value, stages: &mut BTreeSet<String>, kinds: &mut BTreeSet<String>) {
    let text = |value: &Value| value.as_str().expect("a word").to_string();
    kinds.insert(text(&node["kind"]));
    for one in ["read_by", "made_by"].iter().filter_map(|key| node[*key].as_array()).flatten() {
        stages.insert(text(&one["stage"]));
        one["artifacts"].as_array().expect("artifacts").iter().for_each(|next| walk(next, stages, kinds));
    }
}

#[test]
fn stages_are_done_once_more_as_asked_and_lists_and_lineage_tell_of_it() {
    let digits = Pipeline::of(Example::Digits);
    let one = ["--set", "train.workers=1"];
    let (first, _) = digits.run(&one);
    let ask = |args: &[&str]| digits.elastic(args).output().expect("elastic starts");

    // What was made of the raw file is all that was made.
    let down = last_json(&ask(&["lineage", "file", "--down", "--json"]));
    let (mut stages, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    walk(&down, &mut stages, &mut kinds);
    assert_eq!(
        down["facts"]["bytes"],
        repo().join("examples/digits/digits.csv.gz").metadata().expect("it is there").len()
    );
    assert_eq!(
        stages.iter().map(String::as_str).collect::<Vec<_>>(),
        ["check", "evaluate", "export", "ingest", "push", "train"]
    );
    let all = ["answers", "bundle", "evaluation", "examples", "export", "file", "model", "pushed"];
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), all);
    // Of the model no more than what came after it.
    let told = printed(&ask(&["lineage", "model", "--down"]));
    assert!(told.starts_with("model ") && told.contains("export of digits-1 COMPLETE"), "{told}");
    assert!(told.contains("pushed ") && !told.contains("ingest of"), "{told}");

    let (again, said) = digits.run(&[&one[..], &["--from", "evaluate"]].concat());
    assert_eq!(ran(&again), ["evaluate", "check", "push"], "{said}");
    assert!(said.contains("evaluate  runs: --from evaluate asks for it"), "{said}");
    assert_eq!((artifacts(&again), &again["pushed"]["version"]), (artifacts(&first), &1.into()), "{said}");

    let (anew, said) = digits.run(&[&one[..], &["--no-cache"]].concat());
    assert_eq!(ran(&anew), ["ingest", "train", "export", "evaluate", "check", "push"], "{said}");
    assert!(said.contains("train     runs: --no-cache asks for it"), "{said}");
    assert_eq!(artifacts(&anew), artifacts(&first), "the same bytes");
    assert_eq!(anew["pushed"]["version"], 1, "the same content is published once");

    let (rest, said) = digits.run(&one);
    assert!(cached(&rest).iter().all(|(_, cached)| *cached), "{said}");

    let bound = "evaluate.thresholds=[{ metric = \"accuracy\", lower = 1.5 }]";
    let refused = digits.output(&[&one[..], &["--set", bound]].concat());
    assert_eq!(refused.status.code(), Some(1), "{}", String::from_utf8_lossy(&refused.stderr));
    let runs = last_json(&ask(&["pipeline", "list", "--json"]));
    let row = |run: &Value| ["run", "pipeline", "state"].map(|key| run[key].as_str().expect("a text").to_string());
    let rows: Vec<[String; 3]> = runs.as_array().expect("runs").iter().map(row).collect();
    let run = |n: u32, state: &str| [format!("digits-{n}"), "digits".to_string(), state.to_string()];
    let expected = [5, 4, 3, 2, 1].map(|n| run(n, if n == 5 { "FAILED" } else { "COMPLETE" }));
    assert_eq!(rows, expected, "newest first");
    let table = printed(&ask(&["pipeline", "list"]));
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("RUN") && lines.len() == 6, "{table}");
    assert!(
        lines[1].starts_with("digits-5") && lines[1].contains("FAILED") && lines[1].contains("below 1.5"),
        "{table}"
    );
}

/// A command as a person types it.
fn typed(line: &str, dir: &Path) -> Output {
    let bin = elastic().parent().expect("elastic lies in a folder").display().to_string();
    let path = format!("{bin}:{}", std::env::var("PATH").expect("PATH"));
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).current_dir(dir).env("PATH", path).env("XDG_CONFIG_HOME", dir);
    shell.env_remove("ELASTIC_COORDINATOR").stdin(Stdio::null()).output().expect("a shell starts")
}

#[test]
fn what_a_run_did_is_found_from_where_it_was_typed_by_file_by_folder_and_as_the_run_says() {
    let digits = Pipeline::of(Example::Digits);
    let home = tempfile::tempdir().expect("a temporary directory");
    let dir = home.path().join("my pipelines/digits");
    std::fs::create_dir_all(&dir).expect("a folder");
    for file in ["job.toml", "pipeline.toml"] {
        std::fs::copy(digits.path(file), dir.join(file)).expect("a copy");
    }
    let home = home.path();
    let told = printed(&typed("elastic pipeline run 'my pipelines/digits/pipeline.toml' --set train.workers=1", home));
    let commands: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("  elastic ")).collect();
    let at = "--workspace 'my pipelines/digits/.pipeline'";
    let serve = "serve 'my pipelines/digits/registry'".to_string();
    assert_eq!(commands, [format!("pipeline status {at}"), format!("lineage bundle {at}"), serve], "{told}");
    let status = printed(&typed(&format!("elastic {}", commands[0]), home));
    assert!(status.starts_with("digits-1 COMPLETE"), "{status}");
    let lineage = printed(&typed(&format!("elastic {}", commands[1]), home));
    assert!(lineage.starts_with("bundle ") && lineage.contains("ingest of digits-1"), "{lineage}");

    for line in [
        "elastic pipeline status 'my pipelines/digits'",
        "elastic pipeline status 'my pipelines/digits/pipeline.toml'",
        "elastic pipeline status digits-1 --workspace 'my pipelines/digits'",
        "cd 'my pipelines/digits' && elastic pipeline status",
        "cd 'my pipelines' && elastic pipeline status digits",
    ] {
        assert_eq!(printed(&typed(line, home)), status, "{line}");
    }
    for line in
        ["elastic pipeline list 'my pipelines/digits'", "elastic pipeline list --workspace 'my pipelines/digits'"]
    {
        let list = printed(&typed(line, home));
        assert!(list.contains("digits-1"), "{line}: {list}");
    }
    let model = "elastic lineage model --workspace 'my pipelines/digits/pipeline.toml'";
    assert!(printed(&typed(model, home)).starts_with("model "));

    let refused = |line: &str, says: &str| {
        let out = typed(line, home);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains(says), "{line}: {says} is not in {said}");
    };
    for command in ["pipeline status", "pipeline list", "lineage bundle"] {
        refused(&format!("elastic {command}"), &format!("say {at}"));
    }
    refused("mkdir -p elsewhere && cd elsewhere && elastic pipeline status", "name the pipeline file");
    let all = format!("there is no digits-9 in my pipelines/digits/.pipeline; `elastic pipeline list {at}` shows all");
    refused("elastic pipeline status digits-9 --workspace 'my pipelines/digits'", &all);
}

/// As they stand there, from the repository's root; what serves goes on for ever and is left out.
#[test]
fn the_commands_of_the_examples_of_pipelines_work_as_they_stand_there() {
    let home = tempfile::tempdir().expect("a temporary directory");
    for dir in ["examples/digits", "examples/pipeline/digits", "examples/pipeline/text"] {
        std::fs::create_dir_all(home.path().join(dir)).expect("a folder");
        for entry in std::fs::read_dir(repo().join(dir)).expect("the example").flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), home.path().join(dir).join(entry.file_name())).expect("a copy");
            }
        }
    }
    for example in ["digits", "text"] {
        let page = format!("examples/pipeline/{example}/README.md");
        let text = std::fs::read_to_string(repo().join(&page)).expect("the page");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("elastic ")).collect();
        assert!(lines.len() >= 3, "{page} has commands");
        for line in lines.into_iter().filter(|line| !line.starts_with("elastic serve ")) {
            let out = typed(line, home.path());
            let said = String::from_utf8_lossy(&out.stderr);
            assert!(out.status.success() && !out.stdout.is_empty(), "{page}: {line}: {}: {said}", out.status);
        }
        assert!(home.path().join(format!("examples/pipeline/{example}/registry")).is_dir(), "{page}");
    }
}
