//! The ranks of the self-test as the parent sees them: processes that are told lines, answer with lines, and can be killed.

use crate::environment::{Ranks, of_worker_on_shared_gpu};
use elastic_spec::WorkerId;
use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines of all ranks that may wait here.
const LINES_MAX: usize = 1024;

/// What a rank says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Done {
        ms: u64,
        words: String,
    },
    Failed {
        ms: u64,
        kind: String,
        words: String,
    },
    /// It has begun a reduction.
    Began,
    /// Its other thread has aborted.
    Aborted {
        ms: u64,
    },
    /// Its process has ended.
    Gone,
}

struct Process {
    number: u64,
    child: Child,
    stdin: ChildStdin,
    answers: VecDeque<Answer>,
}

pub struct World {
    program: PathBuf,
    floats: usize,
    /// By rank.
    processes: Vec<Process>,
    started: u64,
    give: SyncSender<(u64, Answer)>,
    take: Receiver<(u64, Answer)>,
}

impl World {
    pub fn new(program: PathBuf, floats: usize) -> World {
        let (give, take) = sync_channel(LINES_MAX);
        World { program, floats, processes: Vec::new(), started: 0, give, take }
    }

    pub fn size(&self) -> usize {
        self.processes.len()
    }

    /// Starts a process for the next rank: a worker of its own to NCCL, whatever rank was there before.
    pub fn start(&mut self) -> io::Result<()> {
        self.started += 1;
        let number = self.started;
        let mut command = Command::new(&self.program);
        command.args(["rank", &self.floats.to_string()]);
        command.envs(of_worker_on_shared_gpu(WorkerId(number), Ranks::OneMachine));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (stdin, stdout) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let give = self.give.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Some(answer) = answer(&line) else {
                    // NCCL's own words go to the same place (NCCL_DEBUG).
                    let _ = writeln!(io::stderr(), "{line}");
                    continue;
                };
                if give.send((number, answer)).is_err() {
                    return;
                }
            }
            let _ = give.send((number, Answer::Gone));
        });
        self.processes.push(Process { number, child, stdin, answers: VecDeque::new() });
        Ok(())
    }

    /// One that has ended hears nothing: that is the next thing it says.
    pub fn tell(&mut self, rank: usize, line: &str) {
        let stdin = &mut self.processes[rank].stdin;
        let _ = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
    }

    /// The next that a rank says; none within the bound.
    pub fn hear(&mut self, rank: usize, bound: Duration) -> Option<Answer> {
        let until = Instant::now() + bound;
        loop {
            if let Some(answer) = self.processes[rank].answers.pop_front() {
                return Some(answer);
            }
            let (number, answer) = self.take.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?;
            // What a process said before it was killed is nobody's any more.
            if let Some(from) = self.processes.iter_mut().find(|process| process.number == number) {
                from.answers.push_back(answer);
            }
        }
    }

    /// SIGKILL, to the last rank.
    pub fn kill_last(&mut self) -> io::Result<()> {
        let mut last = self.processes.pop().expect("there is a rank to kill");
        last.child.kill()?;
        last.child.wait().map(drop)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for process in &mut self.processes {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

fn answer(line: &str) -> Option<Answer> {
    let (word, rest) = line.strip_prefix('@')?.split_once(' ').unwrap_or((&line[1..], ""));
    let (ms, words) = rest.split_once(' ').unwrap_or((rest, ""));
    let ms = ms.parse().unwrap_or_default();
    match word {
        "ok" => Some(Answer::Done { ms, words: words.into() }),
        "err" => {
            let (kind, words) = words.split_once(' ').unwrap_or((words, ""));
            Some(Answer::Failed { ms, kind: kind.into(), words: words.into() })
        }
        "began" => Some(Answer::Began),
        "aborted" => Some(Answer::Aborted { ms }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ranks_say_is_told_from_what_libraries_say() {
        assert_eq!(answer("@ok 12 a b"), Some(Answer::Done { ms: 12, words: "a b".into() }));
        let failed = Answer::Failed { ms: 3, kind: "late".into(), words: "x was not done".into() };
        assert_eq!(answer("@err 3 late x was not done"), Some(failed));
        assert_eq!(answer("@began"), Some(Answer::Began));
        assert_eq!(answer("@aborted 7"), Some(Answer::Aborted { ms: 7 }));
        assert_eq!(answer("host:1:2 [0] NCCL INFO @ok"), None);
    }
}
