//! The members of one view on NCCL's wire: made, used by one thread, aborted by any, closed in order.
//!
//! Who may do what is in the types. [`Joining`] can only wait. A [`Communicator`] is one thread's: its calls take
//! `&mut self`. An [`Aborter`] is anybody's, at any time. All calls are made not to block and are then waited for
//! here, with a bound: a lost rank is [`NcclError::Late`] or an error of NCCL's, never a hang. After any error the
//! communicator is of no more use; dropping it aborts it. The next view has a new one, from a new [`UniqueId`].

use crate::config::Config;
use crate::error::{NcclError, Result};
use crate::ffi::{FLOAT32, IN_PROGRESS, SUCCESS, SUM, UINT8, cudaStream_t, ncclComm_t};
use crate::lending::{Handle, Lending, Taken};
use crate::library::{Nccl, UniqueId};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::marker::PhantomData;
use elastic_spec::Rank;
use std::ptr::null_mut;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long an abort waits for a call that is under way, before it calls it back, and again before it gives up. A call
/// that does not block takes microseconds, or some ms where it connects two ranks.
pub const ABORT_WAITS: Duration = Duration::from_secs(2);

/// A rank's place in a communicator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seat {
    pub rank: Rank,
    pub world: u16,
}

/// One transfer of a group. Addresses are of memory that the device can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    Send { address: usize, bytes: usize, to: Rank },
    Receive { address: usize, bytes: usize, from: Rank },
    Broadcast { address: usize, bytes: usize, root: Rank },
}

struct Shared {
    nccl: Arc<Nccl>,
    lending: Lending,
    /// One ends it at a time, and who comes second knows that it is ended.
    ending: Mutex<()>,
}

/// A communicator that is being made: the other ranks may not be there yet.
pub struct Joining(Communicator, Seat);

/// A communicator that all of its ranks have joined.
pub struct Communicator {
    shared: Arc<Shared>,
    /// May go to another thread, but is in one at a time.
    one_thread: PhantomData<Cell<()>>,
}

/// Ends a communicator from any thread, whatever its own is at.
#[derive(Clone)]
pub struct Aborter {
    shared: Arc<Shared>,
}

impl Nccl {
    /// Begins to take a seat. Returns at once; [`Joining::ready`] waits for the others. The calling thread must have
    /// the seat's GPU current.
    pub fn join(self: &Arc<Nccl>, seat: Seat, id: UniqueId) -> Result<Joining> {
        if seat.rank.0 >= seat.world {
            return Err(NcclError::Seat { rank: seat.rank, world: seat.world });
        }
        let mut config = Config::not_blocking(self.version());
        let (world, rank) = (c_int::from(seat.world), c_int::from(seat.rank.0));
        let mut communicator: ncclComm_t = null_mut();
        // SAFETY: the configuration is as NCCL's initializer makes it, and lives through the call, which copies it.
        let code = unsafe { (self.functions.join)(&mut communicator, world, id.for_c(), rank, &mut config.0) };
        self.check("ncclCommInitRankConfig", code, null_mut())?;
        let lending = Lending::new(Handle(communicator));
        let shared = Arc::new(Shared { nccl: self.clone(), lending, ending: Mutex::new(()) });
        Ok(Joining(Communicator { shared, one_thread: PhantomData }, seat))
    }
}

impl Joining {
    pub fn aborter(&self) -> Aborter {
        Aborter { shared: self.0.shared.clone() }
    }

    /// Waits until every rank has joined.
    pub fn ready(self, patience: Duration) -> Result<Communicator> {
        const CALL: &str = "ncclCommInitRankConfig";
        let Joining(communicator, asked) = self;
        let shared = &communicator.shared;
        shared.settle(CALL, patience)?;
        let (mut world, mut rank) = (-1, -1);
        let functions = &shared.nccl.functions;
        // SAFETY: the communicator is lent to this call, and the function writes one int.
        shared.call("ncclCommCount", |Handle(c)| unsafe { (functions.count)(c, &mut world) })?;
        // SAFETY: as above.
        shared.call("ncclCommUserRank", |Handle(c)| unsafe { (functions.user_rank)(c, &mut rank) })?;
        let wanted = (c_int::from(asked.world), c_int::from(asked.rank.0));
        if (world, rank) != wanted {
            let text = format!("rank {} of {} was asked for, rank {rank} of {world} was given", wanted.1, wanted.0);
            return Err(NcclError::call(CALL, 3, "another seat".into(), text));
        }
        Ok(communicator)
    }
}

impl Communicator {
    pub fn aborter(&self) -> Aborter {
        Aborter { shared: self.shared.clone() }
    }

