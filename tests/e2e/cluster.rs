//! A cluster of real processes on this machine: `elastic coordinator`, `elastic agent`, `elastic submit`,
//! each in a directory of its own, killed and stopped with real signals.

use serde_json::Value;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No step is shorter than this, however fast the machine: what a test does to a job takes its time, and the job
/// must not be over before. The undisturbed runs keep no pace; bits do not depend on it. For `ELASTIC_FAIL`.
pub const PACE: &str = "before-apply:every:sleep:3";

/// The product under test.
pub fn elastic() -> PathBuf {
    if let Some(path) = std::env::var_os("ELASTIC_BIN") {
        return PathBuf::from(path);
    }
    let exe = std::env::current_exe().expect("this test has a path");
    exe.ancestors().nth(2).expect("target/release/deps/e2e").join("elastic")
}

pub fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_path_buf()
}

pub fn job_file(example: &str) -> PathBuf {
    repo().join("examples").join(example).join("job.toml")
}

/// Waits for `ready`, at most `seconds`.
#[track_caller]
pub fn wait_for<T>(what: &str, seconds: u64, mut ready: impl FnMut() -> Option<T>) -> T {
    let by = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < by, "{what}: not within {seconds} s");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What two runs of one job must have in common: every bit, every step's row.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    pub weights: String,
    pub state: String,
    pub validation: String,
    pub rows: String,
}

impl Proof {
    /// From a finished run's directory.
    pub fn of(run_dir: &Path, result: &Value) -> Proof {
        let rows = std::fs::read_to_string(run_dir.join("events.jsonl")).expect("the run has an event log");
        let steps: Vec<u64> = rows
            .lines()
            .map(|line| {
                serde_json::from_str::<Value>(line).expect("a row is JSON")["step"]
                    .as_u64()
                    .expect("a row has its step")
            })
            .collect();
        let total = result["steps"].as_u64().expect("the result has its steps");
        assert_eq!(steps, (1..=total).collect::<Vec<_>>(), "exactly one row for each step");
        let out = run(Command::new(elastic()).args(["checkpoint", "inspect", "--json"]).arg(run_dir));
        let newest: Value = serde_json::from_str(&out).expect("inspect prints JSON");
        let text =
            |value: &Value| value.as_str().unwrap_or_else(|| panic!("{value} is no text in {newest}")).to_string();
        assert_eq!(
            newest["weights_sha256"], result["weights_sha256"],
            "the checkpoint holds the weights that were told"
        );
        Proof {
            weights: text(&newest["weights_sha256"]),
            state: text(&newest["state_sha256"]),
            validation: result["validation"].to_string(),
            rows,
        }
    }
}

#[track_caller]
pub fn assert_same(a: &Proof, b: &Proof) {
    assert_eq!((&a.weights, &a.state, &a.validation), (&b.weights, &b.state, &b.validation));
    let differ = a.rows.lines().zip(b.rows.lines()).find(|(x, y)| x != y);
    assert!(a.rows == b.rows, "the event logs differ: {differ:?}");
}

/// Runs a command to its end and gives what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let out = command.stdin(Stdio::null()).output().expect("the program starts");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{command:?} ended with {}: {said}", out.status);
    String::from_utf8(out.stdout).expect("it prints text")
}

/// Trains in the foreground with an embedded cluster; gives the last line's JSON and the proof.
#[track_caller]
pub fn submit_local(dir: &Path, job: &Path, args: &[&str], env: &[(&str, String)]) -> (Value, Proof) {
    let mut command = Command::new(elastic());
    command.arg("submit").arg(job).args(["--local", "--json", "--runs"]).arg(dir.join("runs")).args(args);
    command.envs(env.iter().map(|(k, v)| (k, v))).current_dir(dir);
    let out = run(&mut command);
    let result: Value = serde_json::from_str(out.lines().last().expect("a last line")).expect("the last line is JSON");
    assert_eq!(result["state"], "succeeded", "{result}");
    let run_dir = PathBuf::from(result["run_dir"].as_str().expect("run_dir"));
    let proof = Proof::of(&run_dir, &result);
    (result, proof)
}

