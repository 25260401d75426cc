//! The processes of one generation on this node: started together, stopped together, gone together.
//!
//! Each is the leader of a process group of its own, and its end is noticed before it is reaped, so that the number of
//! its group stays its own until the whole group is gone. Stopping is SIGTERM to all of them and to whatever they
//! started, then SIGKILL after the grace time. A generation is cleared when nothing that came of it is alive.

use super::names::Place;
use super::{cause, family, output};
use elastic_spec::Epoch;
use elastic_spec::facts::{End, ProcessFailure};
use elastic_spec::job::CommandSpec;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::mpsc;

/// Of which generation, which of the node's processes, and how it ended.
pub type Ended = (Epoch, u16, End);

/// How a generation ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every process with code 0.
    Done,
    /// A process failed, or it was stopped.
    Stopped,
}

/// From the first failure to the moment when it is told: others that failed at the same time are heard, too.
const OTHERS_WITHIN: Duration = Duration::from_millis(100);
/// After the end of all processes, their last lines are waited for so long.
const LAST_LINES: Duration = Duration::from_secs(1);

pub struct Group {
    place: Place,
    members: Vec<Member>,
    stop: Stop,
    /// It was told already which failed first.
    is_told: bool,
    is_done: bool,
}

struct Member {
    /// None for one that could not be started.
    child: Option<Child>,
    /// The moment is that of the failure, where it is one: the error file's, else the end's.
    end: Option<(Instant, End)>,
    /// What it wrote about this end.
    error_file: Option<PathBuf>,
    output: output::Output,
}

#[derive(Clone, Copy, Debug)]
enum Stop {
    No,
    /// SIGTERM was sent.
    Terminated {
        kill_at: Instant,
    },
    /// SIGKILL goes to whatever is left.
    Killing {
        since: Instant,
    },
}

impl Group {
    pub fn start(command: &CommandSpec, place: Place, end: &mpsc::Sender<Ended>) -> Group {
        let mut group = Group { place, members: Vec::new(), stop: Stop::No, is_told: false, is_done: false };
        for local in 0..command.processes {
            let member = match group.spawn(command, local, end.clone()) {
                Ok(member) => member,
                Err(why) => Member {
                    child: None,
                    end: Some((Instant::now(), End::Unstartable(why))),
                    error_file: None,
                    output: output::Output::default(),
                },
            };
            group.members.push(member);
        }
        group
    }

    fn spawn(&self, command: &CommandSpec, local: u16, end: mpsc::Sender<Ended>) -> Result<Member, String> {
        let dir = self.place.dir(local);
        std::fs::create_dir_all(&dir).map_err(|e| format!("make {}: {e}", dir.display()))?;
        let (program, arguments) = command.run.split_first().ok_or("the command is empty")?;
        if !std::path::Path::new(&command.folder).is_dir() {
            return Err(format!("the folder {} is not there on this node", command.folder));
        }
        let mut start = Command::new(program);
        start.args(arguments).current_dir(&command.folder).process_group(0);
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.place.tell(&mut start, local)?;
        let mut child = start.spawn().map_err(|e| format!("start {program}: {e}"))?;
        let output = output::Output::relay(&mut child, self.place.shown(command, local, &dir));
        let (pid, epoch) = (Pid::from_child(&child), self.place.epoch);
        let watch = move || {
            // The receiver lives as long as the process does.
            let _ = end.blocking_send((epoch, local, wait(pid)));
        };
        if let Err(error) = std::thread::Builder::new().name("process-end".into()).spawn(watch) {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = child.wait();
            return Err(format!("watch the process: {error}"));
        }
        Ok(Member { child: Some(child), end: None, error_file: None, output })
    }

    pub fn epoch(&self) -> Epoch {
        self.place.epoch
    }

    pub fn note_end(&mut self, local: u16, end: End) {
        let (file, now) = (self.place.error_file(local), SystemTime::now());
        let at = cause::failed_at(&file, now).unwrap_or_else(Instant::now);
        if let Some(member) = self.members.get_mut(usize::from(local)) {
            member.error_file = Some(file).filter(|file| cause::is_of_end(file, now));
            member.end = Some((at, end));
        }
    }

