//! Four scripts that were written for `torchrun`, unchanged, and six things that happen to them: six pairs always, all 24
//! under `ELASTIC_FULL`, for each start of PyTorch takes seconds.

use crate::cluster::{Cluster, Guarded, children, elastic, is_alive, repo, run, signal, wait_for};
use elastic_tests::skip::skip;
use serde_json::Value;
use std::process::{Command, Stdio};

/// A Python with PyTorch, or why there is none.
pub fn python() -> Result<String, String> {
    let out =
        Command::new(repo().join("bench/torch-python")).output().map_err(|e| format!("bench/torch-python: {e}"))?;
    match out.status.success() {
        true => Ok(String::from_utf8_lossy(&out.stdout).trim().to_string()),
        false => Err(String::from_utf8_lossy(&out.stderr).lines().last().unwrap_or("no PyTorch").to_string()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    KillProcess,
    KillAgent,
    KillNodeOfRank0,
    AddNode,
    Drain,
    Terminate,
}

const FAULTS: [(Fault, &str); 6] = [
    (Fault::KillProcess, "kill a process"),
    (Fault::KillAgent, "kill an agent"),
    (Fault::KillNodeOfRank0, "kill rank 0's node"),
    (Fault::AddNode, "add a node"),
    (Fault::Drain, "drain a node"),
    (Fault::Terminate, "SIGTERM to `elastic run`"),
];

/// A script, with arguments by which it lasts for some seconds behind its start, and how it ends when it is left alone.
struct Script {
    file: &'static str,
    args: &'static [&'static str],
    /// It says this when it is under way, which is when a fault strikes.
    under_way: &'static str,
    code: i32,
    last_words: &'static str,
}

const SCRIPTS: [Script; 4] = [
    Script { file: "minimal.py", args: &["120", "0.1"], under_way: "step 10 of", code: 0, last_words: "done on" },
    Script { file: "loader.py", args: &["12", "0.1"], under_way: "epoch 0:", code: 0, last_words: "epoch 11:" },
    Script {
        file: "resume.py",
        args: &["checkpoint.pt", "120", "0.1"],
        under_way: "step 10 of",
        code: 0,
        last_words: "done at step 120",
    },
    // Its rank 1, where there is one, fails at step 60 of 100 in every generation: long after the fault, with its own code.
    Script {
        file: "record.py",
        args: &["7", "60", "0.1"],
        under_way: "step 10 of",
        code: 7,
        last_words: "step 90 of 100 on 1 processes",
    },
];

struct Running<'a> {
    script: &'a Script,
    folder: tempfile::TempDir,
    cluster: Cluster,
    command: Guarded,
}

