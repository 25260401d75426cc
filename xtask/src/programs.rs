//! The programs that tests are compiled into, as cargo names them, run two at a time.
//!
//! `cargo test` runs one after the other, and many of them keep one core busy: on two cores the rest of the time is waste.
//! What a program prints is handed on as a whole when it has ended, so that nothing of two programs is mixed.

use crate::tools;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, IsTerminal, PipeReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Instant;

/// Lines that wait to be looked at.
const LINES_AHEAD: usize = 1024;

/// So many run at once.
const AT_ONCE: usize = 2;

/// Those that have clusters of their own, with clocks that must not wait for others: by itself, after all others.
const ALONE: &str = "e2e";

/// One program with tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// As cargo calls it: `Running unittests src/lib.rs (target/release/deps/elastic_spec-0f3c)`.
    pub header: String,
    pub file: PathBuf,
    /// The package's, where tests find their files.
    pub dir: PathBuf,
    pub alone: bool,
}

/// What is told of programs that run.
pub enum Event {
    /// A line that somebody who waits should see at once.
    News(String),
    /// All that a program said, with its header before.
    Ended { lines: Vec<String>, status: ExitStatus },
    /// Time was up; what the programs that then ran had said.
    TimeUp(Vec<Vec<String>>),
}

/// All programs of the workspace, which are built where they are not.
pub fn list() -> Result<Vec<Program>> {
    let mut cargo = tools::cargo();
    cargo.args(["test", "--no-run", "--release", "--workspace", "--tests"]);
    cargo.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
    let said = cargo.output().context("start cargo test --no-run")?;
    if !said.status.success() {
        bail!("{cargo:?} ended with {}", said.status);
    }
    Ok(String::from_utf8_lossy(&said.stdout).lines().filter_map(program_of).collect())
}

/// The program with tests that a line of cargo's messages tells of.
fn program_of(line: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["profile"]["test"] != true {
        return None;
    }
    let file = PathBuf::from(message["executable"].as_str()?);
    let dir = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let source = Path::new(message["target"]["src_path"].as_str()?);
    let source = source.strip_prefix(&dir).unwrap_or(source).display();
    let is_test = message["target"]["kind"].as_array()?.iter().any(|kind| kind == "test");
    let unit = if is_test { "" } else { "unittests " };
    let header = format!("     Running {unit}{source} ({})", file.display());
    Some(Program { header, file, dir, alone: is_test && message["target"]["name"] == ALONE })
}

/// A program that was started, and what it has said.
struct Running {
    child: Child,
    lines: Vec<String>,
}

enum Said {
    Line(String),
    End,
}

type Word = (usize, Said);

/// Runs programs until all have ended, or time is up.
pub struct Crew<'a> {
    waiting: VecDeque<Program>,
    running: Vec<(usize, Running)>,
    /// Given to a program before it starts.
    arrange: &'a dyn Fn(&mut Command),
    until: Instant,
    /// Of each running program, by its number.
    said: (SyncSender<Word>, Receiver<Word>),
    started: usize,
    owns_groups: bool,
}

impl<'a> Crew<'a> {
    pub fn new(programs: Vec<Program>, until: Instant, arrange: &'a dyn Fn(&mut Command)) -> Crew<'a> {
        let (together, alone): (Vec<Program>, Vec<Program>) = programs.into_iter().partition(|program| !program.alone);
        Crew {
            waiting: together.into_iter().chain(alone).collect(),
            running: Vec::new(),
            arrange,
            until,
            said: sync_channel(LINES_AHEAD),
            started: 0,
            // So that hung ones can be ended as a whole; at a terminal Ctrl-C must reach them instead.
            owns_groups: !std::io::stdin().is_terminal(),
        }
    }

    /// What happens next; none when all have ended.
    pub fn next(&mut self) -> Result<Option<Event>> {
        loop {
            while self.may_start() {
                let program = self.waiting.pop_front().expect("one waits");
                self.start(&program).with_context(|| format!("start {}", program.file.display()))?;
            }
            if self.running.is_empty() {
                return Ok(None);
            }
            match self.said.1.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
                Ok((who, Said::Line(line))) => {
                    let is_news = line.contains("has been running for over");
                    let news = is_news.then(|| Event::News(line.trim().to_string()));
                    self.running
                        .iter_mut()
                        .filter(|(id, _)| *id == who)
                        .for_each(|(_, it)| it.lines.push(line.clone()));
                    if news.is_some() {
                        return Ok(news);
                    }
                }
                Ok((who, Said::End)) => {
                    let at = self.running.iter().position(|(id, _)| *id == who).expect("it was started");
                    let (_, Running { mut child, lines }) = self.running.swap_remove(at);
                    let status = child.wait().context("wait for a program with tests")?;
                    return Ok(Some(Event::Ended { lines, status }));
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    self.waiting.clear();
                    let ended = self.running.drain(..).map(|(_, it)| end(it, self.owns_groups));
                    return Ok(Some(Event::TimeUp(ended.collect())));
                }
            }
        }
    }

