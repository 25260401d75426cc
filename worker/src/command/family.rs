//! Everything that comes of the processes that a worker starts, however far it got away from them.
//!
//! The worker is made the one to whom orphans fall (a "child subreaper"), so a process that it started, or that one of
//! those started, stays its descendant until it ends, also when it left its group and its session.

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getpid, kill_process, set_child_subreaper, waitid};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A process that descends from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kin {
    pub pid: i32,
    parent: i32,
    /// Its process group.
    pub group: i32,
    is_dead: bool,
}

/// Whether this process keeps a family at all.
static ADOPTS: AtomicBool = AtomicBool::new(false);
/// What cannot be killed (it waits in the kernel) is left to its fate after this.
const KILL_WITHIN: Duration = Duration::from_secs(5);

pub fn adopt() -> std::io::Result<()> {
    set_child_subreaper(Some(getpid()))?;
    ADOPTS.store(true, Ordering::Relaxed);
    Ok(())
}

impl Kin {
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            // One that is gone already is what was asked for.
            let _ = kill_process(pid, signal);
        }
    }
}

/// All that live.
pub fn living() -> Vec<Kin> {
    family().into_iter().filter(|kin| !kin.is_dead).collect()
}

/// Takes orphans that have ended off the system's list, but none of `members`, whose ends are others' to see.
pub fn reap(members: &[i32]) {
    if !has_dead_child() {
        return;
    }
    for pid in dead_orphans(getpid().as_raw_nonzero().get(), members, &all()) {
        if let Some(pid) = Pid::from_raw(pid) {
            let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
        }
    }
}

/// One call, where a look at all processes is hundreds.
fn has_dead_child() -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, options).is_ok_and(|status| status.is_some())
}

fn dead_orphans(of: i32, members: &[i32], all: &[Kin]) -> Vec<i32> {
    let is_due = |kin: &&Kin| kin.is_dead && kin.parent == of && !members.contains(&kin.pid);
    all.iter().filter(is_due).map(|kin| kin.pid).collect()
}

/// Ends all at once: whoever would have ended them in order is gone.
pub fn end() {
    let until = Instant::now() + KILL_WITHIN;
    while ADOPTS.load(Ordering::Relaxed) && Instant::now() < until {
        let living = living();
        if living.is_empty() {
            return;
        }
        living.iter().for_each(|kin| kin.signal(Signal::KILL));
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn family() -> Vec<Kin> {
    descendants(getpid().as_raw_nonzero().get(), &all())
}

fn all() -> Vec<Kin> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn read(pid: i32) -> Option<Kin> {
    parse(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// `pid (name) state ppid pgrp …`; the name may hold anything.
fn parse(pid: i32, stat: &str) -> Option<Kin> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let is_dead = matches!(fields.next()?, "Z" | "X");
    Some(Kin { pid, parent: fields.next()?.parse().ok()?, group: fields.next()?.parse().ok()?, is_dead })
}

fn descendants(of: i32, all: &[Kin]) -> Vec<Kin> {
    let mut known = BTreeSet::from([of]);
    let mut found = Vec::new();
    loop {
        let more: Vec<Kin> =
            all.iter().filter(|kin| known.contains(&kin.parent) && !known.contains(&kin.pid)).copied().collect();
        if more.is_empty() {
            return found;
        }
        known.extend(more.iter().map(|kin| kin.pid));
        found.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kin(pid: i32, parent: i32) -> Kin {
        Kin { pid, parent, group: pid, is_dead: false }
    }

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_hide_a_process() {
        let read = parse(7, "7 (a) b (c)) S 3 9 9 0 -1").unwrap();
        assert_eq!(read, Kin { pid: 7, parent: 3, group: 9, is_dead: false });
        assert!(parse(7, "7 (x) Z 3 9 9").unwrap().is_dead);
        assert_eq!(parse(7, "7 x"), None);
    }

    #[test]
    fn of_the_dead_only_orphans_that_fell_to_this_process_are_reaped() {
        let dead = |pid, parent| Kin { is_dead: true, ..kin(pid, parent) };
        // A member that ended, one that lives, two orphans of which one lives, and a dead child of a member's own.
        let all = [dead(5, 2), kin(6, 2), dead(7, 2), kin(8, 2), dead(9, 6), dead(10, 1)];
        assert_eq!(dead_orphans(2, &[5, 6], &all), [7]);
        assert_eq!(dead_orphans(2, &[], &all), [5, 7]);
    }

    #[test]
    fn descendants_are_found_in_whatever_order_they_are_listed() {
        let all = [kin(9, 8), kin(4, 1), kin(8, 5), kin(5, 2), kin(6, 4), kin(2, 1)];
        let mut pids: Vec<i32> = descendants(2, &all).iter().map(|kin| kin.pid).collect();
        pids.sort();
        assert_eq!(pids, [5, 8, 9]);
    }
}
