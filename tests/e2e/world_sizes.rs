//! The number of workers never shows in the bits.

use crate::cluster::{assert_same, job_file, submit_local};

fn check(example: &str, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let job = job_file(example);
    let with = |n: &str| {
        let args: Vec<&str> = args.iter().copied().chain(["--workers", n]).collect();
        submit_local(dir.path(), &job, &args, &[]).1
    };
    let alone = with("1");
    for workers in ["2", "3", "4"] {
        assert_same(&with(workers), &alone);
    }
    let threads: Vec<&str> = args.iter().copied().chain(["--workers", "2", "--set", "resources.threads=2"]).collect();
    let (_, threaded) = submit_local(dir.path(), &job, &threads, &[]);
    assert_eq!(threaded.weights, alone.weights, "the thread count shows in the weights");
}

#[test]
fn the_digits_example_learns_to_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (result, _) = submit_local(dir.path(), &job_file("digits"), &[], &[]);
    let accuracy = result["validation"]["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy >= 0.96, "{result}");
    println!("validation accuracy {accuracy:.4}");
}

#[test]
fn the_mlp_has_the_same_bits_on_one_to_four_workers() {
    check("digits", &["--set", "train.epochs=6"]);
}

#[test]
fn the_cnn_has_the_same_bits_on_one_to_four_workers() {
    check("cnn", &["--set", "train.epochs=3"]);
}

#[test]
fn the_resnet18_example_learns_to_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (result, _) = submit_local(dir.path(), &job_file("resnet18"), &[], &[]);
    let accuracy = result["validation"]["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy >= 0.95, "{result}");
    println!("validation accuracy {accuracy:.4}");
}

#[test]
fn the_resnet18_has_the_same_bits_on_one_to_four_workers_and_after_a_kill() {
    let args = ["--set", "train.epochs=1"];
    check("resnet18", &args);
    check_after_a_kill("resnet18", &args);
}

#[test]
fn the_gpt_has_the_same_bits_on_one_to_four_workers() {
    check("gpt", &["--set", "train.steps=40"]);
}

#[test]
fn a_gpt_with_rms_norms_and_rotary_positions_has_the_same_bits_on_one_to_four_workers() {
    check("gpt", &["--set", "train.steps=40", "--set", "model.norm=rms", "--set", "model.positions=rotary"]);
}

#[test]
fn a_model_of_ones_own_has_the_same_bits_on_one_to_four_workers_and_after_a_kill() {
    let program = match std::env::var_os("ELASTIC_OWN_MODEL_BIN") {
        Some(path) => std::path::PathBuf::from(path),
        None => crate::cluster::elastic().with_file_name("own-model"),
    };
    let set = format!("model.program={}", program.display());
    let args = ["--set", set.as_str()];
    check("own-model", &args);
    check_after_a_kill("own-model", &args);
}

#[test]
fn jobs_in_bf16_have_the_same_bits_on_one_to_three_workers_and_after_a_kill() {
    for (example, length) in [
        ("digits", "train.epochs=2"),
        ("cnn", "train.epochs=1"),
        ("resnet18", "train.epochs=1"),
        ("gpt", "train.steps=40"),
    ] {
        let args = ["--set", length, "--set", "train.dtype=bf16"];
        let dir = tempfile::tempdir().expect("a temporary directory");
        let with = |args: &[&str], n: &str| {
            let args: Vec<&str> = args.iter().copied().chain(["--workers", n]).collect();
            submit_local(dir.path(), &job_file(example), &args, &[]).1
        };
        let alone = with(&args, "1");
        for workers in ["2", "3"] {
            assert_same(&with(&args, workers), &alone);
        }
        assert_ne!(with(&args[..2], "1").weights, alone.weights, "{example} in bf16 has the weights of f32");
        check_after_a_kill(example, &args);
    }
}

#[test]
fn the_digits_example_learns_to_read_in_bf16_as_well() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (result, _) = submit_local(dir.path(), &job_file("digits"), &["--set", "train.dtype=bf16"], &[]);
    let accuracy = result["validation"]["accuracy"].as_f64().expect("an accuracy");
    assert!(accuracy >= 0.96, "{result}");
    println!("validation accuracy {accuracy:.4}");
}

/// One of three workers is killed in the middle, and nothing shows.
fn check_after_a_kill(example: &str, args: &[&str]) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let once = dir.path().join("once");
    std::fs::create_dir_all(&once).expect("a directory");
    let env =
        [("ELASTIC_FAIL", "after-contribute:20:kill".to_string()), ("ELASTIC_FAIL_ONCE", once.display().to_string())];
    let with = |n: &str, env: &[(&str, String)]| {
        let args: Vec<&str> = args.iter().copied().chain(["--workers", n]).collect();
        submit_local(dir.path(), &job_file(example), &args, env).1
    };
    assert_same(&with("3", &env), &with("1", &[]));
    assert_eq!(std::fs::read_dir(&once).expect("the directory").count(), 1, "nobody was killed");
}
