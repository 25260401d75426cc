//! A small team of threads for the loops of one step: fork and join in about a microsecond.
//!
//! [`Team::run`] hands out tasks by number to whoever is free, the caller among them. What a task computes must
//! depend on its number alone, so that bits never depend on who ran it. Helpers spin for a moment before they
//! sleep, because loops follow one another; a helper that comes too late is not waited for. What is worth splitting,
//! and how, is the kernels' business.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};

mod chunks;
mod parts;

pub use chunks::Channel;

pub(crate) use parts::Parts;

/// A caller and its helpers. Dropping it ends the helpers.
pub struct Team {
    shared: Arc<Shared>,
    helpers: Vec<std::thread::JoinHandle<()>>,
}

/// A task: the number of the thread that runs it (0 is the caller), then its own number.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

struct Shared {
    /// Number of the run in the upper half, then [`OPEN`], then how many helpers are inside it.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// The next task to be handed out.
    next: AtomicUsize,
    /// A run is going on: a run inside of it is the inner caller's alone.
    is_running: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stopped: AtomicBool,
    sleepers: AtomicUsize,
    bed: Mutex<()>,
    bell: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    tasks: usize,
}

/// Helpers may still enter the run.
const OPEN: u64 = 1 << 31;
const INSIDE: u64 = OPEN - 1;
const RUN: u64 = 1 << 32;
/// Looks at the state before a helper sleeps: some tens of microseconds.
const SPINS: u32 = 2_000;

// SAFETY: `job` is written by the one caller that holds `is_running`, while the run is closed and no helper is
// inside; helpers read it only after they entered an open run (acquire on `state`), and are waited for before it is
// written again. The task behind the pointer is Sync.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointer is dead whenever no run is open.
unsafe impl Send for Shared {}

impl Team {
    /// A team of `threads`, of which the caller is one.
    pub fn new(threads: usize) -> Team {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            is_running: AtomicBool::new(false),
            panic: Mutex::new(None),
            stopped: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        });
        let threads = threads.max(1);
        // A system that starts threads late allocates for them late, in the middle of a step.
        let started = Arc::new(Barrier::new(threads));
        let start = |number: usize| {
            let (shared, started) = (shared.clone(), started.clone());
            let thread = std::thread::Builder::new().name(format!("kernel-{number}")).spawn(move || {
                started.wait();
                drop(started);
                shared.help(number);
            });
            thread.expect("the system starts a thread")
        };
        let helpers = (1..threads).map(start).collect();
        started.wait();
        Team { shared, helpers }
    }

    /// How many threads there are, the caller among them.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs tasks 0 to `tasks`, each once, and returns when all are done. A panic in one is the caller's.
    pub fn run(&self, tasks: usize, task: &Task<'_>) {
        let shared = &*self.shared;
        let is_alone = self.helpers.is_empty() || tasks < 2;
        if is_alone || shared.is_running.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(|number| task(0, number));
        }
        // SAFETY: only the lifetime is forgotten, and `Closing` waits for every helper before this call returns or
        // unwinds. Nobody else reads or writes `job`: see `Shared`.
        let job = unsafe {
            let job = Job { task: std::mem::transmute::<&Task<'_>, &Task<'static>>(task), tasks };
            *shared.job.get() = Some(job);
            job
        };
        shared.next.store(0, Ordering::Relaxed);
        let run = (shared.state.load(Ordering::Relaxed) / RUN).wrapping_add(1);
        shared.state.store(run.wrapping_mul(RUN) | OPEN, Ordering::SeqCst);
        let closing = Closing(shared);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _awake = shared.bed.lock().expect("nobody panics in bed");
            shared.bell.notify_all();
        }
        shared.take(0, job);
        drop(closing);
        let panic = shared.panic.lock().expect("nobody panics with this lock").take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        drop(self.shared.bed.lock());
        self.shared.bell.notify_all();
        for helper in self.helpers.drain(..) {
            // A helper catches what its tasks throw, so it has nothing to tell.
            let _ = helper.join();
        }
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a team of {}", self.threads())
    }
}