    /// Gives a group of transfers to the stream, and waits until NCCL has put all of them there; not until they are done:
    /// [`Communicator::finish`]. All of a group progress together, so their order matters only between the same two
    /// ranks.
    ///
    /// # Safety
    /// Each address is of so many bytes which the device can reach, and which nobody else touches until the stream has
    /// come to them and is through, or until the communicator was aborted. The stream is of the seat's GPU.
    pub unsafe fn exchange(&mut self, group: &[Transfer], stream: cudaStream_t, patience: Duration) -> Result<()> {
        if group.is_empty() {
            return Ok(());
        }
        let nccl = &self.shared.nccl;
        let mut failed = None;
        let ended = self.shared.call("ncclGroupEnd", |handle| {
            // SAFETY: takes no argument. What follows up to the end is in this thread, in one loan of the communicator.
            let code = unsafe { (nccl.functions.group_start)() };
            if let Err(error) = nccl.check("ncclGroupStart", code, handle.0) {
                failed = Some(error);
                return SUCCESS;
            }
            // A group that was begun must be ended, or the thread's next calls would be of the same group.
            // SAFETY: the caller of `exchange` answers for the addresses and the stream.
            failed = group.iter().find_map(|transfer| unsafe { put(nccl, handle, transfer, stream) }.err());
            // SAFETY: takes no argument.
            unsafe { (nccl.functions.group_end)() }
        });
        match failed {
            Some(error) => Err(error),
            None => ended.and_then(|()| self.shared.settle("ncclGroupEnd", patience)),
        }
    }

    /// Waits until the stream is through with what it was given, and looks out for errors of other ranks meanwhile.
    /// `is_done` asks the stream, and does not wait.
    pub fn finish(
        &mut self,
        patience: Duration,
        mut is_done: impl FnMut() -> std::result::Result<bool, String>,
    ) -> Result<()> {
        const CALL: &str = "the stream";
        let mut pause = Pause::new(patience);
        loop {
            let is_done = is_done().map_err(NcclError::Device)?;
            // Asked after the stream: an abort ends what is on the stream, and that looks like done.
            self.shared.state(CALL)?;
            if is_done {
                return Ok(());
            }
            pause.wait(CALL)?;
        }
    }

    /// NCCL's own sum of f32. **Not exact**: its order depends on the number of ranks. For benches.
    ///
    /// # Safety
    /// As for [`Communicator::exchange`], for both addresses, of `floats` f32 each.
    pub unsafe fn all_reduce_fast(
        &mut self,
        from: usize,
        to: usize,
        floats: usize,
        stream: cudaStream_t,
        patience: Duration,
    ) -> Result<()> {
        const CALL: &str = "ncclAllReduce";
        let all_reduce = self.shared.nccl.functions.all_reduce;
        self.shared.call(CALL, |Handle(c)| {
            // SAFETY: the caller answers for the addresses and the stream.
            unsafe { all_reduce(from as *const c_void, to as *mut c_void, floats, FLOAT32, SUM, c, stream) }
        })?;
        self.shared.settle(CALL, patience)
    }

    /// Lets all ranks come to an end together, then frees it. Every rank must close it; one that does not is an error
    /// here, and the communicator is aborted.
    pub fn close(self, patience: Duration) -> Result<()> {
        let functions = &self.shared.nccl.functions;
        // SAFETY: the communicator is lent to this call.
        self.shared.call("ncclCommFinalize", |Handle(c)| unsafe { (functions.finalize)(c) })?;
        self.shared.settle("ncclCommFinalize", patience)?;
        let Taken::Whole(Handle(communicator)) = self.shared.lending.take(Duration::ZERO) else {
            return Err(NcclError::Aborted { call: "ncclCommDestroy" });
        };
        // SAFETY: it was finalized, all that it did is done, and it is taken: nobody else calls it, now or later.
        let code = unsafe { (functions.destroy)(communicator) };
        self.shared.nccl.check("ncclCommDestroy", code, null_mut())
    }
}

impl Aborter {
    /// Ends the communicator: what is under way on the device stops, and its memory may be used again. Waits for a
    /// call that its thread is in, at most twice [`ABORT_WAITS`]. Does nothing where it was closed or aborted before.
    pub fn abort(&self) -> Result<()> {
        self.shared.abort(ABORT_WAITS)
    }

    /// The same with a wait of one's own.
    pub fn abort_within(&self, patience: Duration) -> Result<()> {
        self.shared.abort(patience)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        // A drop has nobody to tell. Who wants to know calls `close` or `abort` before.
        let _ = self.shared.abort(ABORT_WAITS);
    }
}

