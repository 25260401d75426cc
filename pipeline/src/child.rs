//! Stages are processes of the product: this starts them, waits with a bound, and reads the line of JSON that they end with.
//!
//! A child dies with its parent: the kernel ends it, also when the parent is killed. That is why whoever runs a pipeline
//! does so on one thread that stays. It leads a process group of its own, which is ended as a whole when its time is over.

use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How the product is started.
#[derive(Clone, Debug)]
pub struct Program {
    pub elastic: PathBuf,
    /// Flags that say how a cluster is reached; empty: from the environment, or none.
    pub reach: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("start {}: {error}", program.display())]
    Start { program: PathBuf, error: io::Error },
    #[error("`elastic {command}` ended with {status}: {said} (the rest is in {})", log.display())]
    Ended { command: String, status: ExitStatus, said: String, log: PathBuf },
    #[error("`elastic {command}` was ended: the stage's time is over (what it said is in {})", log.display())]
    Late { command: String, log: PathBuf },
    #[error("`elastic {command}` said no line of JSON at its end")]
    Silent { command: String },
}

impl ChildError {
    /// Mistakes that the same try would meet again.
    pub fn is_final(&self) -> bool {
        matches!(self, ChildError::Ended { status, .. } if status.code() == Some(2))
    }

    pub fn said(&self) -> &str {
        match self {
            ChildError::Ended { said, .. } => said,
            _ => "",
        }
    }
}

/// A child that is ended when its owner lets it go.
#[derive(Debug)]
pub struct Running {
    child: Child,
    pub log: PathBuf,
    out: PathBuf,
    command: String,
}

impl Program {
    /// Starts `elastic args…`; what it says goes into `NAME.out` and `NAME.log` in `dir`.
    pub fn start(&self, dir: &Path, name: &str, args: &[&str]) -> Result<Running, ChildError> {
        let failed = |error| ChildError::Start { program: self.elastic.clone(), error };
        let (out, log) = (dir.join(format!("{name}.out")), dir.join(format!("{name}.log")));
        let mut command = Command::new(&self.elastic);
        command.arg("--dies-with").arg(std::process::id().to_string()).args(args).stdin(Stdio::null());
        command.stdout(File::create(&out).map_err(failed)?).stderr(File::create(&log).map_err(failed)?);
        let child = command.process_group(0).spawn().map_err(failed)?;
        let command = args.first().copied().unwrap_or_default().to_string();
        Ok(Running { child, log, out, command })
    }

    /// Runs it to its end; gives the last line of what it printed. `hears`: each line that it says to people, as it says it.
    pub fn run(
        &self,
        dir: &Path,
        name: &str,
        args: &[&str],
        within: Option<Duration>,
        hears: &dyn Fn(&str),
    ) -> Result<Value, ChildError> {
        self.start(dir, name, args)?.finish(within, hears)
    }
}

const POLL: Duration = Duration::from_millis(5);
const GRACE: Duration = Duration::from_secs(20);

impl Running {
    pub fn finish(mut self, within: Option<Duration>, hears: &dyn Fn(&str)) -> Result<Value, ChildError> {
        let command = self.command.clone();
        let (begin, mut heard) = (Instant::now(), 0);
        let status = loop {
            let left = within.map(|within| within.saturating_sub(begin.elapsed()));
            let status = self.wait(Some(left.unwrap_or(HEAR_EVERY).min(HEAR_EVERY)));
            self.hear(&mut heard, hears);
            match status {
                Some(status) => break status,
                None if left.is_some_and(|left| left.is_zero()) => {
                    self.end();
                    return Err(ChildError::Late { command, log: self.log.clone() });
                }
                None => {}
            }
        };
        if !status.success() {
            return Err(ChildError::Ended { command, status, said: self.said(), log: self.log.clone() });
        }
        let text = std::fs::read_to_string(&self.out).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        serde_json::from_str(last).map_err(|_| ChildError::Silent { command })
    }

    /// Whole lines behind the first `heard` bytes of what it said.
    fn hear(&self, heard: &mut u64, hears: &dyn Fn(&str)) {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            file.seek(SeekFrom::Start(*heard))?;
            file.take(HEAR_BYTES).read_to_end(&mut bytes)
        });
        let end = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        // A line that is longer than all that is read at once is passed over.
        let end = if end == 0 && bytes.len() as u64 == HEAR_BYTES { bytes.len() } else { end };
        if read.is_ok() {
            *heard += end as u64;
            String::from_utf8_lossy(&bytes[..end]).lines().for_each(hears);
        }
    }

    /// None: it still runs.
    pub fn wait(&mut self, within: Option<Duration>) -> Option<ExitStatus> {
        let begin = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Some(status);
            }
            if within.is_some_and(|within| begin.elapsed() > within) {
                return None;
            }
            std::thread::sleep(POLL);
        }
    }

    pub fn printed(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap_or_default()
    }

    /// The end of what it said to people.
    pub fn said(&self) -> String {
        let mut text = String::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(SAID_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            text = String::from_utf8_lossy(&bytes).into_owned();
            Ok(())
        });
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        match (read, lines.as_slice()) {
            (Err(_), _) | (_, []) => "it said nothing".into(),
            (_, lines) => lines[lines.len().saturating_sub(4)..].join("; "),
        }
    }

    /// Asked first, then made to; and whatever it has started that is left in its group.
    pub fn end(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // One that is stopped hears nothing before it goes on.
            self.signal(Signal::TERM);
            self.signal(Signal::CONT);
            if self.wait(Some(GRACE)).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
            self.signal(Signal::KILL);
        }
    }

    /// To its group. One that is empty is no error.
    fn signal(&self, signal: Signal) {
        if let Some(group) = Pid::from_raw(self.child.id() as i32) {
            let _ = kill_process_group(group, signal);
        }
    }
}

const SAID_BYTES: u64 = 4 << 10;
const HEAR_BYTES: u64 = 64 << 10;
const HEAR_EVERY: Duration = Duration::from_millis(200);

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}
