//! What `bench/gpu` runs where there is a GPU, on one that runs kernels on the processor: the same programs and scripts.

use crate::cluster::{elastic, job_file, repo};
use crate::gpus::with_gpu;
use serde_json::Value;
use std::process::Command;

/// Whether it succeeded, and what it said.
fn on_gpu(command: &mut Command) -> (bool, String) {
    let out = command.envs(with_gpu()).output().expect("it starts");
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.success(), said)
}

#[test]
fn digests_on_a_gpu_are_the_processors_for_one_and_two_processes_and_after_a_kill() {
    let out = tempfile::tempdir().expect("a temporary directory");
    let mut script = Command::new(repo().join("bench/gpu/processes.sh"));
    script.arg(out.path().join("processes")).args(["--set", "train.epochs=1"]);
    script.env("ELASTIC_BIN", elastic()).env("ELASTIC_JOB", job_file("digits")).env("ELASTIC_GPU_WORKERS", "2");
    let (passed, said) = on_gpu(&mut script);
    assert!(passed, "{said}");
    let wanted = [
        "PASS f32, 1 process on the GPU, as the processor: ",
        "PASS f32, 2 processes on the GPU: ",
        "PASS f32, 2 processes on the GPU, one of them killed: ",
        "PASS bf16, 2 processes on the GPU: ",
        "PASS bf16, 2 processes on the GPU, one of them killed: ",
    ];
    wanted.iter().for_each(|line| assert!(said.contains(line), "{line}: {said}"));
}

#[test]
fn a_step_on_a_gpu_has_the_processors_losses_and_tells_its_time() {
    let step = elastic().with_file_name("examples").join("step");
    let losses = |device: &str| {
        let line = format!("echo run 4 | {} digits f32 1 4 8 {device}", step.display());
        let (_, said) = on_gpu(Command::new("sh").args(["-c", &line]));
        let answer: Value = serde_json::from_str(said.lines().last().expect("an answer")).expect("it is JSON");
        answer["loss"].clone()
    };
    assert_eq!(losses("cuda"), losses("cpu"));
    assert!(losses("cpu").as_array().is_some_and(|losses| losses.len() == 4));

    let (timed, said) = on_gpu(Command::new(&step).args(["time", "3", "digits", "bf16", "1", "4", "8", "cuda"]));
    assert!(timed, "{said}");
    let figure: Value = serde_json::from_str(said.lines().last().expect("a figure")).expect("it is JSON");
    assert!(figure["ms"].as_f64().is_some_and(|ms| ms > 0.0) && figure["planned"]["launches"].is_u64(), "{figure}");
}

#[test]
fn our_step_is_compared_where_there_is_no_torch_and_that_is_said() {
    const NAME: &str = "our_step_is_compared_where_there_is_no_torch_and_that_is_said";
    // Of the system's own modules, without whatever is installed beside them.
    let mut compare = Command::new("python3");
    compare.args([
        "-I",
        "-S",
        "-B",
        "-c",
        "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_path(sys.argv.pop(1), run_name='__main__')",
    ]);
    compare.arg(repo().join("bench/step")).arg(repo().join("bench/step/compare.py"));
    compare.args(["--device", "cuda", "--only", "digits", "--dtype", "f32", "--steps", "2", "--turns", "1"]);
    compare.env("ELASTIC_STEP_BIN", elastic().with_file_name("examples").join("step"));
    if Command::new("python3").arg("--version").output().is_err() {
        return elastic_tests::skip::skip(NAME, "no python3 on PATH");
    }
    let (compared, said) = on_gpu(&mut compare);
    assert!(compared, "{said}");
    assert!(said.contains("PyTorch is left out: python3 has no torch"), "{said}");
    let figures: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let shards: Vec<Option<u64>> = figures.iter().map(|figure| figure["shards"].as_u64()).collect();
    assert_eq!(shards, [Some(1), Some(16)], "{said}");
    assert!(figures.iter().all(|figure| figure["left_out"]["compile"] == "python3 has no torch"), "{said}");
}
