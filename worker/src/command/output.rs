//! What the processes print: whole lines, with their rank before them, on this worker's own output, which the agent keeps.
//!
//! Which generation a line belongs to is said in between the lines ([`elastic_spec::view::standing_line`]), so that no
//! line can be filed under another one.

use elastic_spec::view::{is_standing_line, standing_line};
use elastic_spec::{Epoch, Rank};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Longer lines are cut.
const LINE_BYTES_MAX: u64 = 64 << 10;
/// Lines of stderr that are looked at for the cause of a failure.
const TAIL_LINES: usize = 20;

type Tail = Arc<Mutex<VecDeque<String>>>;

/// What is shown of a process, and where all that it prints is kept besides.
#[derive(Default)]
pub struct Shown {
    pub prefix: String,
    pub stdout: bool,
    pub stderr: bool,
    pub dir: Option<PathBuf>,
}

/// The output of one process.
#[derive(Default)]
pub struct Output {
    relays: Vec<JoinHandle<()>>,
    tail: Tail,
    /// Where stderr is not shown: what would stand before its lines.
    hidden: Option<String>,
}

impl Output {
    /// Relays both streams of `child` until they end.
    pub fn relay(child: &mut Child, shown: Shown) -> Output {
        let Shown { prefix, stdout, stderr, dir } = shown;
        let hidden = (!stderr).then(|| prefix.clone());
        let mut output = Output { hidden, ..Output::default() };
        let file = |name: &str| dir.as_deref().and_then(|dir| open(&dir.join(name)));
        let (out, err) = (file("stdout.log"), file("stderr.log"));
        let before = |is_shown: bool| is_shown.then(|| prefix.clone());
        if let Some(from) = child.stdout.take() {
            output.start(from, Relay { prefix: before(stdout), file: out, tail: None });
        }
        if let Some(from) = child.stderr.take() {
            let tail = Some(output.tail.clone());
            output.start(from, Relay { prefix: before(stderr), file: err, tail });
        }
        output
    }

    fn start(&mut self, from: impl Read + Send + 'static, relay: Relay) {
        // Without the thread the stream is closed, and the process is told when it prints.
        let thread = std::thread::Builder::new().name("process-output".into());
        self.relays.extend(thread.spawn(move || relay.run(from)).ok());
    }

    /// Of a process that failed and was not shown: what it said last on stderr.
    pub fn show_tail(&self) {
        if let Some(prefix) = &self.hidden {
            self.tail().iter().for_each(|line| show(prefix, format!("{line}\n").as_bytes()));
        }
    }

    pub fn is_over(&self) -> bool {
        self.relays.iter().all(JoinHandle::is_finished)
    }

    pub fn tail(&self) -> Vec<String> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

fn open(path: &Path) -> Option<File> {
    let file = File::create(path);
    file.inspect_err(|error| crate::stderr::say(format_args!("elastic: {}: {error}", path.display()))).ok()
}

/// Where the lines of one stream go.
struct Relay {
    /// What stands before them where they are shown; None: they are not.
    prefix: Option<String>,
    file: Option<File>,
    tail: Option<Tail>,
}

impl Relay {
    fn run(mut self, from: impl Read) {
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            match from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if let Some(kept) = &mut self.file {
                // A disk that is full must not end the process: what is shown is in the node's logs, too.
                let _ = kept.write_all(&line);
            }
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            if let Some(tail) = &self.tail {
                let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
                tail.push_back(String::from_utf8_lossy(&line).trim_end().to_string());
                if tail.len() > TAIL_LINES {
                    tail.pop_front();
                }
            }
            if let Some(prefix) = &self.prefix {
                show(prefix, &line);
            }
        }
    }
}

fn show(prefix: &str, line: &[u8]) {
    let line = [prefix.as_bytes(), line].concat();
    // Nobody but this worker says where it stands.
    let guard: &[u8] = if is_standing_line(&line) { b" " } else { b"" };
    write(&[guard, &line].concat());
}

/// From here on all that is printed belongs to this generation.
pub fn stands(epoch: Epoch, rank: Rank) {
    write(standing_line(epoch, rank).as_bytes());
}

/// One write for a whole line. An agent that is gone does not read, and its workers end.
fn write(line: &[u8]) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(line).and_then(|()| out.flush());
}