/// Ends a run: nobody enters any more, and those inside are waited for.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let shared = self.0;
        shared.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if std::thread::panicking() {
            // One panic is enough: what helpers threw meanwhile must not meet the next run.
            drop(shared.panic.lock().map(|mut panic| panic.take()));
        }
        shared.is_running.store(false, Ordering::Release);
    }
}

impl Shared {
    fn take(&self, thread: usize, job: Job) {
        // SAFETY: the run is open or the caller is inside it, so the task is alive: see `Team::run`.
        let task = unsafe { &*job.task };
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= job.tasks {
                return;
            }
            task(thread, number);
        }
    }

    /// A helper's life.
    fn help(&self, thread: usize) {
        crate::float_mode::Ieee::stay();
        let mut done = 0;
        while let Some(run) = self.wait_after(done) {
            done = run;
            let Some(job) = self.enter(run) else { continue };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.take(thread, job))) {
                // The rest of the tasks need not run: their results are lost with the panic.
                self.next.store(job.tasks, Ordering::Relaxed);
                self.panic.lock().expect("nobody panics with this lock").get_or_insert(panic);
            }
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// The number of an open run other than `done`; none when the team ends.
    fn wait_after(&self, done: u64) -> Option<u64> {
        let look = || {
            let state = self.state.load(Ordering::SeqCst);
            (state & OPEN != 0 && state / RUN != done).then_some(state / RUN)
        };
        for _ in 0..SPINS {
            if let Some(run) = look() {
                return Some(run);
            }
            std::hint::spin_loop();
        }
        let mut bed = self.bed.lock().expect("nobody panics in bed");
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        let run = loop {
            if self.stopped.load(Ordering::SeqCst) {
                break None;
            }
            if let Some(run) = look() {
                break Some(run);
            }
            bed = self.bell.wait(bed).expect("nobody panics in bed");
        };
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        run
    }

    /// The job of run `run`, if it is still open; the helper is then inside.
    fn enter(&self, run: u64) -> Option<Job> {
        let is_open = |state: u64| state & OPEN != 0 && state / RUN == run;
        let inside = |state: u64| is_open(state).then_some(state + 1);
        self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, inside).ok()?;
        // SAFETY: inside an open run nobody writes the job: see `Shared`.
        unsafe { *self.job.get() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_is_run_once_whatever_the_size() {
        for threads in [1, 2, 3, 7] {
            let team = Team::new(threads);
            for round in 0..2_000 {
                let tasks = round % 37;
                let runs: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                team.run(tasks, &|thread, task| {
                    assert!(thread < threads, "threads are numbered from 0");
                    runs[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(runs.iter().all(|n| n.load(Ordering::Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn a_run_within_a_run_is_the_inner_callers_alone() {
        let team = Team::new(3);
        let count = AtomicU32::new(0);
        team.run(8, &|_, _| {
            team.run(5, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.load(Ordering::Relaxed), 40);
    }

    #[test]
    fn a_panic_in_a_task_is_the_callers_and_the_team_goes_on() {
        let team = Team::new(2);
        for bad in [0, 5, 63] {
            let run = catch_unwind(AssertUnwindSafe(|| {
                team.run(64, &|_, task| {
                    assert!(task != bad, "task {task} breaks");
                    std::thread::yield_now();
                });
            }));
            let panic = run.expect_err("the task broke");
            assert_eq!(panic.downcast_ref::<String>(), Some(&format!("task {bad} breaks")));
            let count = AtomicU32::new(0);
            team.run(64, &|_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.load(Ordering::Relaxed), 64, "after task {bad}");
        }
    }

    #[test]
    fn helpers_that_fell_asleep_are_woken() {
        let team = Team::new(2);
        let seen = AtomicU32::new(0);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            team.run(2, &|_, _| {
                // Both tasks wait for each other: one thread alone would never end.
                seen.fetch_add(1, Ordering::SeqCst);
                while !seen.load(Ordering::SeqCst).is_multiple_of(2) {
                    std::thread::yield_now();
                }
            });
        }
        assert_eq!(seen.load(Ordering::SeqCst), 6);
    }
}
