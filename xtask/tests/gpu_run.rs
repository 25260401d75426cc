//! `bench/gpu/run.sh` and `processes.sh` with stand-ins for their programs: what fails, hangs or cannot run keeps nothing else
//! from running, and is told. What the programs do on an emulated GPU is tested in `tests/e2e/gpu_bundle.rs`.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// Says what there is, and trains to a digest; CHANGE is what a test adds to that.
const ELASTIC: &str = r#"
digest=$(printf '%064d' 7)
case "$*" in
"devices --json")
  gpu='{"capability":"9.0","memory_bytes":1,"name":"Stand-in 9","ordinal":0}'
  echo "{\"gpus\":[$gpu],\"libraries\":[{\"name\":\"libcuda\",\"version\":\"for CUDA 13.0\"}]}" ;;
submit*)
  [ -z "${ELASTIC_FAIL_ONCE:-}" ] || touch "$ELASTIC_FAIL_ONCE/killed"
  CHANGE
  echo "{\"state\":\"succeeded\",\"weights_sha256\":\"$digest\"}" ;;
esac
"#;

/// A bundle in which each program is a few lines of shell.
struct Bundle {
    dir: TempDir,
}

impl Bundle {
    fn new() -> Bundle {
        let bundle = Bundle { dir: tempfile::tempdir().expect("a temporary directory") };
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("bench").join("gpu");
        for script in ["run.sh", "processes.sh"] {
            std::fs::copy(scripts.join(script), bundle.file(script)).expect("the script is here");
        }
        bundle.program("elastic", &ELASTIC.replace("CHANGE", ":"));
        for name in ["elastic-selftest", "ops", "networks", "elastic-nccl-selftest"] {
            bundle.program(name, "echo fine");
        }
        bundle.program("step", r#"echo "{\"figure\":\"step\",\"model\":\"$3\",\"shards\":$6}""#);
        bundle
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self, name: &str, body: &str) {
        let file = self.file(name);
        std::fs::write(&file, format!("#!/bin/sh\n{body}\n")).expect("a temporary folder can be written");
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    /// Without Python and NVIDIA's tools: a PATH of what the script itself needs.
    fn run(&self, parts: &[&str], environment: &[(&str, &str)]) -> Told {
        let tools = self.file("tools");
        std::fs::create_dir_all(&tools).expect("a temporary folder can be written");
        let needed = ["sh", "date", "uname", "nproc", "dirname", "basename", "mkdir", "sed", "grep", "tail", "head"];
        for tool in needed
            .iter()
            .chain(&["cat", "tee", "timeout", "tar", "gzip", "sleep", "getconf", "ls", "rm", "wc", "touch", "find"])
        {
            let path = std::env::var_os("PATH").expect("a PATH");
            let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|file| file.is_file());
            if let Some(found) = found {
                // There from the run before.
                let _ = std::os::unix::fs::symlink(found, tools.join(tool));
            }
        }
        let mut run = Command::new(self.file("run.sh"));
        run.args(parts).env("PATH", &tools).env("CUDA_HOME", self.dir.path());
        // What the tests' own environment names is not the bundle's.
        for name in ["ELASTIC_GPU_OUT", "ELASTIC_BIN", "ELASTIC_JOB", "ELASTIC_GPU_WORKERS", "ELASTIC_STEP_BIN"] {
            run.env_remove(name);
        }
        let Output { status, stdout, stderr } = run.envs(environment.iter().copied()).output().expect("it starts");
        let read = |name: &str| std::fs::read_to_string(self.dir.path().join("out").join(name)).unwrap_or_default();
        let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        Told { code: status.code(), said, summary: read("summary.txt"), figures: read("figures.json") }
    }
}

#[derive(Debug)]
struct Told {
    code: Option<i32>,
    said: String,
    summary: String,
    figures: String,
}

impl Told {
    /// Part and result, as the summary has them.
    fn results(&self) -> BTreeMap<&str, &str> {
        let rows = self.summary.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        rows.map(|row| (row[0], row[1])).collect()
    }
}

#[test]
fn every_part_runs_and_what_cannot_is_skipped_with_its_reason() {
    let bundle = Bundle::new();
    let told = bundle.run(&[], &[]);
    assert_eq!(told.code, Some(0), "{told:?}");
    let skipped = "compute-sanitizer is not on PATH";
    for (part, result) in told.results() {
        assert_eq!(result, if part == "sanitizer" { "skipped" } else { "passed" }, "{part}: {told:?}");
    }
    assert_eq!(told.results().len(), 9, "{told:?}");
    assert!(told.summary.contains(skipped), "{told:?}");
    assert!(bundle.file("out/logs.tar.gz").is_file());
}

#[test]
fn figures_say_when_and_on_which_card() {
    let told = Bundle::new().run(&["gpt2"], &[]);
    let rows: Vec<serde_json::Value> =
        told.figures.lines().map(|line| serde_json::from_str(line).expect("a row is JSON")).collect();
    assert_eq!(rows.iter().map(|row| row["shards"].as_u64()).collect::<Vec<_>>(), [Some(1), Some(16)], "{told:?}");
    for row in rows {
        assert_eq!((&row["card"], &row["cuda"]), (&"Stand-in 9".into(), &"13.0".into()));
        assert_eq!((&row["part"], &row["figure"], &row["model"]), (&"gpt2".into(), &"step".into(), &"gpt2".into()));
        assert!(row["date"].as_str().is_some_and(|date| date.ends_with('Z')), "{row}");
    }
}

#[test]
fn what_fails_or_hangs_keeps_nothing_else_from_running() {
    let bundle = Bundle::new();
    bundle.program("ops", "echo first; echo the last words; exit 101");
    bundle.program("networks", "sleep 60");
    bundle.program("elastic-nccl-selftest", "echo no NCCL; exit 3");
    let told = bundle.run(&["selftest", "ops", "networks", "nccl", "processes"], &[("ELASTIC_GPU_LIMIT", "2")]);
    assert_eq!(told.code, Some(1), "{told:?}");
    let wanted = [
        ("selftest", "passed"),
        ("ops", "FAILED"),
        ("networks", "FAILED"),
        ("nccl", "skipped"),
        ("processes", "passed"),
    ];
    assert_eq!(told.results(), BTreeMap::from(wanted));
    for part in ["the last words", "exit code 101, see ops.log", "not done after 2 s", "no NCCL"] {
        assert!(told.said.contains(part), "{part}: {told:?}");
    }
}

#[test]
fn a_finding_of_the_sanitizer_fails_and_a_card_that_it_refuses_is_skipped() {
    let bundle = Bundle::new();
    std::fs::create_dir(bundle.file("bin")).expect("a temporary folder can be written");
    bundle.program("bin/compute-sanitizer", r#"if [ "$2" = racecheck ]; then echo a race; exit 99; fi"#);
    let told = bundle.run(&["sanitizer"], &[]);
    assert_eq!((told.code, told.results()["sanitizer"]), (Some(1), "FAILED"), "{told:?}");
    for part in
        ["memcheck of ops: clean", "racecheck of ops: FAILED, exit code 99", "a race", "synccheck of ops: clean"]
    {
        assert!(told.said.contains(part), "{part}: {told:?}");
    }
    bundle.program("bin/compute-sanitizer", "echo Error: Device not supported; exit 1");
    let told = bundle.run(&["sanitizer"], &[]);
    assert_eq!((told.code, told.results()["sanitizer"]), (Some(0), "skipped"), "{told:?}");
}

#[test]
fn without_a_gpu_nothing_runs_and_the_code_says_so() {
    let bundle = Bundle::new();
    bundle.program("elastic", "echo libcuda is not on this machine; exit 1");
    let told = bundle.run(&[], &[]);
    assert_eq!((told.code, told.summary.as_str()), (Some(3), ""), "{told:?}");
    assert!(told.said.contains("libcuda is not on this machine\nno GPU to test"), "{told:?}");
}

#[test]
fn a_part_that_is_not_there_is_refused_before_anything_runs() {
    let told = Bundle::new().run(&["ops", "speed"], &[]);
    assert_eq!((told.code, told.summary.as_str()), (Some(2), ""), "{told:?}");
    assert!(told.said.contains("no part is called speed; there are: machine selftest ops"), "{told:?}");
}

#[test]
fn another_digest_for_more_processes_or_after_a_kill_fails_and_so_does_a_kill_that_did_not_happen() {
    let bundle = Bundle::new();
    let told = |change: &str| {
        bundle.program("elastic", &ELASTIC.replace("CHANGE", change));
        let told = bundle.run(&["processes"], &[]);
        (told.results()["processes"].to_string(), told.said)
    };
    assert_eq!(told(":").0, "passed");
    let other = "digest=$(printf '%064d' 8)";
    let (result, said) = told(&format!(r#"case "$*" in *"--workers 4"*) {other} ;; esac"#));
    assert_eq!(result, "FAILED");
    assert!(said.contains("PASS f32, 2 processes on the GPU") && said.contains("FAIL f32, 4 processes on the GPU: "));
    let (result, said) = told(&format!(r#"case "$*" in *device=cuda*) {other} ;; esac"#));
    assert!(result == "FAILED" && said.contains("FAIL f32, 1 process on the GPU, as the processor"), "{said}");
    let (result, said) = told(&format!(r#"[ -z "${{ELASTIC_FAIL:-}}" ] || {other}"#));
    assert!(result == "FAILED" && said.contains("FAIL bf16, 4 processes on the GPU, one of them killed"), "{said}");
    let (result, said) = told(r#"[ -z "${ELASTIC_FAIL_ONCE:-}" ] || rm "$ELASTIC_FAIL_ONCE/killed""#);
    assert!(result == "FAILED" && said.contains("FAIL f32: 0 processes were killed, not 1"), "{said}");
    let (result, said) = told("echo no memory >&2; exit 1");
    assert!(result == "FAILED" && said.contains("no memory") && said.contains("no digest"), "{said}");
}