    fn may_start(&self) -> bool {
        let room = if self.waiting.front().is_some_and(|next| next.alone) { 1 } else { AT_ONCE };
        !self.waiting.is_empty() && self.running.len() < room
    }

    fn start(&mut self, program: &Program) -> Result<()> {
        let (reader, writer) = std::io::pipe()?;
        let mut command = Command::new(&program.file);
        command.current_dir(&program.dir).env("CARGO_MANIFEST_DIR", &program.dir);
        (self.arrange)(&mut command);
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        if self.owns_groups {
            command.process_group(0);
        }
        let child = command.spawn()?;
        let who = self.started;
        self.started += 1;
        self.running.push((who, Running { child, lines: vec![program.header.clone()] }));
        let said = self.said.0.clone();
        std::thread::spawn(move || {
            read_lines(reader, |line| said.send((who, Said::Line(line))).is_ok());
            let _ = said.send((who, Said::End));
        });
        Ok(())
    }
}

fn read_lines(reader: PipeReader, mut take: impl FnMut(String) -> bool) {
    let mut reader = BufReader::new(reader);
    let mut bytes = Vec::new();
    while matches!(reader.read_until(b'\n', &mut bytes), Ok(n) if n > 0) {
        let line = String::from_utf8_lossy(&bytes).trim_end_matches(['\n', '\r']).to_string();
        bytes.clear();
        if !take(line) {
            return;
        }
    }
}

fn end(it: Running, owns_group: bool) -> Vec<String> {
    let Running { mut child, lines } = it;
    if owns_group {
        let group = format!("-{}", child.id());
        // Errors are of no use here: the child is waited for next in any case.
        let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
    }
    let _ = child.kill();
    let _ = child.wait();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A shell in a folder of its own, with the script in it that [`script`] names.
    fn shell(text: &str, alone: bool, dir: &Path) -> Program {
        let dir = dir.join(text.len().to_string());
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("script"), text).unwrap();
        Program { header: "Running a script".into(), file: "/bin/sh".into(), dir, alone }
    }

    fn script(command: &mut Command) {
        command.arg("script");
    }

    fn ended(crew: &mut Crew) -> Vec<Vec<String>> {
        let events = std::iter::from_fn(|| crew.next().unwrap());
        let lines = events.filter_map(|event| match event {
            Event::Ended { lines, status } if status.success() => Some(lines),
            _ => None,
        });
        lines.collect()
    }

    #[test]
    fn two_run_at_once_and_one_alone_after_them() {
        let dir = tempfile::tempdir().unwrap();
        // Each of the first two waits for the other; the third finds both gone.
        let meet = |own: &str, other: &str| {
            format!("touch ../{own}; while [ ! -e ../{other} ]; do sleep 0.01; done; echo {own}")
        };
        let a = shell(&meet("one", "another"), false, dir.path());
        let b = shell(&(meet("another", "one") + "; touch ../done"), false, dir.path());
        let alone = shell("test -e ../done && echo alone", true, dir.path());
        let mut crew = Crew::new(vec![alone, a, b], Instant::now() + Duration::from_secs(60), &script);
        let ended = ended(&mut crew);
        assert_eq!(ended.len(), 3, "{ended:?}");
        assert_eq!(ended[2][1], "alone");
    }

    #[test]
    fn when_time_is_up_all_are_ended_and_what_they_said_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let hangs = shell("echo begins; sleep 600", false, dir.path());
        let mut crew = Crew::new(vec![hangs], Instant::now() + Duration::from_secs(2), &script);
        let Some(Event::TimeUp(said)) = crew.next().unwrap() else { panic!("it cannot have ended") };
        assert_eq!(said[0][1], "begins");
        assert!(crew.next().unwrap().is_none());
    }

    #[test]
    fn cargo_tells_which_programs_have_tests() {
        let line = r#"{"reason":"compiler-artifact","manifest_path":"/r/spec/Cargo.toml","target":{"kind":["test"],
            "name":"e2e","src_path":"/r/spec/tests/e2e/main.rs"},"profile":{"test":true},"executable":"/r/target/e2e-1f"}"#
            .replace('\n', "");
        let program = program_of(&line).unwrap();
        assert_eq!(program.header, "     Running tests/e2e/main.rs (/r/target/e2e-1f)");
        assert_eq!((program.alone, program.dir), (true, PathBuf::from("/r/spec")));
        let library = line.replace("\"test\"]", "\"lib\"]");
        assert!(program_of(&library).unwrap().header.contains("Running unittests "));
        assert_eq!(program_of(&line.replace("\"test\":true", "\"test\":false")), None);
    }
}