impl<'a> Running<'a> {
    /// On two nodes of a cluster.
    fn start(script: &'a Script, python: &str) -> Running<'a> {
        let cluster = Cluster::start(None, 2);
        let flags = ["--coordinator", &cluster.url(), "--nnodes", "1:3", "--max-restarts", "2"].map(str::to_string);
        Running::with(script, python, cluster, &flags)
    }

    /// Two processes on this machine, whose launcher is the one that is asked to end.
    fn alone(script: &'a Script, python: &str) -> Running<'a> {
        let flags = ["--standalone", "--nproc-per-node", "2"].map(str::to_string);
        Running::with(script, python, Cluster::start(None, 0), &flags)
    }

    fn with(script: &'a Script, python: &str, cluster: Cluster, flags: &[String]) -> Running<'a> {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(elastic());
        command.args(["run", "--json"]).args(flags).arg(repo().join("examples/torch").join(script.file));
        command.args(script.args).env("PYTHON_EXEC", python).env_remove("ELASTIC_COORDINATOR");
        command.current_dir(folder.path()).stdin(Stdio::null());
        let file = |name: &str| std::fs::File::create(folder.path().join(name)).expect("a file");
        let command = Guarded(command.stdout(file("out")).stderr(file("err")).spawn().expect("it starts"));
        Running { script, folder, cluster, command }
    }

    fn said(&self) -> String {
        let text = |name: &str| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default();
        text("out") + &text("err")
    }

    /// The last line that is JSON.
    fn result(&self) -> Value {
        let said = self.said();
        let lines = said.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.into_iter().find(|value| value["generations"].is_u64()).unwrap_or_else(|| panic!("no result: {said}"))
    }

    /// The processes of a node that run the script.
    fn processes(&self, node: &str) -> Vec<u32> {
        self.cluster.agents[node].workers().into_iter().flat_map(children).collect()
    }

    fn all_processes(&self) -> Vec<u32> {
        match self.cluster.agents.is_empty() {
            true => children(self.command.pid()).into_iter().flat_map(children).collect(),
            false => self.cluster.agents.keys().flat_map(|node| self.processes(node)).collect(),
        }
    }

    /// Both processes are there, and what they do has begun.
    fn until_under_way(&self) {
        wait_for("two processes", 60, || (self.all_processes().len() == 2).then_some(()));
        let words = self.script.under_way;
        wait_for(words, 120, || self.said().contains(words).then_some(()));
    }

    fn node_of_rank_0(&self) -> String {
        let is_first = |pid: &u32| {
            let env = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            env.split(|byte| *byte == 0).any(|one| one == b"RANK=0")
        };
        let mut nodes = self.cluster.agents.keys();
        nodes.find(|node| self.processes(node).iter().any(is_first)).expect("rank 0 runs somewhere").clone()
    }

    fn other_node(&self) -> String {
        let first = self.node_of_rank_0();
        self.cluster.agents.keys().find(|node| **node != first).expect("there are two").clone()
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::KillProcess => signal(self.processes(&self.other_node())[0], "KILL"),
            Fault::KillAgent => {
                let node = self.other_node();
                self.cluster.agents.remove(&node).expect("it runs").process.kill();
            }
            Fault::KillNodeOfRank0 => {
                let node = self.node_of_rank_0();
                let here = self.processes(&node);
                let agent = self.cluster.agents.remove(&node).expect("it runs");
                let workers = agent.workers();
                signal(agent.process.pid(), "KILL");
                workers.iter().chain(&here).for_each(|pid| signal(*pid, "KILL"));
            }
            Fault::AddNode => self.cluster.start_agent("n2", &[]),
            Fault::Drain => {
                let node = self.other_node();
                run(Command::new(elastic()).args(["drain", &node, "--coordinator", &self.cluster.url()]));
            }
            Fault::Terminate => signal(self.command.pid(), "TERM"),
        }
    }

    fn code(&mut self) -> i32 {
        let status = wait_for("the end", 180, || self.command.0.try_wait().expect("its state"));
        status.code().unwrap_or_else(|| panic!("{status}"))
    }
}

/// How it went on, in words for the table; what must be so is checked.
fn check(script: &Script, fault: Fault, python: &str) -> String {
    let name = format!("{}, {fault:?}", script.file);
    let mut running = match fault {
        Fault::Terminate => Running::alone(script, python),
        _ => Running::start(script, python),
    };
    running.until_under_way();
    let old = running.all_processes();
    assert!(running.command.0.try_wait().expect("its state").is_none(), "{name}: it was over before the fault");
    running.strike(fault);
    let code = running.code();
    for pid in old {
        wait_for("the end of the old processes", 30, || (!is_alive(pid)).then_some(()));
    }
    let said = running.said();
    if fault == Fault::Terminate {
        assert_eq!(code, 143, "{name}: {said}");
        return "ends with 143, no process left".into();
    }
    // What fails at rank 1 does not where one process is left.
    let is_alone = matches!(fault, Fault::KillAgent | Fault::KillNodeOfRank0 | Fault::Drain);
    let expected = if is_alone { 0 } else { script.code };
    assert_eq!(code, expected, "{name}: {said}");
    let result = running.result();
    assert!(result["generations"].as_u64() >= Some(2), "{name}: {result}");
    let failures = if fault == Fault::KillProcess { 1 } else { 0 };
    if expected == 0 {
        assert_eq!(result["restarts"], failures, "{name}: losing a node costs no restart: {result}");
        assert!(said.contains(script.last_words), "{name}: {said}");
    } else {
        assert!(result["reason"].as_str().is_some_and(|r| r.contains("rank 1 exited with code 7")), "{name}: {result}");
    }
    let begins = said.lines().filter_map(|line| line.split_once("begins at step ")).next_back();
    match begins.and_then(|(_, rest)| rest.split(' ').next()) {
        Some(step) => {
            assert_ne!(step, "0", "{name}: it did not go on from its checkpoint: {said}");
            format!("goes on from step {step}, ends with 0")
        }
        None => format!("begins anew, ends with {code}"),
    }
}

/// What a test of several says when it cannot be run.
fn python_or_skip(test: &str) -> Option<String> {
    python().map_err(|why| skip(test, &why)).ok()
}

/// Each fault and each script once.
#[test]
fn unchanged_pytorch_scripts_go_on_or_end_with_the_right_code_through_each_fault() {
    let test = "unchanged_pytorch_scripts_go_on_or_end_with_the_right_code_through_each_fault";
    let Some(python) = python_or_skip(test) else { return };
    for ((fault, words), script) in FAULTS.into_iter().zip(SCRIPTS.iter().cycle()) {
        println!("{}, {words}: {}", script.file, check(script, fault, &python));
    }
}

#[test]
fn four_unchanged_pytorch_scripts_go_on_or_end_with_the_right_code_through_six_faults() {
    let test = "four_unchanged_pytorch_scripts_go_on_or_end_with_the_right_code_through_six_faults";
    if std::env::var_os("ELASTIC_FULL").is_none() {
        return skip(test, "24 trainings with PyTorch: only with ELASTIC_FULL=1; six of them are a test of their own");
    }
    let Some(python) = python_or_skip(test) else { return };
    let mut table = String::from("| | minimal.py | loader.py | resume.py | record.py |\n|---|---|---|---|---|\n");
    for (fault, words) in FAULTS {
        let row: Vec<String> = SCRIPTS.iter().map(|script| check(script, fault, &python)).collect();
        table += &format!("| {words} | {} |\n", row.join(" | "));
    }
    println!("{table}");
}
