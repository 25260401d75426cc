//! Ends what a worker that kept processes of its own left behind when it was killed.
//!
//! Those processes have groups of their own, and some may have left them. What they inherit and seldom drop is their
//! environment, and in it the id of the worker, which is drawn at random and never used again.

use elastic_spec::WorkerId;
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

/// What cannot be killed (it waits in the kernel) is left to its fate after this.
const WITHIN: Duration = Duration::from_secs(2);

/// Kills every process of `worker`'s until none is left. Its own process has ended.
pub fn end(worker: WorkerId) {
    let mark = format!("ELASTIC_WORKER_ID={:016x}", worker.0);
    let until = Instant::now() + WITHIN;
    loop {
        let left = marked(mark.as_bytes());
        if left.is_empty() || Instant::now() > until {
            return;
        }
        for pid in left {
            // One that has ended meanwhile is what was asked for.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Of those that have ended the system tells no environment.
fn marked(mark: &[u8]) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_mark = |pid: &i32| {
        let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|b| *b == 0).any(|variable| variable == mark)
    };
    pids.filter(has_mark).filter_map(Pid::from_raw).collect()
}