impl Shared {
    /// Makes one call with the communicator lent to it.
    fn call(&self, call: &'static str, f: impl FnOnce(Handle) -> c_int) -> Result<()> {
        let handle = self.lending.lend(call)?;
        let code = f(handle);
        // Checked while it is still lent: NCCL's text for the code is asked of the communicator.
        let checked = self.nccl.check(call, code, handle.0);
        match self.lending.give_back() {
            Some(left_over) => {
                self.end(left_over)?;
                Err(NcclError::Aborted { call })
            }
            None => checked,
        }
    }

    /// The communicator's state: an error, or whether what was begun is done.
    fn state(&self, call: &'static str) -> Result<bool> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is lent to this call, and the function writes one int.
        self.call(call, |Handle(c)| match unsafe { (self.nccl.functions.async_error)(c, &mut state) } {
            SUCCESS => state,
            code => code,
        })?;
        Ok(state != IN_PROGRESS)
    }

    /// Waits until what was begun is done.
    fn settle(&self, call: &'static str, patience: Duration) -> Result<()> {
        let mut pause = Pause::new(patience);
        while !self.state(call)? {
            pause.wait(call)?;
        }
        Ok(())
    }

    fn abort(&self, patience: Duration) -> Result<()> {
        let _alone = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        let (handle, first) = match self.lending.take(patience) {
            Taken::Gone => return Ok(()),
            Taken::Whole(handle) => return self.end(handle),
            Taken::Lent(handle, loan) => (handle, loan),
        };
        if let Some(revoke) = self.nccl.functions.revoke {
            // SAFETY: the one call that is made while another may be under way. It frees nothing; it sets the flag that
            // makes the other return (the source of 2.28.9 begins with it).
            unsafe { revoke(handle.0, 0) };
            if let Taken::Whole(handle) = self.lending.take(patience) {
                return self.end(handle);
            }
        }
        match self.lending.give_up() {
            Some(handle) => self.end(handle),
            None => Err(NcclError::Stuck { call: first.call, waited_ms: first.since.elapsed().as_millis() }),
        }
    }

    fn end(&self, handle: Handle) -> Result<()> {
        // SAFETY: the handle was taken, so no call is under way on it and none begins: `Lending`.
        let code = unsafe { (self.nccl.functions.abort)(handle.0) };
        self.nccl.check("ncclCommAbort", code, null_mut())
    }
}

/// # Safety
/// Inside a group of this thread, with the communicator lent; the addresses and the stream are the caller's promise.
unsafe fn put(nccl: &Nccl, Handle(c): Handle, transfer: &Transfer, stream: cudaStream_t) -> Result<()> {
    let f = &nccl.functions;
    let rank = |Rank(rank): Rank| c_int::from(rank);
    match *transfer {
        Transfer::Send { address, bytes, to } => {
            // SAFETY: the caller's promise.
            let code = unsafe { (f.send)(address as *const c_void, bytes, UINT8, rank(to), c, stream) };
            nccl.check("ncclSend", code, c)
        }
        Transfer::Receive { address, bytes, from } => {
            // SAFETY: the caller's promise.
            let code = unsafe { (f.receive)(address as *mut c_void, bytes, UINT8, rank(from), c, stream) };
            nccl.check("ncclRecv", code, c)
        }
        Transfer::Broadcast { address, bytes, root } => {
            let (from, to) = (address as *const c_void, address as *mut c_void);
            // SAFETY: the caller's promise; in place on the root.
            let code = unsafe { (f.broadcast)(from, to, bytes, UINT8, rank(root), c, stream) };
            nccl.check("ncclBroadcast", code, c)
        }
    }
}

/// Waits ever longer between two looks, up to a bound on all of it.
struct Pause {
    started: Instant,
    patience: Duration,
    looks: u32,
}

impl Pause {
    /// At first a look is cheaper than a sleep: a group is put on its stream in microseconds.
    const SPINS: u32 = 200;
    const LONGEST: Duration = Duration::from_millis(1);

    fn new(patience: Duration) -> Pause {
        Pause { started: Instant::now(), patience, looks: 0 }
    }

    fn wait(&mut self, call: &'static str) -> Result<()> {
        let waited = self.started.elapsed();
        if waited >= self.patience {
            return Err(NcclError::Late { call, waited_ms: waited.as_millis() });
        }
        self.looks += 1;
        match self.looks.checked_sub(Pause::SPINS) {
            None => thread::yield_now(),
            Some(sleeps) => thread::sleep(Duration::from_micros(20 << sleeps.min(6)).min(Pause::LONGEST)),
        }
        Ok(())
    }
}
