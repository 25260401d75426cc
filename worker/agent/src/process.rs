//! One worker process: started in a process group of its own, watched, and cleared away with all its kin.
//!
//! The end is noticed at once and before the process is reaped: its number, and with it the number of its
//! group, cannot be given to anybody else until then, so the whole group can be killed without a race. What a worker is told and says goes over the socket (`desk`); when to stop it is `converge`'s.

use crate::logs::{self, Series, Standing};
use crate::strays;
use anyhow::{Context, Result};
use elastic_spec::WorkerId;
use elastic_spec::facts::End;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{oneshot, watch};

/// What is started: a program, its arguments, and what is added to the agent's own environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub argv: Vec<OsString>,
    pub env: Vec<(&'static str, OsString)>,
    /// It starts processes outside its group, all marked with this.
    pub keeps: Option<WorkerId>,
}

/// Starts `program`; what it prints goes to the files of `series`. The future ends when the process has
/// ended and its whole group was killed.
pub fn start(
    program: &Program,
    series: Series,
    standing: watch::Receiver<Standing>,
) -> Result<(Group, impl Future<Output = End> + Send + use<>)> {
    let (output, input) = std::io::pipe().context("make a pipe for the worker's output")?;
    let first = program.argv.first().context("the worker's command line is empty")?;
    let mut command = Command::new(first);
    command
        .args(&program.argv[1..])
        .envs(program.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(input.try_clone().context("share the pipe")?)
        .stderr(input)
        .process_group(0);
    // The threads first: a process that nobody watches must not exist.
    std::thread::Builder::new()
        .name("worker-log".into())
        .spawn(move || logs::keep(output, series, standing))
        .context("start a thread for the worker's output")?;
    let (hand_over, end) = clear_away(program.keeps)?;
    let child = command.spawn().with_context(|| format!("start {}", first.display()))?;
    // The command holds the writing end: while it lives here, the output never ends.
    drop(command);
    let group = Group(Arc::new(Mutex::new(Some(Pid::from_child(&child)))));
    // The thread waits for this and nothing else.
    let _ = hand_over.send((child, group.clone()));
    Ok((group, end))
}

/// A process group to send signals to; None once its leader was reaped, when the number means nothing.
#[derive(Clone, Debug)]
pub struct Group(Arc<Mutex<Option<Pid>>>);

impl Group {
    /// One that is stopped goes on, so that it can hear.
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    pub fn pid(&self) -> Option<i32> {
        self.locked().map(|pid| pid.as_raw_nonzero().get())
    }

    fn signal(&self, signal: Signal) {
        let pid = self.locked();
        if let Some(pid) = *pid {
            // A group that is gone already is what was asked for.
            let _ = kill_process_group(pid, signal);
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Option<Pid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills what is left of the group and reaps its leader, which has ended.
    fn reap(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        self.kill();
        self.locked().take();
        child.wait()
    }
}

/// A thread that waits until the leader it is handed has ended, kills what is left of its group, then reaps it.
fn clear_away(
    keeps: Option<WorkerId>,
) -> Result<(SyncSender<(Child, Group)>, impl Future<Output = End> + Send + use<>)> {
    let (hand_over, handed) = sync_channel::<(Child, Group)>(1);
    let (tell, told) = oneshot::channel();
    let wait = move || {
        // Nothing comes if the process could not be started.
        let Ok((mut child, group)) = handed.recv() else { return };
        let pid = Pid::from_child(&child);
        // NOWAIT: the dead leader keeps its number until the group is cleared.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while waitid(WaitId::Pid(pid), options).is_err_and(|e| e == rustix::io::Errno::INTR) {}
        let reaped = group.reap(&mut child);
        keeps.into_iter().for_each(strays::end);
        let end = match reaped {
            Ok(status) => end_of(status),
            Err(error) => End::Unstartable(format!("wait for the process: {error}")),
        };
        // Nobody listens any more when the agent itself ends.
        let _ = tell.send(end);
    };
    std::thread::Builder::new().name("worker-end".into()).spawn(wait).context("start a thread for the end")?;
    Ok((hand_over, async { told.await.unwrap_or_else(|_| End::Unstartable("its end was not seen".into())) }))
}

fn end_of(status: ExitStatus) -> End {
    match (status.code(), status.signal()) {
        (Some(code), _) => End::Code(code),
        (None, Some(signal)) => End::Signal(signal),
        (None, None) => End::Unstartable(format!("ended in an unknown way: {status}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::{Bounds, Shelf};
    use std::path::Path;
    use std::time::{Duration, Instant};

    fn shell(script: &str) -> Program {
        Program {
            argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
            env: vec![("GREETING", "hello".into())],
            keeps: None,
        }
    }

    fn series(dir: &Path) -> Series {
        let (slot, attempt) = (0, 1);
        Series {
            dir: dir.into(),
            slot,
            attempt,
            bounds: Bounds::default(),
            shelf: Shelf::default(),
            says_standing: false,
        }
    }

    async fn printed(dir: &Path, text: &str) -> String {
        let path = dir.join("slot0.attempt1.gen0.0.rank-.part0.log");
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let all = std::fs::read_to_string(&path).unwrap_or_default();
            if all.contains(text) {
                return all;
            }
            assert!(Instant::now() < until, "\"{text}\" was not printed: {all}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn exit_codes_signals_and_output_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let (_set, standing) = watch::channel(Standing::default());
        let (_, end) =
            start(&shell("echo $GREETING; echo there >&2; exit 7"), series(dir.path()), standing.clone()).unwrap();
        assert_eq!(end.await, End::Code(7));
        assert_eq!(printed(dir.path(), "there").await, "hello\nthere\n");
        let (_, end) = start(&shell("kill -9 $$"), series(dir.path()), standing).unwrap();
        assert_eq!(end.await, End::Signal(9));
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let (_set, standing) = watch::channel(Standing::default());
        let program = Program { argv: vec!["/nonexistent/worker".into()], env: vec![], keeps: None };
        let error = start(&program, series(Path::new("/nonexistent")), standing).err().unwrap();
        assert!(format!("{error:#}").starts_with("start /nonexistent/worker: "), "{error:#}");
    }

    #[tokio::test]
    async fn a_grandchild_that_ignores_sigterm_does_not_outlive_its_worker() {
        let dir = tempfile::tempdir().unwrap();
        let (_set, standing) = watch::channel(Standing::default());
        let script = "(trap '' TERM; echo grandchild $(exec sh -c 'echo $PPID'); while :; do sleep 0.05; done) & \
                      trap 'exit 3' TERM; while :; do sleep 0.05; done";
        let (group, end) = start(&shell(script), series(dir.path()), standing).unwrap();
        let text = printed(dir.path(), "grandchild ").await;
        let pid: i32 = text.trim().rsplit(' ').next().unwrap().parse().unwrap();
        group.terminate();
        assert_eq!(end.await, End::Code(3));
        assert_eq!(group.pid(), None, "no signal can go to a number that is free again");
        let until = Instant::now() + Duration::from_secs(10);
        let pid = Pid::from_raw(pid).unwrap();
        while rustix::process::test_kill_process(pid).is_ok() && !is_zombie(pid) {
            assert!(Instant::now() < until, "the grandchild lives on");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn a_stopped_process_hears_that_it_shall_end() {
        let dir = tempfile::tempdir().unwrap();
        let (_set, standing) = watch::channel(Standing::default());
        let script = "trap 'exit 3' TERM; echo up; kill -STOP $$; while :; do sleep 0.02; done";
        let (group, end) = start(&shell(script), series(dir.path()), standing).unwrap();
        printed(dir.path(), "up").await;
        group.terminate();
        assert_eq!(end.await, End::Code(3));
    }

    fn is_zombie(pid: Pid) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
    }
}
