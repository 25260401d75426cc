//! Jobs on GPUs, alone and together with processors. The GPU here is a driver and a compiler that run the kernels' own sources
//! on the processor (`tensor/cuda/tests/fake`): all else, from the job file to the launches, is the product.

use crate::cluster::{Cluster, Proof, assert_same, job_file, repo, submit_local};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// Folders with the driver and the compiler, and with what it has compiled.
struct Gpu {
    libraries: PathBuf,
    kept: PathBuf,
}

static GPU: LazyLock<Gpu> = LazyLock::new(|| {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-gpu");
    let (libraries, kept) = (dir.join("libraries"), dir.join("kept"));
    std::fs::create_dir_all(&libraries).expect("the target directory can be written");
    let fake = repo().join("tensor/cuda/tests/fake");
    let emulator = fake.join("emulator.h");
    let text = std::fs::read(&emulator).expect("the emulator's source is here");
    // The version is part of the key of what is kept: another emulator is another compiler.
    let version = text.iter().fold(5381u32, |sum, byte| sum.wrapping_mul(33) ^ u32::from(*byte)) % 1_000_000;
    let make = |source: &str, to: &str, flags: &[String]| {
        let mut cc = Command::new("cc");
        // Made beside its place: another test program may have loaded the old one.
        let new = libraries.join(format!("{to}.{}", std::process::id()));
        cc.args(["-shared", "-fPIC", "-O1", "-w", "-o"]).arg(&new).arg(fake.join(source)).args(flags);
        assert!(cc.status().expect("there is a cc").success(), "{source} compiles");
        std::fs::rename(&new, libraries.join(to)).expect("a file can be renamed");
    };
    make("libcuda.c", "libcuda.so.1", &[]);
    make("libnvrtc.c", "libnvrtc-builtins.so.13.0", &["-DBUILTINS".into()]);
    let emulates = format!("-DEMULATOR=\"{}\"", emulator.display());
    make("libnvrtc.c", "libnvrtc.so.13", &["-DEMULATES".into(), emulates, format!("-DMINOR={version}")]);
    Gpu { libraries, kept }
});

/// The environment of a node with a GPU.
pub fn with_gpu() -> Vec<(&'static str, String)> {
    vec![
        ("ELASTIC_CUDA_LIBS", format!("{}:-", GPU.libraries.display())),
        ("XDG_CACHE_HOME", GPU.kept.display().to_string()),
    ]
}

/// And of one without.
fn without_gpu() -> Vec<(&'static str, String)> {
    vec![("ELASTIC_CUDA_LIBS", "-".to_string())]
}

fn trained(example: &str, args: &[&str], env: &[(&str, String)]) -> Proof {
    let dir = tempfile::tempdir().expect("a temporary directory");
    submit_local(dir.path(), &job_file(example), args, env).1
}

/// One worker on a processor, and one and two on GPUs.
fn check(example: &str, args: &[&str]) {
    let with = |device: &str, workers: &str, env: &[(&str, String)]| {
        let device = format!("resources.device={device}");
        let args: Vec<&str> = args.iter().copied().chain(["--workers", workers, "--set", &device]).collect();
        trained(example, &args, env)
    };
    let processor = with("cpu", "1", &without_gpu());
    for workers in ["1", "2"] {
        let gpu = with("cuda", workers, &with_gpu());
        assert_eq!(
            (&gpu.weights, &gpu.validation, &gpu.rows),
            (&processor.weights, &processor.validation, &processor.rows)
        );
    }
}

#[test]
fn an_mlp_has_the_same_bits_on_gpus_and_processors() {
    check("digits", &["--set", "train.epochs=1"]);
}

/// A round of validation moves nothing, and the state that the GPU has goes on behind it.
#[test]
fn validating_on_the_way_costs_no_bit_on_gpus_with_and_without_an_average() {
    let args = ["--set", "train.epochs=1", "--set", "train.validate_every=10"];
    check("digits", &args);
    check("digits", &[&args[..], &["--set", "train.ema=0.9"]].concat());
}

#[test]
fn a_cnn_has_the_same_bits_on_gpus_and_processors() {
    check("cnn", &["--set", "train.epochs=1"]);
}

#[test]
fn a_gpt_has_the_same_bits_on_gpus_and_processors() {
    check("gpt", &["--set", "train.steps=3"]);
}

#[test]
fn a_model_of_ones_own_has_the_same_bits_on_gpus_and_processors() {
    let program = match std::env::var_os("ELASTIC_OWN_MODEL_BIN") {
        Some(path) => PathBuf::from(path),
        None => crate::cluster::elastic().with_file_name("own-model"),
    };
    check("own-model", &["--set", &format!("model.program={}", program.display()), "--set", "train.epochs=1"]);
}

#[test]
fn jobs_in_bf16_have_the_same_bits_on_one_and_two_gpus_and_after_a_kill() {
    for (example, length) in [("digits", "train.epochs=1"), ("gpt", "train.steps=3")] {
        let with = |workers: &str, more: &[(&'static str, String)]| {
            let sets = ["--set", length, "--set", "train.dtype=bf16", "--set", "resources.device=cuda"];
            let args: Vec<&str> = sets.into_iter().chain(["--workers", workers]).collect();
            trained(example, &args, &[with_gpu(), more.to_vec()].concat())
        };
        let dir = tempfile::tempdir().expect("a temporary directory");
        let kill = [
            ("ELASTIC_FAIL", "after-contribute:2:kill".to_string()),
            ("ELASTIC_FAIL_ONCE", dir.path().display().to_string()),
        ];
        let alone = with("1", &[]);
        assert_same(&with("2", &[]), &alone);
        assert_same(&with("2", &kill), &alone);
        assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 1, "nobody was killed");
    }
}

#[test]
fn nodes_with_and_without_a_gpu_train_one_job_and_a_kill_on_either_costs_no_bit() {
    let args = ["--set", "train.epochs=8"];
    let alone = trained("digits", &["--set", "train.epochs=8", "--workers", "1"], &without_gpu());
    let mut cluster = Cluster::start(None, 0);
    // A joiner only applies what others compute: on this GPU even that takes a while, so that the others must take longer.
    let slow = ("ELASTIC_FAIL", "before-compute:every:sleep:10".to_string());
    cluster.start_agent("gpu", &[with_gpu(), vec![slow.clone()]].concat());
    cluster.start_agent("processor", &[without_gpu(), vec![slow]].concat());
    let job = cluster.submit(&job_file("digits"), &args);
    cluster.until_active(&job, 2);
    cluster.until_step(&job, 10);
    for node in ["gpu", "processor"] {
        let before = cluster.step(&job);
        let worker = cluster.agents[node].workers()[0];
        crate::cluster::signal(worker, "KILL");
        cluster.until_step(&job, before + 5);
        cluster.until_active(&job, 2);
    }
    let (_, proof) = cluster.until_done(&job);
    for (node, device) in [("gpu", "computes on GPU 0, Fake GPU 0"), ("processor", "trains on the processor")] {
        let said = logs(&cluster.dir.join("nodes").join(node));
        assert!(said.matches(device).count() == 2, "both workers of {node}: {said}");
    }
    assert_same(&proof, &alone);
}

/// What all workers of a run have said.
fn logs(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let read =
        |path: PathBuf| if path.is_dir() { logs(&path) } else { std::fs::read_to_string(path).unwrap_or_default() };
    entries.map(read).collect()
}
