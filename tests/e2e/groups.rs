//! Parameters with rates of their own: the same bits on every number of workers, and rates that are really applied.

use crate::cluster::{assert_same, elastic, job_file, submit_local};
use std::process::Command;

const GROUPS: &str = "train.groups=[{ match = [\"layers.0.*\"], lr_scale = 0.1 }, \
                      { match = [\"*.bias\"], lr_scale = 2.0, weight_decay = 0.3 }]";

#[test]
fn groups_train_to_the_same_bits_on_any_number_of_workers_and_to_others_than_without() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let with = |sets: &[&str], workers: &str| {
        let sets = sets.iter().chain(&["train.epochs=3"]).flat_map(|set| ["--set", set]);
        let args: Vec<&str> = sets.chain(["--workers", workers]).collect();
        submit_local(dir.path(), &job_file("digits"), &args, &[]).1
    };
    let alone = with(&[GROUPS], "1");
    assert_same(&with(&[GROUPS], "2"), &alone);
    let plain = with(&[], "1");
    assert_ne!(plain.weights, alone.weights, "the groups changed nothing");
    // Groups that say what holds anyway change no bit.
    let idle = "train.groups=[{ match = [\"*.weight\"], weight_decay = 0.1 }, { match = [\"*\"] }]";
    assert_eq!(with(&[idle], "2").weights, plain.weights);
}

#[test]
fn a_group_of_nothing_is_refused_with_names_that_are_near() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(elastic());
    command.arg("submit").arg(job_file("digits")).args(["--local", "--workers", "1", "--runs"]);
    command.arg(dir.path().join("runs")).args(["--set", "train.groups=[{ match = [\"layer.0.*\"], lr_scale = 0.1 }]"]);
    let out = command.current_dir(dir.path()).output().expect("elastic starts");
    let said = [out.stdout, out.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert_eq!(out.status.code(), Some(2), "{said}");
    let told = "train.groups.match: \"layer.0.*\" matches no parameter; near it are `layers.0.";
    assert!(said.contains(told), "{said}");
}