    /// The failure that came first, once; of a generation that nobody stopped.
    pub fn first_failure(&mut self) -> Option<(Instant, ProcessFailure)> {
        if self.is_told || !matches!(self.stop, Stop::No) {
            return None;
        }
        let failed = |m: &Member| m.end.as_ref().filter(|(_, end)| *end != End::Code(0)).cloned();
        let all = self.members.iter().enumerate();
        let failures = || all.clone().filter_map(|(local, m)| failed(m).map(|(at, end)| (at, local as u16, end)));
        let (at, local, end) = failures().min_by_key(|(at, local, _)| (*at, *local))?;
        if at.elapsed() < OTHERS_WITHIN && self.members.iter().any(|m| m.end.is_none()) {
            return None;
        }
        self.is_told = true;
        let Member { output, error_file, .. } = &self.members[usize::from(local)];
        output.show_tail();
        let tail = output.tail();
        let message = cause::message(error_file.as_deref(), &end, &tail);
        let (rank, error_file) = (self.place.rank(local), cause::whole(error_file.as_deref(), &end));
        let port_taken = rank == 0 && cause::is_port_taken(&message, &tail);
        Some((at, ProcessFailure { rank, end, message, age_ms: 0, port_taken, error_file }))
    }

    /// Asks all processes to end, once.
    pub fn stop(&mut self, grace: Duration) {
        self.note_done();
        match self.stop {
            // A shorter time counts.
            Stop::Terminated { kill_at } => {
                self.stop = Stop::Terminated { kill_at: kill_at.min(Instant::now() + grace) };
            }
            Stop::Killing { .. } => {}
            Stop::No => {
                self.signal(Signal::TERM);
                // One that is stopped must hear it.
                self.signal(Signal::CONT);
                self.stop = Stop::Terminated { kill_at: Instant::now() + grace };
            }
        }
    }

    /// Takes off the system's list whatever its processes left behind and has ended; a generation may last for weeks.
    pub fn reap_orphans(&self) {
        let pid = |m: &Member| m.child.as_ref().map(|child| Pid::from_child(child).as_raw_nonzero().get());
        family::reap(&self.members.iter().filter_map(pid).collect::<Vec<i32>>());
    }

    /// To each group, and to what has left its group.
    fn signal(&self, signal: Signal) {
        let groups: Vec<Pid> = self.members.iter().filter_map(|m| m.child.as_ref().map(Pid::from_child)).collect();
        for pid in &groups {
            // A group that is gone already is what was asked for.
            let _ = kill_process_group(*pid, signal);
        }
        let in_a_group = |kin: &family::Kin| groups.iter().any(|pid| pid.as_raw_nonzero().get() == kin.group);
        family::living().iter().filter(|kin| !in_a_group(kin)).for_each(|kin| kin.signal(signal));
    }

    /// Gets on with the end of the generation. `None`: not there yet.
    pub fn clear(&mut self, grace: Duration) -> Option<Outcome> {
        self.note_done();
        match self.stop {
            Stop::No if !self.is_done => return None,
            // What they left behind is asked to end like they would have been.
            Stop::No if !family::living().is_empty() => self.stop(grace),
            Stop::No => self.stop = Stop::Killing { since: Instant::now() },
            Stop::Terminated { kill_at } if Instant::now() < kill_at && !family::living().is_empty() => return None,
            Stop::Terminated { .. } => self.stop = Stop::Killing { since: Instant::now() },
            Stop::Killing { .. } => {}
        }
        let Stop::Killing { since } = self.stop else { return None };
        self.signal(Signal::KILL);
        if self.members.iter().any(|m| m.end.is_none()) || !family::living().is_empty() {
            return None;
        }
        for member in &mut self.members {
            // Its end was seen, so this does not wait; from here on its number may be another's.
            member.child.take().iter_mut().for_each(|child| drop(child.wait()));
        }
        family::reap(&[]);
        if since.elapsed() < LAST_LINES && self.members.iter().any(|m| !m.output.is_over()) {
            return None;
        }
        Some(if self.is_done { Outcome::Done } else { Outcome::Stopped })
    }

    /// All ended well before anybody asked them to end.
    fn note_done(&mut self) {
        let is_well = || self.members.iter().all(|m| matches!(m.end, Some((_, End::Code(0)))));
        self.is_done |= matches!(self.stop, Stop::No) && is_well();
    }

    /// Whether it is to be looked at again soon.
    pub fn is_in_motion(&self) -> bool {
        !matches!(self.stop, Stop::No) || self.members.iter().any(|m| m.end.is_some())
    }
}

/// Waits for the end of a process and leaves it to be reaped.
fn wait(pid: Pid) -> End {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return End::Unstartable(format!("wait for the process: {error}")),
            Ok(status) => {
                let status = status.as_ref();
                let code = status.and_then(|s| s.exit_status()).map(End::Code);
                let signal = status.and_then(|s| s.terminating_signal()).map(End::Signal);
                return code.or(signal).unwrap_or_else(|| End::Unstartable("ended in an unknown way".into()));
            }
        }
    }
}