/// Processes whose parent is `parent`.
pub fn children(parent: u32) -> Vec<u32> {
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = all.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name may hold anything; the fields behind its closing bracket are fixed.
        let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let state = fields.next();
        state.is_some_and(|s| s != "Z") && fields.next().and_then(|p| p.parse().ok()) == Some(parent)
    };
    pids.filter(is_child).collect()
}

pub fn signal(pid: u32, name: &str) {
    // The process may have ended by itself: that is for the test to see elsewhere.
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).stderr(Stdio::null()).status();
}

pub fn is_alive(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// A process that dies with the test.
pub struct Guarded(pub Child);

impl Guarded {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        signal(self.pid(), "CONT");
        self.kill();
    }
}

pub struct Agent {
    pub process: Guarded,
}

impl Agent {
    pub fn workers(&self) -> Vec<u32> {
        children(self.process.pid())
    }
}

pub struct Cluster {
    pub dir: PathBuf,
    /// The coordinator's `--runs`.
    pub runs: PathBuf,
    pub store: String,
    pub port: u16,
    /// The coordinator's page.
    pub http: u16,
    pub coordinator: Option<Guarded>,
    pub agents: BTreeMap<String, Agent>,
    _home: tempfile::TempDir,
}

impl Cluster {
    /// A coordinator on `store` (None: the embedded one) and `agents` agents with one slot each.
    pub fn start(store: Option<String>, agents: usize) -> Cluster {
        let home = tempfile::tempdir().expect("a temporary directory");
        let runs = home.path().join("runs");
        Cluster::start_with_runs(home, &runs, store, agents)
    }

    /// Each agent, and so each worker, has a run directory of its own: the path leads through its working directory.
    pub fn start_with_runs_apart(agents: usize) -> Cluster {
        let home = tempfile::tempdir().expect("a temporary directory");
        Cluster::start_with_runs(home, Path::new("/proc/self/cwd/runs"), None, agents)
    }

