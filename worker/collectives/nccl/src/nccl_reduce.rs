//! [`DeviceReduce`] on NCCL's wire.

use crate::adder::Adder;
use crate::communicator::{ABORT_WAITS, Aborter, Communicator};
use crate::device_reduce::{Abort, DeviceReduce, Membership, Vectors};
use crate::error::{NcclError, Result};
use crate::plan::{Plan, Spread, plan};
use crate::round::{self, Memory};
use crate::stream_wait::{is_done_within, leak};
use elastic_cuda::driver::{Arena, Span};
use elastic_spec::layout::Layout;
use std::sync::Arc;
use std::time::Duration;

/// The rounds of a view's members on a communicator of theirs.
pub struct NcclReduce {
    // Dropped in this order: an abort ends what the stream waits for, and only then can memory be freed.
    communicator: Communicator,
    inbox: Span,
    adder: Arc<Adder>,
    plan: Plan,
    layout: Layout,
    shards: u16,
}

impl NcclReduce {
    /// The communicator's ranks are the view's active members, in their order.
    pub fn new(
        communicator: Communicator,
        membership: Membership<'_>,
        spread: Spread,
        adder: Arc<Adder>,
    ) -> Result<NcclReduce> {
        let Membership { view, rank, layout } = membership;
        let plan = plan(view, layout, rank, spread);
        let inbox = Arena::new(adder.stream().context(), plan.inbox_bytes as u64)?.whole();
        Ok(NcclReduce { communicator, inbox, adder, plan, layout, shards: view.shards() })
    }

    /// NCCL's own sum of f32, **not exact**: [`Communicator::all_reduce_fast`]. For benches.
    pub fn all_reduce_fast(&mut self, from: &Span, to: &Span, patience: Duration) -> Result<()> {
        let stream = self.adder.stream();
        assert!(from.bytes() == to.bytes(), "both have as many floats");
        let (floats, from_at, to_at) = (from.bytes() as usize / 4, from.address() as usize, to.address() as usize);
        // SAFETY: both spans have so many floats, and are kept until the stream is done, or leaked.
        let put = unsafe { self.communicator.all_reduce_fast(from_at, to_at, floats, stream.handle(), patience) };
        let is_done = || stream.is_done().map_err(|error| error.to_string());
        let done = put.and_then(|()| self.communicator.finish(patience, is_done));
        done.map_err(|error| self.end(error, [from, to]))
    }

    /// After an error: aborts, and waits until nothing on the GPU uses the memories any more.
    fn end<'a>(&self, error: NcclError, memories: impl IntoIterator<Item = &'a Span>) -> NcclError {
        let aborted = self.communicator.aborter().abort();
        let ended = aborted.and_then(|()| is_done_within(self.adder.stream(), ABORT_WAITS));
        match ended {
            Ok(()) => error,
            Err(worse) => {
                leak(memories);
                leak([&self.inbox]);
                worse
            }
        }
    }
}

impl DeviceReduce for NcclReduce {
    fn reduce(&mut self, vectors: Vectors<'_>, patience: Duration) -> Result<()> {
        let Vectors { segments, reduced, after } = vectors;
        self.adder.stream().wait_for(after)?;
        let memory =
            Memory { segments: segments.iter().map(span).collect(), inbox: span(&self.inbox), reduced: span(reduced) };
        let mut adding = self.adder.with(self.layout, self.shards);
        // SAFETY: the spans are kept until the stream is done, or leaked; whether somebody else writes to them meanwhile
        // decides bits, and nothing of this process.
        let run = unsafe { round::run(&mut self.communicator, &self.plan, &memory, &mut adding, patience) };
        run.map_err(|error| self.end(error, segments.iter().chain([reduced])))
    }

    fn aborter(&self) -> Arc<dyn Abort> {
        Arc::new(self.communicator.aborter())
    }

    fn close(self: Box<Self>, patience: Duration) -> Result<()> {
        self.communicator.close(patience)
    }
}

impl Abort for Aborter {
    fn abort(&self) -> Result<()> {
        Aborter::abort(self)
    }
}

fn span(of: &Span) -> round::Span {
    round::Span { address: of.address() as usize, bytes: of.bytes() as usize }
}
