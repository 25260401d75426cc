//! Commands: processes that know nothing of elastic, started, joined by others, killed, drained and cleared away.

use crate::cluster::{Cluster, Guarded, children, elastic, is_alive, repo, run, signal, wait_for};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Writes down what it was told at each start, then does what files tell it to.
const SCRIPT: &str = r#"
import json, os, pathlib, signal, subprocess, sys, time
out = pathlib.Path(sys.argv[1])
told = {k: v for k, v in os.environ.items()}
kin = []
if "kin" in sys.argv:
    # One that ignores SIGTERM, and one that left its session and its parent.
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    kin.append(subprocess.Popen([sys.executable, "-c", stubborn]).pid)
    away = "import os, time; pid = os.fork(); print(pid, flush=True) if pid else (os.close(1), time.sleep(600))"
    told_pid = subprocess.run([sys.executable, "-c", away], start_new_session=True, stdout=subprocess.PIPE, text=True)
    kin.append(int(told_pid.stdout))
def ended(number, frame):
    with open(out / "terminated", "a") as file:
        file.write(f"{told['ELASTIC_GENERATION']} {told['RANK']}\n")
    print("rank", told["RANK"], "saves", flush=True)
    sys.exit(3)
signal.signal(signal.SIGTERM, ended)
with open(out / "starts", "a") as file:
    file.write(json.dumps({"env": told, "pid": os.getpid(), "kin": kin, "args": sys.argv[2:]}) + "\n")
print("rank", told["RANK"], "of", told["WORLD_SIZE"], "in generation", told["ELASTIC_GENERATION"], flush=True)
while not (out / "done").exists():
    fail = out / ("fail." + told["RANK"])
    if fail.exists():
        code = int(fail.read_text())
        fail.unlink()
        with open(told["TORCHELASTIC_ERROR_FILE"], "w") as file:
            json.dump({"message": {"message": "ValueError: as asked", "extraInfo": {"timestamp": "1"}}}, file)
        os._exit(code)
    time.sleep(0.02)
"#;

/// Where the script is, and what it writes.
pub struct Folder {
    dir: tempfile::TempDir,
}

/// One process as it was told what it is.
#[derive(Clone, Debug)]
pub struct Start {
    pub env: BTreeMap<String, String>,
    pub pid: u32,
    kin: Vec<u32>,
    pub args: Vec<String>,
}

impl Start {
    fn number(&self, name: &str) -> u64 {
        self.env[name].parse().unwrap_or_else(|_| panic!("{name}={}", self.env[name]))
    }

    fn generation(&self) -> u64 {
        self.number("ELASTIC_GENERATION")
    }
}

