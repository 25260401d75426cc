//! Who may touch a communicator, and when: one call at a time, and whoever aborts waits for the call to return.
//!
//! NCCL frees a communicator when it is aborted, and a thread that is inside a call on it would go on in freed memory.
//! Since no call of a communicator that does not block takes long, waiting for it is how an abort stays safe. A whole
//! group (start, sends, receives, end) is one call here: NCCL keeps an open group in its thread, with pointers to
//! the communicator in it.

use crate::error::{NcclError, Result};
use crate::ffi::ncclComm_t;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A communicator's pointer, which may be used by one thread at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle(pub ncclComm_t);

// SAFETY: NCCL binds no communicator to a thread; `Lending` sees to it that one thread at a time uses it.
unsafe impl Send for Handle {}

enum State {
    Idle(Handle),
    Lent(Handle, Loan),
    /// Lent, and whoever wanted to end it has gone: the borrower ends it, if it ever comes back.
    GivenUp(Handle),
    Over,
}

/// A call that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Loan {
    pub call: &'static str,
    pub since: Instant,
}

/// What one who wants to end a communicator finds.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is the caller's to end.
    Whole(Handle),
    /// Another thread is still inside a call.
    Lent(Handle, Loan),
    /// Somebody has ended it.
    Gone,
}

struct Inner {
    state: State,
    /// No call begins once an end was asked for.
    is_cut: bool,
}

pub(crate) struct Lending {
    inner: Mutex<Inner>,
    returned: Condvar,
}

impl Lending {
    pub fn new(handle: Handle) -> Lending {
        let inner = Inner { state: State::Idle(handle), is_cut: false };
        Lending { inner: Mutex::new(inner), returned: Condvar::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn lend(&self, call: &'static str) -> Result<Handle> {
        let mut inner = self.inner();
        match inner.state {
            State::Idle(handle) if !inner.is_cut => {
                inner.state = State::Lent(handle, Loan { call, since: Instant::now() });
                Ok(handle)
            }
            _ => Err(NcclError::Aborted { call }),
        }
    }

    /// After the call. A handle that comes out is the caller's to end.
    pub fn give_back(&self) -> Option<Handle> {
        let mut inner = self.inner();
        let mut left_over = None;
        inner.state = match inner.state {
            State::Lent(handle, _) | State::Idle(handle) => State::Idle(handle),
            State::GivenUp(handle) => {
                left_over = Some(handle);
                State::Over
            }
            State::Over => State::Over,
        };
        self.returned.notify_all();
        left_over
    }

    /// Lets no call begin from now on, and waits for the one that is under way.
    pub fn take(&self, patience: Duration) -> Taken {
        let until = Instant::now() + patience;
        let mut inner = self.inner();
        inner.is_cut = true;
        loop {
            match inner.state {
                State::Idle(handle) => {
                    inner.state = State::Over;
                    return Taken::Whole(handle);
                }
                State::Over | State::GivenUp(_) => return Taken::Gone,
                State::Lent(handle, loan) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Taken::Lent(handle, loan);
                    }
                    inner = self.returned.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// Leaves it to the borrower. If that has just come back, it is the caller's to end after all.
    pub fn give_up(&self) -> Option<Handle> {
        let mut inner = self.inner();
        let mut back = None;
        inner.state = match inner.state {
            State::Idle(handle) => {
                back = Some(handle);
                State::Over
            }
            State::Lent(handle, _) | State::GivenUp(handle) => State::GivenUp(handle),
            State::Over => State::Over,
        };
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::dangling_mut;
    use std::sync::Arc;
    use std::thread;

    const LONG: Duration = Duration::from_secs(60);
    const NONE: Duration = Duration::ZERO;

    fn lending() -> Arc<Lending> {
        Arc::new(Lending::new(Handle(dangling_mut())))
    }

    #[test]
    fn no_call_begins_on_what_was_taken() {
        let lending = lending();
        assert!(matches!(lending.take(NONE), Taken::Whole(_)));
        assert_eq!(lending.lend("ncclSend").unwrap_err(), NcclError::Aborted { call: "ncclSend" });
        assert!(matches!(lending.take(NONE), Taken::Gone), "it is ended once");
    }

    #[test]
    fn who_takes_waits_for_the_call_that_is_under_way() {
        let lending = lending();
        lending.lend("ncclSend").unwrap();
        assert!(matches!(lending.take(NONE), Taken::Lent(_, Loan { call: "ncclSend", .. })));
        assert!(lending.lend("ncclRecv").is_err(), "an end was asked for");
        let taker = {
            let lending = lending.clone();
            thread::spawn(move || matches!(lending.take(LONG), Taken::Whole(_)))
        };
        assert!(lending.give_back().is_none());
        assert!(taker.join().unwrap());
    }

    #[test]
    fn who_comes_back_late_ends_it() {
        let lending = lending();
        lending.lend("ncclSend").unwrap();
        assert!(lending.give_up().is_none());
        assert!(matches!(lending.take(NONE), Taken::Gone));
        assert!(lending.give_back().is_some());
        assert!(lending.give_back().is_none(), "once");
    }

    #[test]
    fn who_gives_up_just_as_it_comes_back_ends_it() {
        let lending = lending();
        lending.lend("ncclSend").unwrap();
        lending.give_back();
        assert!(lending.give_up().is_some());
    }
}
