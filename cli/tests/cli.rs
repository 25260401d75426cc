//! The program as a person uses it: what it says, what it leaves behind, and how it ends.

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const JOB: &str = r#"
[model]
kind = "mlp"
hidden = [16]

[data]
kind = "synthetic"
samples = 512
features = 8
classes = 4
validation = 0.25

[train]
global_batch = 32
steps = 60
lr = 0.01

[checkpoint]
every = 20
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn with(job: &str) -> Folder {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("job.toml"), job).unwrap();
        Folder(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_elastic"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        // Neither the tester's settings nor their cluster.
        command.env("XDG_CONFIG_HOME", self.path()).env_remove("ELASTIC_COORDINATOR").env_remove("ELASTIC_TOKEN");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn left_nothing(&self) -> bool {
        std::fs::read_dir(self.path()).unwrap().count() == 1
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it ended by itself")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn last_line(output: &Output) -> Value {
    assert_eq!(code(output), 0, "{}{}", out(output), err(output));
    serde_json::from_str(out(output).lines().last().expect("a line")).unwrap()
}

/// The commands that a help text lists.
fn commands_of(help: &str) -> Vec<String> {
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let name = |line: &str| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')).map(str::to_string);
    list.filter_map(name).filter_map(|line| line.split_whitespace().next().map(str::to_string)).collect()
}

#[test]
fn every_command_has_help_with_an_example() {
    let folder = Folder::with(JOB);
    let mut todo: Vec<Vec<String>> = vec![Vec::new()];
    let mut seen = Vec::new();
    while let Some(path) = todo.pop() {
        let args: Vec<&str> = path.iter().map(String::as_str).chain(["--help"]).collect();
        let help = folder.run(&args);
        assert_eq!(code(&help), 0, "{path:?}");
        let help = out(&help);
        let (name, commands) = (path.join(" "), commands_of(&help));
        todo.extend(commands.into_iter().map(|command| [&path[..], &[command]].concat()));
        if name.is_empty() {
            assert!(help.contains("Exit codes:") && !help.contains("worker "), "{help}");
        } else {
            assert!(help.contains("Example") && help.contains(&format!("  elastic {name}")), "{name}: {help}");
        }
        seen.push(name);
    }
    for known in ["run", "serve", "certs init", "token revoke", "checkpoint verify", "pipeline rollback"] {
        assert!(seen.iter().any(|name| name == known), "{known} is among {seen:?}");
    }
}

/// Flags of torchrun 2.15 that have a value, and one that is allowed; then those that have none.
const FLAGS_OF_TORCHRUN: [(&str, &str); 28] = [
    ("nnodes", "1:1"),
    ("nproc-per-node", "1"),
    ("rdzv-backend", "c10d"),
    ("rdzv-endpoint", "localhost:29400"),
    ("rdzv-id", "x"),
    ("rdzv-conf", "timeout=3"),
    ("max-restarts", "3"),
    ("monitor-interval", "0.1"),
    ("start-method", "spawn"),
    ("event-log-handler", "console"),
    ("role", "trainer"),
    ("log-dir", "logs"),
    ("redirects", "0:1,1:2"),
    ("tee", "3"),
    ("log-line-prefix-template", "[${rank}]:"),
    ("local-ranks-filter", "0"),
    ("duplicate-stdout-filters", "a,b"),
    ("duplicate-stderr-filters", "a,b"),
    ("node-rank", "0"),
    ("master-addr", "127.0.0.1"),
    ("master-port", "29500"),
    ("local-addr", "127.0.0.1"),
    ("logs-specs", "default"),
    ("numa-binding", "node"),
    ("signals-to-handle", "SIGTERM,SIGUSR1"),
    ("shutdown-timeout", "30"),
    ("nproc-per-node", "cpu"),
    ("nproc-per-node", "auto"),
];
const SWITCHES_OF_TORCHRUN: [&str; 5] = ["standalone", "module", "no-python", "run-path", "virtual-local-rank"];
/// Torchrun itself reads no variable for these.
const WITHOUT_VARIABLE: [&str; 2] = ["logs-specs", "numa-binding"];

#[test]
fn every_flag_of_torchrun_is_taken_in_both_spellings_and_from_the_environment() {
    let folder = Folder::with(JOB);
    // What is refused behind the flags: they were understood.
    let refused = |command: &mut Command| {
        let said = command.args(["--detach", "train.py", "--nnodes"]).output().unwrap();
        assert!(code(&said) == 2 && err(&said).contains("--detach needs a cluster"), "{command:?}: {}", err(&said));
    };
    let variable = |flag: &str| format!("PET_{}", flag.to_uppercase().replace('-', "_"));
    for (flag, value) in FLAGS_OF_TORCHRUN {
        for flag in [flag.to_string(), flag.replace('-', "_")] {
            refused(&mut folder.command(&["run", &format!("--{flag}"), value]));
        }
        refused(folder.command(&["run"]).env(variable(flag), value));
    }
    for flag in SWITCHES_OF_TORCHRUN {
        for flag in [flag.to_string(), flag.replace('-', "_")] {
            refused(&mut folder.command(&["run", &format!("--{flag}")]));
        }
        refused(folder.command(&["run"]).env(variable(flag), "1"));
    }
    // A wrong value shows that the variable is read; what takes any says that it changes nothing.
    let anything = ["role", "log-dir", "log-line-prefix-template", "local-addr"];
    for (flag, _) in FLAGS_OF_TORCHRUN.iter().filter(|(flag, _)| !anything.contains(flag)) {
        let (name, flag) = (variable(flag), format!("--{flag}"));
        let said = folder.command(&["run", "--detach", "train.py"]).env(&name, "//").output().unwrap();
        let is_read = !WITHOUT_VARIABLE.contains(&&flag[2..]);
        assert_eq!(err(&said).contains(&flag), is_read, "{name}: {}", err(&said));
    }
}

#[test]
fn an_unknown_flag_is_no_command_and_the_nearest_one_is_named() {
    let folder = Folder::with(JOB);
    for (flag, nearest) in [("--nproc-per-nod", "--nproc-per-node"), ("--max_restart", "--max_restarts")] {
        let said = folder.run(&["run", flag, "2", "train.py"]);
        assert_eq!(code(&said), 2, "{}", err(&said));
        assert!(err(&said).contains(&format!("'{flag}'")) && err(&said).contains(nearest), "{}", err(&said));
        assert!(folder.left_nothing());
    }
    let said = folder.run(&["run", "--signals-to-handle", "SIGKILL", "train.py"]);
    assert!(code(&said) == 2 && err(&said).contains("SIGKILL: allowed are SIGTERM"), "{}", err(&said));
    let said = folder.run(&["run", "--local-ranks-filter", "1", "train.py"]);
    assert!(code(&said) == 2 && err(&said).contains("the processes of a node are 0 to 0"), "{}", err(&said));
}

#[test]
fn all_mistakes_of_a_job_file_are_told_at_once_and_nothing_is_stored() {
    let job = JOB.replace("hidden", "hiden").replace("classes = 4", "classes = 1").replace("steps = 60", "steps = -1");
    let folder = Folder::with(&job);
    let said = folder.run(&["submit", "job.toml"]);
    assert_eq!(code(&said), 2);
    for part in [
        "job.toml:4: model.hiden",
        "did you mean `model.hidden`",
        "data.classes",
        "train.steps",
        "nothing was submitted",
    ] {
        assert!(err(&said).contains(part), "{part}: {}", err(&said));
    }
    let json: Value = serde_json::from_str(&out(&folder.run(&["submit", "job.toml", "--json"]))).unwrap();
    assert!(json["mistakes"].as_array().unwrap().len() >= 3, "{json}");
    assert!(folder.left_nothing());
}

#[test]
fn no_mistake_touches_the_network_or_the_disk() {
    let folder = Folder::with(JOB);
    let absent =
        JOB.replace("kind = \"synthetic\"\nsamples = 512\nfeatures = 8", "kind = \"csv\"\npath = \"nope.csv\"");
    let bad = Folder::with(&absent);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let cases: &[(&Folder, &[&str], &str)] = &[
        (&folder, &["submit", "other.toml"], "read the job file other.toml"),
        (&folder, &["submit", "job.toml", "--set", "train.lr=fast", "--coordinator", &url], "train.lr"),
        (&folder, &["submit", "job.toml", "--workers", "64", "--coordinator", &url], "--workers 64"),
        (&folder, &["submit", "job.toml", "--resume", "../x y", "--coordinator", &url], "--resume"),
        (&folder, &["submit", "job.toml", "--resume", "digits-0000"], "there is no runs/digits-0000"),
        (&folder, &["submit", "job.toml", "--detach"], "--coordinator URL"),
        (&folder, &["jobs"], "no coordinator is named"),
        (&folder, &["scale", "digits-1"], "--min"),
        (&folder, &["status", "../x", "--coordinator", &url], "job id"),
        (&folder, &["coordinator", "--store", "postgres://x"], "etcd://HOST:PORT"),
        (&folder, &["coordinator", "--listen", "0.0.0.0:0"], "--insecure"),
        (&folder, &["agent", "--ports", "9-3", "--coordinator", &url], "--ports 9-3"),
        (&folder, &["checkpoint", "verify", "."], "there is no checkpoint"),
        (&bad, &["submit", "job.toml"], "nope.csv does not exist"),
    ];
    for (folder, args, says) in cases {
        let said = folder.run(args);
        assert_eq!(code(&said), 2, "{args:?}: {}", err(&said));
        assert!(err(&said).contains(says), "{args:?}: {}", err(&said));
        assert!(folder.left_nothing(), "{args:?} left something behind");
    }
    let asked = listener.accept().map(|_| ());
    assert_eq!(asked.unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "the network was touched");
}

#[test]
fn a_coordinator_that_is_not_there_has_its_own_code() {
    let folder = Folder::with(JOB);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for args in [&["jobs"][..], &["submit", "job.toml"], &["drain", "n1"]] {
        let said = folder.command(args).env("ELASTIC_COORDINATOR", free.to_string()).output().unwrap();
        assert_eq!(code(&said), 3, "{args:?}: {}", err(&said));
    }
}

#[test]
fn a_dry_run_shows_a_job_file_that_says_the_same() {
    let folder = Folder::with(JOB);
    let shown = out(&folder.run(&["submit", "job.toml", "--dry-run", "--set", "train.lr=0.5"]));
    assert!(shown.contains("lr = 0.5") && shown.contains("shards = 8"), "{shown}");
    assert!(folder.left_nothing());
    let again = Folder::with(&shown);
    assert_eq!(out(&again.run(&["submit", "job.toml", "--dry-run"])), shown);
}

#[test]
fn planned_memory_is_told_before_a_run_and_beside_a_dry_run() {
    let folder = Folder::with(JOB);
    let told = "planned memory of a worker, besides the data: ";
    let dry = folder.run(&["submit", "job.toml", "--dry-run"]);
    assert!(err(&dry).contains(told) && err(&dry).contains("optimizer 1.7 KiB"), "{}", err(&dry));
    assert!(!out(&dry).contains("planned"), "stdout is the job alone");
    let csv = JOB.replace("kind = \"synthetic\"\nsamples = 512\nfeatures = 8", "kind = \"csv\"\npath = \"away.csv\"");
    let away = Folder::with(&csv);
    let dry = away.run(&["submit", "job.toml", "--dry-run"]);
    assert_eq!(code(&dry), 0);
    assert!(err(&dry).starts_with("planned memory is not known: ") && err(&dry).contains("away.csv"), "{}", err(&dry));
    let run = folder.run(&["submit", "job.toml", "--local", "--workers", "1"]);
    assert!(err(&run).starts_with(told), "{}", err(&run));
}

#[test]
fn a_start_that_is_not_the_one_that_was_meant_is_refused() {
    let folder = Folder::with(&JOB.replace("hidden = [16]", "hidden = [16]\ninit = \"weights.safetensors\""));
    std::fs::write(folder.path().join("weights.safetensors"), "nonsense").unwrap();
    let other = format!("model.init_sha256={:?}", "0".repeat(64));
    let refused = folder.run(&["submit", "job.toml", "--local", "--set", &other]);
    assert_eq!(code(&refused), 2);
    let said = err(&refused);
    assert!(said.contains("model.init_sha256: what model.init names here has ") && said.contains("says 000"), "{said}");
}

#[test]
fn a_job_that_cannot_fit_into_memory_is_refused_with_its_plan_and_a_cure() {
    let folder = Folder::with(&JOB.replace("hidden = [16]", &format!("hidden = {:?}", [65536; 64])));
    for args in [&["submit", "job.toml", "--local", "--workers", "2"][..], &["profile", "job.toml"]] {
        let refused = folder.run(args);
        let said = err(&refused);
        assert_eq!(code(&refused), 2, "{said}");
        for part in
            ["a worker needs ", "11 TiB: state 1008 GiB, optimizer 2.0 TiB", " leaves ", "train.optimizer = \"sgd\""]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(folder.left_nothing());
    }
}

#[test]
fn a_job_for_a_gpu_is_refused_where_none_can_train_it_and_auto_is_the_processor() {
    let folder = Folder::with(JOB);
    let on = |device: &str, args: &[&str]| {
        let device = format!("resources.device={device}");
        folder.command(&[args, &["--set", &device]].concat()).env("ELASTIC_CUDA_LIBS", "-").output().unwrap()
    };
    for args in [&["submit", "job.toml", "--local"][..], &["profile", "job.toml"]] {
        let refused = on("cuda", args);
        assert_eq!(code(&refused), 2, "{}", err(&refused));
        let said = err(&refused);
        for part in
            ["resources.device = \"cuda\"", "libcuda is not on this machine", "\"auto\" trains on the processor"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(folder.left_nothing());
    }
    let submit = ["submit", "job.toml", "--local", "--json"];
    let [auto, cpu] = ["auto", "cpu"].map(|device| last_line(&on(device, &submit)));
    assert_eq!(auto["weights_sha256"], cpu["weights_sha256"]);
}

#[test]
fn devices_are_listed_with_what_is_missing_and_none_is_an_error_only_where_one_is_needed() {
    let folder = Folder::with(JOB);
    let devices =
        |args: &[&str]| folder.command(&[&["devices"], args].concat()).env("ELASTIC_CUDA_LIBS", "-").output().unwrap();
    let shown = devices(&[]);
    assert_eq!(code(&shown), 0, "{}", err(&shown));
    for part in ["processor, ", "no GPU can be used: libcuda is not", "libnccl", "`pip install nvidia-cuda-nvrtc`"] {
        assert!(out(&shown).contains(part), "{part}: {}", out(&shown));
    }
    let json = last_line(&devices(&["--json"]));
    assert_eq!((json["gpus"].as_array().unwrap().len(), json["libraries"].as_array().unwrap().len()), (0, 6));
    assert!(json["gpu_problem"].as_str().unwrap().contains("install NVIDIA's driver"));
    assert!(json["libraries"][0]["path"].is_null() && json["libraries"][0]["problem"].is_string());
    let needed = devices(&["--need-gpu"]);
    assert_eq!(code(&needed), 1);
    assert_eq!(out(&needed), out(&shown));
}

#[test]
fn a_profile_tells_every_op_with_its_share_and_leaves_a_trace_only_where_asked() {
    let folder = Folder::with(JOB);
    let shown = out(&folder.run(&["profile", "job.toml", "--threads", "1", "--steps", "3", "--top", "2"]));
    for part in ["parameters\n", "PHASE", "OF PEAK", " more ", "--top shows them", "backward  all", "planned memory"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(folder.left_nothing());
    let args = ["profile", "job.toml", "--steps", "4", "--threads", "2", "--json", "--trace", "trace.json"];
    let profile: Value = serde_json::from_str(&out(&folder.run(&args))).unwrap();
    assert_eq!((&profile["threads"], &profile["steps"]), (&2.into(), &4.into()));
    let rows = profile["rows"].as_array().unwrap();
    let number = |row: &Value, key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"));
    for row in rows {
        for key in ["us", "share", "read_bytes", "written_bytes", "flops", "gflops", "of_peak", "gb_per_second"] {
            assert!(number(row, key) >= 0.0, "{key} of {row}");
        }
    }
    let first = rows.iter().find(|row| row["op"] == "linear" && row["phase"] == "forward").unwrap();
    assert_eq!(number(first, "flops"), f64::from(2 * 32 * 8 * 16 + 32 * 16), "{first}");
    assert!(number(&profile["memory"], "total_bytes") > 0.0);
    let trace: Value = serde_json::from_slice(&std::fs::read(folder.path().join("trace.json")).unwrap()).unwrap();
    let events: Vec<&Value> = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
    let calls: u64 = rows.iter().map(|row| row["calls"].as_u64().unwrap()).sum();
    assert_eq!(events.len() as u64, 4 * calls, "each call of each step");
    for pair in events.windows(2) {
        let end = number(pair[0], "ts") + number(pair[0], "dur");
        assert!(end <= number(pair[1], "ts") + 1e-3, "one op after the other: {} {}", pair[0], pair[1]);
    }
    let wrong = folder.run(&["profile", "job.toml", "--set", "train.lr=-1"]);
    assert_eq!(code(&wrong), 2);
    assert!(err(&wrong).contains("train.lr") && err(&wrong).contains("nothing was measured"), "{}", err(&wrong));
}

#[test]
fn any_number_of_workers_gives_one_digest_and_the_run_directory_holds_what_was_promised() {
    let folder = Folder::with(JOB);
    let results: Vec<Value> = ["1", "2", "3"]
        .iter()
        .map(|workers| last_line(&folder.run(&["submit", "job.toml", "--workers", workers, "--json"])))
        .collect();
    for result in &results {
        assert_eq!((&result["state"], &result["steps"]), (&"succeeded".into(), &60.into()));
        assert_eq!(result["weights_sha256"], results[0]["weights_sha256"]);
        assert_eq!(result["validation"], results[0]["validation"]);
        let dir = Path::new(result["run_dir"].as_str().unwrap());
        assert!(dir.starts_with(folder.path().canonicalize().unwrap().join("runs")), "{dir:?}");
        let events = std::fs::read_to_string(dir.join("events.jsonl")).unwrap();
        assert_eq!(events.lines().count(), 60);
        assert_eq!(std::fs::read_to_string(dir.join("job.toml")).unwrap(), JOB);
        let kept: Value = serde_json::from_slice(&std::fs::read(dir.join("result.json")).unwrap()).unwrap();
        assert_eq!(kept["weights_sha256"], result["weights_sha256"]);
        let verified = folder.run(&["checkpoint", "verify", dir.to_str().unwrap()]);
        assert_eq!(code(&verified), 0, "{}", out(&verified));
    }
    assert_eq!(std::fs::read_dir(folder.path().join("runs/.cluster")).unwrap().count(), 0, "the cluster is gone");
}

#[test]
fn a_damaged_checkpoint_is_found() {
    let folder = Folder::with(JOB);
    let result = last_line(&folder.run(&["submit", "job.toml", "--json"]));
    let dir = result["run_dir"].as_str().unwrap();
    let listed: Value = serde_json::from_str(&out(&folder.run(&["checkpoint", "list", dir, "--json"]))).unwrap();
    let newest = Path::new(listed[0]["path"].as_str().unwrap()).join("weights.safetensors");
    let mut bytes = std::fs::read(&newest).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(newest, bytes).unwrap();
    let verified = folder.run(&["checkpoint", "verify", dir]);
    assert_eq!(code(&verified), 1);
    assert!(out(&verified).contains("DAMAGED"), "{}", out(&verified));
    // How many older ones there are hangs on how fast the disk is; each is told as whole.
    let whole = out(&verified).lines().filter(|line| line.starts_with("whole ")).count();
    assert_eq!(whole, listed.as_array().unwrap().len() - 1, "{}", out(&verified));
}

#[test]
fn a_job_whose_data_is_wrong_fails_with_the_reason() {
    let folder = Folder::with(
        &JOB.replace("kind = \"synthetic\"\nsamples = 512\nfeatures = 8", "kind = \"csv\"\npath = \"data.csv\""),
    );
    std::fs::write(folder.path().join("data.csv"), "1,2,0\n3,x,1\n").unwrap();
    let said = folder.run(&["submit", "job.toml"]);
    assert_eq!(code(&said), 1, "{}{}", out(&said), err(&said));
    assert!(out(&said).contains("failed") && out(&said).contains("data.csv"), "{}", out(&said));
    assert!(err(&said).contains("--resume"), "{}", err(&said));
}

/// A run long enough to be caught in the middle.
const LONG: &[&str] = &["submit", "job.toml", "--set", "train.steps=30000", "--set", "checkpoint.every=500", "--json"];

/// Starts a long run and waits until its first checkpoint is there; also the run's name.
#[expect(clippy::zombie_processes, reason = "the caller waits; where no checkpoint comes, the test has failed")]
fn caught_in_the_middle(folder: &Folder) -> (Child, String) {
    let child = folder.command(LONG).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        assert!(Instant::now() < until, "no checkpoint was published");
        std::thread::sleep(Duration::from_millis(5));
        let Ok(runs) = std::fs::read_dir(folder.path().join("runs")) else { continue };
        for run in runs.flatten() {
            let checkpoints = std::fs::read_dir(run.path().join("checkpoints")).into_iter().flatten().flatten();
            if checkpoints.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("step-")) {
                return (child, run.file_name().to_string_lossy().into_owned());
            }
        }
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn ctrl_c_stops_cleanly_and_the_run_goes_on_to_the_same_bits() {
    let folder = Folder::with(JOB);
    let (child, run) = caught_in_the_middle(&folder);
    signal(&child, Signal::INT);
    let said = child.wait_with_output().unwrap();
    assert_eq!(code(&said), 130, "{}", err(&said));
    assert!(err(&said).contains(&format!("--resume {run}")), "{}", err(&said));
    let resumed = last_line(&folder.run(&[LONG, &["--resume", &run]].concat()));
    let undisturbed = last_line(&folder.run(LONG));
    assert_eq!(resumed["weights_sha256"], undisturbed["weights_sha256"]);
    assert!(resumed["run_dir"].as_str().unwrap().ends_with(&run));
}

#[test]
fn after_kill_9_no_worker_is_left_and_the_run_goes_on_to_the_same_bits() {
    let folder = Folder::with(JOB);
    let (child, run) = caught_in_the_middle(&folder);
    let workers = children(child.id());
    assert!(!workers.is_empty());
    signal(&child, Signal::KILL);
    child.wait_with_output().unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while workers.iter().any(|pid| Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok()) {
        assert!(Instant::now() < until, "a worker outlived its agent");
        std::thread::sleep(Duration::from_millis(5));
    }
    let resumed = last_line(&folder.run(&[LONG, &["--resume", &run]].concat()));
    let undisturbed = last_line(&folder.run(LONG));
    assert_eq!(resumed["weights_sha256"], undisturbed["weights_sha256"]);
    assert_eq!(std::fs::read_dir(folder.path().join("runs/.cluster")).unwrap().count(), 0, "what was left is cleared");
}

fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    pids.filter(is_child).collect()
}
