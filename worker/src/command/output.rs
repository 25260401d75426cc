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

/// The output of one process.
#[derive(Default)]
pub struct Output {
    relays: Vec<JoinHandle<()>>,
    tail: Tail,
}

impl Output {
    /// Relays both streams of `child` until they end; `dir`: where they are kept besides.
    pub fn relay(child: &mut Child, world_size: u32, rank: u32, dir: Option<PathBuf>) -> Output {
        let prefix = if world_size > 1 { format!("[rank {rank}] ") } else { String::new() };
        let mut output = Output::default();
        if let Some(stdout) = child.stdout.take() {
            output.start(stdout, &prefix, dir.as_deref().map(|d| d.join("stdout.log")), None);
        }
        if let Some(stderr) = child.stderr.take() {
            let tail = output.tail.clone();
            output.start(stderr, &prefix, dir.as_deref().map(|d| d.join("stderr.log")), Some(tail));
        }
        output
    }

    fn start(&mut self, from: impl Read + Send + 'static, prefix: &str, path: Option<PathBuf>, tail: Option<Tail>) {
        let file = path.and_then(|path| open(&path));
        let prefix = prefix.to_string();
        // Without the thread the stream is closed, and the process is told when it prints.
        let thread = std::thread::Builder::new().name("process-output".into());
        self.relays.extend(thread.spawn(move || relay(from, &prefix, file, tail)).ok());
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

fn relay(from: impl Read, prefix: &str, mut file: Option<File>, tail: Option<Tail>) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Some(kept) = &mut file {
            // A disk that is full must not end the process: the node's logs have the line, too.
            let _ = kept.write_all(&line);
        }
        if line.last() != Some(&b'\n') {
            line.push(b'\n');
        }
        if let Some(tail) = &tail {
            let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.push_back(String::from_utf8_lossy(&line).trim_end().to_string());
            if tail.len() > TAIL_LINES {
                tail.pop_front();
            }
        }
        // Nobody but this worker says where it stands.
        let guard = if prefix.is_empty() && is_standing_line(&line) { " " } else { prefix };
        write(&[guard.as_bytes(), &line].concat());
    }
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
