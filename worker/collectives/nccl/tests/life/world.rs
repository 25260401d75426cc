//! The parent of ranks: starts them, carries what they say to each other, kills them, hands out views.

use crate::job::{Job, view_line};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Far more than any run needs.
const LIMIT: Duration = Duration::from_secs(60);
/// A round takes ms.
const QUIET: Duration = Duration::from_millis(700);

#[derive(Clone, Debug, Default)]
pub struct Script {
    /// This worker is killed (-9) once any has done so many rounds.
    pub kill: Option<(u64, u64)>,
    /// The worker, and its environment.
    pub rule: Option<(u64, String)>,
    /// A view once any has done so many rounds, though nobody is lost.
    pub view_at: Option<u64>,
    /// A view whenever nobody has said anything for `QUIET`: what a coordinator does that sees no progress.
    pub is_watched: bool,
    /// Peers do not notice a death.
    pub is_silent: bool,
}

#[derive(Debug, Default)]
pub struct Outcome {
    /// By worker: the digest of all that it reduced.
    pub digests: BTreeMap<u64, String>,
    pub lost: Vec<String>,
    pub stuck: Vec<String>,
    pub aborted_ms_max: u64,
    pub views: u64,
}

struct Rank {
    child: Child,
    stdin: ChildStdin,
}

pub struct World {
    job: Job,
    script: Script,
    ranks: BTreeMap<u64, Rank>,
    lines: Receiver<(u64, Option<String>)>,
    outcome: Outcome,
    is_view_given: bool,
    _dir: TempDir,
}

impl World {
    /// Runs the job with so many ranks, to its end.
    pub fn run(job: &Job, world: u64, script: Script) -> Outcome {
        let dir = tempfile::tempdir().expect("the system has room for a folder");
        let (give, lines) = sync_channel(4096);
        let start = |id: u64| (id, start(id, job, &script, dir.path(), give.clone()));
        let ranks = (1..=world).map(start).collect();
        let outcome = Outcome::default();
        let mut world = World { job: job.clone(), script, ranks, lines, outcome, is_view_given: false, _dir: dir };
        world.give_view();
        world.carry();
        std::mem::take(&mut world.outcome)
    }

    fn give_view(&mut self) {
        self.outcome.views += 1;
        let ids: Vec<u64> = self.ranks.keys().copied().collect();
        let line = view_line(self.outcome.views, &ids, self.job.shards);
        ids.iter().for_each(|id| self.say(*id, &line));
    }

    fn say(&mut self, to: u64, line: &str) {
        if let Some(rank) = self.ranks.get_mut(&to) {
            // One that has just died hears nothing: its end is the next thing that it says.
            let _ = writeln!(rank.stdin, "{line}");
        }
    }

    fn say_to_others(&mut self, from: u64, line: &str) {
        let others: Vec<u64> = self.ranks.keys().copied().filter(|id| *id != from).collect();
        others.iter().for_each(|to| self.say(*to, line));
    }

    fn carry(&mut self) {
        let started = Instant::now();
        while !self.ranks.is_empty() {
            assert!(started.elapsed() < LIMIT, "the run hangs: {:?}", self.outcome);
            match self.lines.recv_timeout(QUIET) {
                Ok((from, line)) => self.hear(from, line),
                Err(_) if self.script.is_watched => self.give_view(),
                Err(_) => {}
            }
        }
    }

    fn hear(&mut self, from: u64, line: Option<String>) {
        let Some(line) = line else {
            self.bury(from);
            return;
        };
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        match word {
            "@at" => self.say_to_others(from, &format!("at {from} {rest}")),
            "@reduced" => self.say_to_others(from, &format!("reduced {rest}")),
            "@tell" => {
                let (to, bytes) = rest.split_once(' ').expect("a worker, then bytes");
                self.say(to.parse().expect("a worker"), &format!("invited {from} {bytes}"));
            }
            "@aborted" => self.outcome.aborted_ms_max = self.outcome.aborted_ms_max.max(rest.parse().expect("ms")),
            "@round" => self.round(rest.parse().expect("a round")),
            "@lost" => {
                let (gen_, said) = rest.split_once(' ').expect("a gen, then more");
                self.outcome.lost.push(said.to_string());
                if gen_.parse() == Ok(self.outcome.views) {
                    self.give_view();
                }
            }
            "@stuck" => self.outcome.stuck.push(rest.to_string()),
            "@done" => {
                let (digest, counts) = rest.split_once(' ').expect("a digest, then counts");
                assert_eq!(counts.trim_end(), "0 0", "worker {from} kept NCCL's rules, and ended its communicators");
                self.outcome.digests.insert(from, digest.to_string());
            }
            other => panic!("worker {from} said {other} {rest}"),
        }
    }

    fn round(&mut self, round: u64) {
        if self.script.kill.is_some_and(|(_, at)| at == round) {
            let (victim, _) = self.script.kill.take().expect("it is there");
            self.ranks.get_mut(&victim).expect("it lives").child.kill().expect("it can be killed");
        }
        if self.script.view_at == Some(round) && !self.is_view_given {
            self.is_view_given = true;
            self.give_view();
        }
    }

    /// A rank's output has ended. One that was not done is lost, and the others hear of it by a view.
    fn bury(&mut self, id: u64) {
        let mut rank = self.ranks.remove(&id).expect("it ends once");
        rank.child.wait().expect("it has ended");
        if !self.outcome.digests.contains_key(&id) && !self.ranks.is_empty() {
            self.give_view();
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for rank in self.ranks.values_mut() {
            let _ = rank.child.kill();
            let _ = rank.child.wait();
        }
    }
}

fn start(id: u64, job: &Job, script: &Script, dir: &std::path::Path, give: SyncSender<(u64, Option<String>)>) -> Rank {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command.args(["--exact", "a_rank_process", "--nocapture"]).env("NCCL_TEST_RANK", id.to_string());
    command.env("NCCL_TEST_JOB", job.to_text()).env("FAKE_NCCL_DIR", dir);
    if script.is_silent {
        command.env("FAKE_NCCL_SILENT", "1");
    }
    if let Some((_, rule)) = script.rule.as_ref().filter(|(worker, _)| *worker == id) {
        command.env("FAKE_NCCL_RULE", rule);
    }
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program can be started again");
    let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // The test runner's own words have no `@`, and may stand before one.
            let said = line.find('@').map(|at| line[at..].to_string());
            if said.is_some() && give.send((id, said)).is_err() {
                return;
            }
        }
        let _ = give.send((id, None));
    });
    Rank { child, stdin }
}