impl Folder {
    pub fn new() -> Folder {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::write(dir.path().join("work.py"), SCRIPT).expect("the script is written");
        Folder { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn tell(&self, file: &str, text: &str) {
        // Whole at once: the script must not read half of it.
        let new = self.path().join("new");
        std::fs::write(&new, text).and_then(|()| std::fs::rename(new, self.path().join(file))).expect("a file");
    }

    fn text(&self, file: &str) -> String {
        std::fs::read_to_string(self.path().join(file)).unwrap_or_default()
    }

    fn starts(&self) -> Vec<Start> {
        let start = |line: &str| {
            let line: Value = serde_json::from_str(line).ok()?;
            Some(Start {
                env: serde_json::from_value(line["env"].clone()).ok()?,
                pid: line["pid"].as_u64()? as u32,
                kin: serde_json::from_value(line["kin"].clone()).ok()?,
                args: serde_json::from_value(line["args"].clone()).ok()?,
            })
        };
        self.text("starts").lines().filter_map(start).collect()
    }

    /// All processes of the first generation from `from` on that has `world` of them.
    #[track_caller]
    pub fn generation(&self, from: u64, world: usize) -> Vec<Start> {
        wait_for(&format!("a generation of {world} from {from} on"), 30, || {
            let starts = self.starts();
            let numbers: BTreeSet<u64> = starts.iter().map(Start::generation).filter(|g| *g >= from).collect();
            numbers.into_iter().find_map(|g| {
                let mut those: Vec<Start> = starts.iter().filter(|s| s.generation() == g).cloned().collect();
                those.sort_by_key(|s| s.number("RANK"));
                let is_whole = those.len() == world && those.iter().all(|s| s.number("WORLD_SIZE") == world as u64);
                is_whole.then_some(those)
            })
        })
    }

    pub fn command(&self, cluster: Option<&Cluster>, args: &[&str], rest: &[&str]) -> Command {
        let mut command = Command::new(elastic());
        command.arg("run").args(args);
        match cluster {
            Some(cluster) => command.args(["--coordinator", &cluster.url()]),
            None => command.arg("--standalone"),
        };
        command.arg("work.py").arg(self.path()).args(rest).current_dir(self.path());
        command.env_remove("ELASTIC_COORDINATOR").stdin(Stdio::null());
        command
    }

    /// Submits to the cluster and gives the job's id.
    fn submit(&self, cluster: &Cluster, args: &[&str], rest: &[&str]) -> String {
        let args = [args, &["--detach"]].concat();
        run(&mut self.command(Some(cluster), &args, rest)).trim().to_string()
    }
}

#[track_caller]
pub fn until_gone(pids: impl IntoIterator<Item = u32>) {
    for pid in pids {
        wait_for(&format!("the end of process {pid}"), 15, || (!is_alive(pid)).then_some(()));
    }
}

pub fn pids(starts: &[Start]) -> Vec<u32> {
    starts.iter().flat_map(|s| s.kin.iter().copied().chain([s.pid])).collect()
}

#[test]
fn processes_are_told_what_torchrun_tells_them() {
    let folder = Folder::new();
    folder.tell("done", "");
    let arguments = ["$$HOME ${rank}", "", "--nnodes"];
    let args = ["--nproc_per_node", "2", "--max-restarts", "4", "--env", "COLOUR=green", "--name", "told"];
    run(&mut folder.command(None, &args, &arguments));
    let starts = folder.generation(1, 2);
    for (local, start) in starts.iter().enumerate() {
        let local = local.to_string();
        let expected = [
            ("RANK", local.as_str()),
            ("WORLD_SIZE", "2"),
            ("LOCAL_RANK", &local),
            ("LOCAL_WORLD_SIZE", "2"),
            ("GROUP_RANK", "0"),
            ("GROUP_WORLD_SIZE", "1"),
            ("ROLE_RANK", &local),
            ("ROLE_WORLD_SIZE", "2"),
            ("ROLE_NAME", "default"),
            ("MASTER_ADDR", "127.0.0.1"),
            ("TORCHELASTIC_RESTART_COUNT", "0"),
            ("TORCHELASTIC_MAX_RESTARTS", "4"),
            ("TORCHELASTIC_USE_AGENT_STORE", "False"),
            ("OMP_NUM_THREADS", "1"),
            ("ELASTIC_GENERATION", "1"),
            ("COLOUR", "green"),
        ];
        for (name, value) in expected {
            assert_eq!(start.env.get(name).map(String::as_str), Some(value), "{name}");
        }
        assert!(start.env["TORCHELASTIC_RUN_ID"].starts_with("told-"));
        assert!(start.env["TORCHELASTIC_ERROR_FILE"].ends_with("error.json"));
        assert_eq!(start.env["MASTER_PORT"], starts[0].env["MASTER_PORT"]);
        assert!(!start.env.contains_key("ELASTIC_WORKER_TOKEN"), "what only the worker may know stays with it");
        assert_eq!(start.args, arguments);
    }
}

#[test]
fn the_code_of_the_first_failure_is_the_code_of_the_command() {
    let ended = |words: &[&str]| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(elastic());
        command.args(["run", "--standalone", "--"]).args(words).current_dir(dir.path()).stdin(Stdio::null());
        command.output().expect("it starts").status.code()
    };
    assert_eq!(ended(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(ended(&["sh", "-c", "kill -9 $$"]), Some(128 + 9));
    assert_eq!(ended(&["true"]), Some(0));
    assert_eq!(ended(&["no-such-program"]), Some(127));
}

#[test]
fn sigterm_reaches_the_processes_and_ends_the_command_with_143() {
    let folder = Folder::new();
    let mut command = folder.command(None, &["--nproc-per-node", "2"], &["kin"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let starts = folder.generation(1, 2);
    signal(child.id(), "TERM");
    let out = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&out.stdout);
    assert_eq!((out.status.code(), out.status.signal()), (Some(143), None), "{said}");
    assert!(said.contains("rank 0 saves") && said.contains("rank 1 saves"), "{said}");
    until_gone(pids(&starts));
}

#[test]
fn what_a_killed_command_had_started_ends_with_it() {
    let folder = Folder::new();
    let mut command = folder.command(None, &["--nproc-per-node", "2"], &["kin"]);
    let mut child = Guarded(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts"));
    let starts = folder.generation(1, 2);
    child.kill();
    until_gone(pids(&starts));
}

#[test]
fn nodes_that_join_make_a_new_generation_that_meets_elsewhere_and_the_logs_of_the_old_one_stay() {
    let folder = Folder::new();
    let mut cluster = Cluster::start(None, 1);
    let job = folder.submit(&cluster, &["--nnodes", "1:3", "--nproc-per-node", "2"], &["kin"]);
    let first = folder.generation(1, 2);
    cluster.start_agent("n1", &[]);
    cluster.start_agent("n2", &[]);
    let second = folder.generation(2, 6);
    until_gone(pids(&first));
    let ranks: Vec<u64> = second.iter().map(|s| s.number("RANK")).collect();
    assert_eq!(ranks, [0, 1, 2, 3, 4, 5]);
    let ports: BTreeSet<u64> = second.iter().map(|s| s.number("MASTER_PORT")).collect();
    assert_eq!(ports.len(), 1, "all of a generation meet at one place");
    assert!(!ports.contains(&first[0].number("MASTER_PORT")), "and no two generations at the same");
    folder.tell("done", "");
    let status = cluster.until_succeeded(&job);
    assert_eq!((&status["restarts"], &status["exit_code"]), (&0.into(), &0.into()), "{status:#}");
    let logs = |gen_: u64| {
        let mut command = Command::new(elastic());
        run(command.args(["logs", &job, "--coordinator", &cluster.url(), "--gen", &gen_.to_string()]))
    };
    assert!(logs(1).contains("rank 1 of 2 in generation 1") && logs(1).contains("rank 0 saves"), "{}", logs(1));
    assert!(!logs(1).contains("of 6"), "{}", logs(1));
    let last = second[0].generation();
    assert!(logs(last).contains(&format!("rank 5 of 6 in generation {last}")), "{}", logs(last));
}

#[test]
fn a_process_killed_on_one_node_begins_all_of_them_anew_and_the_last_failure_names_itself() {
    let folder = Folder::new();
    let cluster = Cluster::start(None, 2);
    let args = ["--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "1", "--json"];
    let mut command = folder.command(Some(&cluster), &args, &[]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
    let first = folder.generation(1, 4);
    signal(first[3].pid, "KILL");
    let second = folder.generation(2, 4);
    until_gone(pids(&first));
    assert!(second.iter().all(|s| s.number("TORCHELASTIC_RESTART_COUNT") == 1), "all of them are told the same");
    folder.tell("fail.2", "7");
    let out = child.wait_with_output().expect("it ends");
    let (said, printed) = (String::from_utf8_lossy(&out.stderr), String::from_utf8_lossy(&out.stdout));
    assert_eq!(out.status.code(), Some(7), "{said}");
    let result: Value = serde_json::from_str(printed.lines().last().expect("a line")).expect("JSON");
    let reason = result["reason"].as_str().expect("a reason");
    assert!(reason.starts_with("rank 2 exited with code 7: ValueError: as asked on n"), "{reason}");
    assert!(said.contains("rank 3 was killed by signal 9"), "the first failure was told, too: {said}");
    assert!(printed.contains("[rank 1] rank 1 of 4 in generation 2"), "{printed}");
    until_gone(pids(&second));
}

#[test]
fn losing_the_node_of_rank_0_is_survived_and_costs_no_restart() {
    let folder = Folder::new();
    let mut cluster = Cluster::start(None, 3);
    let job = folder.submit(&cluster, &["--nnodes", "1:3", "--nproc-per-node", "2"], &[]);
    let first = folder.generation(1, 6);
    let node = cluster
        .agents
        .iter()
        .find(|(_, agent)| agent.workers().iter().any(|worker| children(*worker).contains(&first[0].pid)));
    let (name, workers) = node.map(|(name, agent)| (name.clone(), agent.workers())).expect("rank 0 runs somewhere");
    let agent = cluster.agents.remove(&name).expect("it is there");
    signal(agent.process.pid(), "KILL");
    let here = workers.iter().flat_map(|worker| children(*worker)).collect::<Vec<_>>();
    workers.iter().chain(&here).for_each(|pid| signal(*pid, "KILL"));
    drop(agent);
    let second = folder.generation(2, 4);
    assert_ne!(first[0].number("MASTER_PORT"), second[0].number("MASTER_PORT"));
    folder.tell("done", "");
    let status = cluster.until_succeeded(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    assert_eq!(status["last_fault"]["node"], name.as_str(), "{status:#}");
}

#[test]
fn an_agent_or_a_worker_that_is_killed_takes_all_its_processes_with_it() {
    let folder = Folder::new();
    let mut cluster = Cluster::start(None, 2);
    let job = folder.submit(&cluster, &["--nnodes", "1:2", "--nproc-per-node", "2"], &["kin"]);
    let first = folder.generation(1, 4);
    signal(cluster.agents["n0"].workers()[0], "KILL");
    let second = folder.generation(2, 4);
    until_gone(pids(&first));
    cluster.agents.remove("n1").expect("n1 runs").process.kill();
    let third = folder.generation(second[0].generation() + 1, 2);
    until_gone(pids(&second));
    folder.tell("done", "");
    let status = cluster.until_succeeded(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    until_gone(pids(&third));
}

#[test]
fn a_drained_node_saves_and_leaves_scaling_works_and_cancel_ends_all() {
    let folder = Folder::new();
    let cluster = Cluster::start(None, 3);
    let job = folder.submit(&cluster, &["--nnodes", "1:2", "--nproc-per-node", "1"], &[]);
    let ask = |words: &[&str]| run(Command::new(elastic()).args(words).args(["--coordinator", &cluster.url()]));
    let first = folder.generation(1, 2);
    ask(&["scale", &job, "--max", "3"]);
    let second = folder.generation(2, 3);
    until_gone(pids(&first));
    ask(&["drain", "n1"]);
    let third = folder.generation(second[0].generation() + 1, 2);
    until_gone(pids(&second));
    let saved = folder.text("terminated");
    let second_generation = second[0].generation().to_string();
    assert_eq!(
        saved.lines().filter(|l| l.starts_with(&second_generation)).count(),
        3,
        "all were asked to end: {saved}"
    );
    let status = cluster.status(&job).expect("it is known");
    let members = status["members"].as_array().expect("members");
    let nodes: BTreeSet<&str> = members.iter().filter_map(|m| m["node"].as_str()).collect();
    assert_eq!((nodes, &status["restarts"]), (BTreeSet::from(["n0", "n2"]), &0.into()), "{status:#}");
    ask(&["cancel", &job]);
    until_gone(pids(&third));
    assert_eq!(cluster.status(&job).expect("it is known")["state"], "cancelled");
}

#[test]
fn an_unchanged_pytorch_script_goes_on_from_its_checkpoint_when_a_node_joins() {
    let python = match crate::torch::python() {
        Ok(python) => python,
        Err(why) => {
            let test = "an_unchanged_pytorch_script_goes_on_from_its_checkpoint_when_a_node_joins";
            return elastic_tests::skip::skip(test, &why);
        }
    };
    let folder = Folder::new();
    let mut cluster = Cluster::start(None, 1);
    let script = repo().join("examples/torch/resume.py");
    let mut command = Command::new(elastic());
    command.args(["run", "--coordinator", &cluster.url(), "--nnodes", "1:2"]).arg(script);
    command.args(["checkpoint.pt", "100000", "0.01"]).env("PYTHON_EXEC", python).current_dir(folder.path());
    let (out, err) = (folder.path().join("out"), folder.path().join("err"));
    let file = |path: &Path| std::fs::File::create(path).expect("a file");
    let _child = Guarded(command.stdout(file(&out)).stderr(file(&err)).spawn().expect("it starts"));
    wait_for("a checkpoint", 120, || folder.path().join("checkpoint.pt").exists().then_some(()));
    assert!(folder.text("out").contains("begins at step 0 on 1 processes"), "{}", folder.text("out"));
    cluster.start_agent("n1", &[]);
    let again = wait_for("the training on two nodes", 120, || {
        let text = folder.text("out");
        let line = text.lines().find(|line| line.ends_with("on 2 processes"))?;
        Some(line.to_string())
    });
    assert!(!again.contains("at step 0 "), "{again}");
}

#[test]
fn a_job_file_runs_a_command_and_its_output_is_kept_by_rank_where_it_says() {
    let folder = Folder::new();
    folder.tell("done", "");
    let job = format!(
        "name = \"filed\"\n[command]\nrun = [\"python3\", \"work.py\", {:?}]\nprocesses = 2\nlog_dir = \"kept\"\n",
        folder.path()
    );
    std::fs::write(folder.path().join("job.toml"), job).expect("the job file");
    let mut command = Command::new(elastic());
    command.args(["submit", "job.toml", "--local", "--json"]).current_dir(folder.path());
    let out = run(&mut command);
    let result: Value = serde_json::from_str(out.lines().last().expect("a line")).expect("JSON");
    assert_eq!(result["state"], "succeeded");
    let job: PathBuf = folder.path().join("kept").join(result["job"].as_str().expect("a job"));
    let kept = std::fs::read_to_string(job.join("generation_1/rank_1/stdout.log")).expect("it is kept");
    assert_eq!(kept, "rank 1 of 2 in generation 1\n");
}