    fn start_with_runs(home: tempfile::TempDir, runs: &Path, store: Option<String>, agents: usize) -> Cluster {
        let dir = home.path().to_path_buf();
        let runs = runs.to_path_buf();
        let store = store.unwrap_or(format!("redb:{}/records.redb", dir.display()));
        let mut cluster = Cluster {
            dir,
            runs,
            store,
            port: free_port(),
            http: free_port(),
            coordinator: None,
            agents: BTreeMap::new(),
            _home: home,
        };
        cluster.start_coordinator();
        (0..agents).for_each(|i| cluster.start_agent(&format!("n{i}"), &[]));
        cluster
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn start_coordinator(&mut self) {
        let mut command = self.logged("coordinator");
        command.args([
            "coordinator",
            "--allow-commands",
            "--listen",
            &format!("127.0.0.1:{}", self.port),
            "--store",
            &self.store,
            "--http",
            &format!("127.0.0.1:{}", self.http),
        ]);
        command.arg("--data-dir").arg(self.dir.join("data")).arg("--runs").arg(&self.runs);
        self.coordinator = Some(Guarded(command.spawn().expect("the coordinator starts")));
        let url = self.url();
        wait_for("the coordinator answers", 20, || {
            let out =
                Command::new(elastic()).args(["jobs", "--json", "--coordinator", &url]).stderr(Stdio::null()).output();
            out.ok().filter(|o| o.status.success())
        });
    }

    pub fn kill_coordinator(&mut self) {
        self.coordinator = None;
    }

    /// An agent whose workers keep [`PACE`], besides what `env` wants of them.
    pub fn start_agent(&mut self, name: &str, env: &[(&str, String)]) {
        self.start_agent_with(name, env, &[]);
    }

    pub fn start_agent_with(&mut self, name: &str, env: &[(&str, String)], args: &[&str]) {
        let dir = self.dir.join("nodes").join(name);
        std::fs::create_dir_all(&dir).expect("the agent's directory");
        let points = env.iter().filter(|(key, _)| *key == "ELASTIC_FAIL").map(|(_, points)| points.as_str());
        let points: Vec<&str> = [PACE].into_iter().chain(points).collect();
        let mut command = self.logged(name);
        command
            .args(["agent", "--allow-programs", "--coordinator", &self.url(), "--name", name, "--state-dir"])
            .arg(&dir)
            .args(args);
        command.envs(env.iter().map(|(k, v)| (k, v))).env("ELASTIC_FAIL", points.join(",")).current_dir(&dir);
        let process = Guarded(command.spawn().expect("the agent starts"));
        self.agents.insert(name.to_string(), Agent { process });
    }

    /// The product's binary with its output in a file of the cluster's directory.
    pub fn logged(&self, name: &str) -> Command {
        let open = |kind: &str| {
            let path = self.dir.join(format!("{name}.{kind}"));
            std::fs::File::options().append(true).create(true).open(path).expect("a log file")
        };
        let mut command = Command::new(elastic());
        command.stdin(Stdio::null()).stdout(open("out")).stderr(open("err"));
        command
    }

    pub fn workers(&self) -> Vec<u32> {
        self.agents.values().flat_map(|a| a.workers()).collect()
    }

    /// Submits and returns at once with the job's id.
    pub fn submit(&self, job: &Path, args: &[&str]) -> String {
        let mut command = Command::new(elastic());
        command.arg("submit").arg(job).args(["--coordinator", &self.url(), "--detach", "--json"]).args(args);
        let out = run(&mut command);
        let said: Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
        said["job"].as_str().expect("the job's id").to_string()
    }

    /// None while the coordinator does not answer.
    pub fn status(&self, job: &str) -> Option<Value> {
        let out =
            Command::new(elastic()).args(["status", job, "--json", "--coordinator", &self.url()]).output().ok()?;
        serde_json::from_slice(&out.stdout).ok().filter(|_| out.status.success())
    }

    pub fn step(&self, job: &str) -> u64 {
        self.status(job).and_then(|s| s["step"].as_u64()).unwrap_or(0)
    }

    /// Waits until `count` members are active.
    #[track_caller]
    pub fn until_active(&self, job: &str, count: usize) -> Value {
        wait_for(&format!("{count} active members"), 30, || {
            let status = self.status(job)?;
            let is_active = |m: &&Value| m["role"] == "active";
            let active = status["members"].as_array()?.iter().filter(is_active).count();
            (active == count || status["state"] != "running" && status["state"] != "pending").then_some(status)
        })
    }

    #[track_caller]
    pub fn until_step(&self, job: &str, step: u64) {
        wait_for(&format!("step {step}"), 60, || {
            let status = self.status(job)?;
            assert!(status["state"] != "succeeded", "the job was over before step {step} was seen: it is too short");
            (status["step"].as_u64()? >= step).then_some(())
        });
    }

    /// Waits for the end, as long as the job gets on: a slow machine may take its time.
    #[track_caller]
    fn until_over(&self, job: &str) -> Value {
        let mut seen = 0;
        loop {
            let next = wait_for(&format!("the job's end, or a step after {seen}"), 60, || {
                let status = self.status(job)?;
                let is_over = ["succeeded", "failed", "cancelled"].contains(&status["state"].as_str()?);
                (is_over || status["step"].as_u64()? > seen).then_some((is_over, status))
            });
            match next {
                (true, status) => return status,
                (false, status) => seen = status["step"].as_u64().unwrap_or(seen),
            }
        }
    }

    /// Waits for the end; gives the last status and the proof.
    #[track_caller]
    pub fn until_done(&self, job: &str) -> (Value, Proof) {
        let status = self.until_succeeded(job);
        let proof = Proof::of(Path::new(status["run_dir"].as_str().expect("run_dir")), &Cluster::result(&status));
        (status, proof)
    }

    /// Of a succeeded job's status, what [`Proof::of`] compares the directory with.
    pub fn result(status: &Value) -> Value {
        let validation = &status["metrics"]["validation"];
        serde_json::json!({
            "steps": status["steps"],
            "weights_sha256": status["published"]["weights_sha256"],
            "validation": { "loss": validation["loss"], "accuracy": validation["accuracy"] },
        })
    }

    #[track_caller]
    pub fn until_succeeded(&self, job: &str) -> Value {
        let status = self.until_over(job);
        assert_eq!(status["state"], "succeeded", "{status:#}");
        status
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for entry in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|e| e == "err" || e == "out") {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(40).collect();
                    eprintln!("--- {}", path.display());
                    tail.iter().rev().for_each(|line| eprintln!("{line}"));
                }
            }
        }
        let workers = self.workers();
        for worker in workers {
            signal(worker, "CONT");
            signal(worker, "KILL");
        }
    }
}
