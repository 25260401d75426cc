//! Work that stands behind: what loads or frees a version has a tenth of the weight that those have who answer.
//!
//! Not SCHED_IDLE: a server that makes batches of what waits hardly leaves a core idle even at half of its capacity, and
//! a load then never ends. Here it ends at ten times its own time at worst, and in its own where there is a core to spare.

use rustix::process::{getpriority_process, setpriority_process};
use std::panic::resume_unwind;

/// Each step is a factor of 1.25 (sched(7)): 9.3 in all.
const NICE: i32 = 10;

/// Runs it, `behind` on a thread of its own, and waits. Threads that it starts then stand behind as well, for good: the way
/// back is not open to everybody.
pub fn run<T: Send>(behind: bool, work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    if !behind {
        return work();
    }
    std::thread::scope(|scope| {
        let quiet = || {
            step_back();
            work()
        };
        let thread = std::thread::Builder::new().name("load".into()).spawn_scoped(scope, quiet);
        let thread = thread.map_err(|error| format!("start a thread to load on: {error}"))?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// From now on this thread stands behind. Where the system does not know that, it does not.
pub fn step_back() {
    if let Ok(now) = getpriority_process(None) {
        let _ = setpriority_process(None, now + NICE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_stands_behind_and_who_waits_for_it_does_not() {
        let before = getpriority_process(None).unwrap();
        let behind = run(true, || Ok(getpriority_process(None).unwrap())).unwrap();
        assert_eq!(behind, (before + NICE).min(19));
        assert_eq!(run(false, || Ok(getpriority_process(None).unwrap())), Ok(before));
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn what_it_comes_to_comes_back_a_panic_too() {
        assert_eq!(run(true, || Err::<(), _>("no".into())), Err("no".into()));
        let panic = std::panic::catch_unwind(|| run(true, || -> Result<(), String> { resume_unwind(Box::new(7)) }));
        assert_eq!(panic.unwrap_err().downcast_ref(), Some(&7));
    }
}
