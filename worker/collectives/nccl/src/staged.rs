//! [`DeviceReduce`] through the host's memory: sums are copied out of the GPU, our own transports carry them and add them
//! up there, and what is finished is copied in. The way without NCCL, bound by PCIe; the bits are the same.
//!
//! Frames keep what they carry for as long as a peer may ask for it again. So a sum is copied into pinned memory that the
//! frames share, and that is used anew once the last of them is gone.

use crate::communicator::ABORT_WAITS;
use crate::device_reduce::{Abort, DeviceReduce, Membership, Vectors};
use crate::error::{NcclError, Result};
use crate::plan::flat;
use crate::stream_wait::{is_done_within, leak};
use bytes::Bytes;
use elastic_cuda::driver::{Context, PinnedBytes, Span, Stream};
use elastic_spec::layout::Layout;
use elastic_spec::tree::TreeNode;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What carries a round between the members' hosts, and adds it up along the tree there.
pub trait HostWire: Send {
    /// One round. `sums`: by chunk, those of this rank's subtrees. Gives the finished chunks in their order.
    fn reduce(&mut self, sums: Vec<Vec<(TreeNode, Bytes)>>, patience: Duration) -> Result<Vec<Bytes>>;

    /// What ends a round that is under way, from any thread.
    fn aborter(&self) -> Arc<dyn Abort>;

    /// Lets all members come to an end together.
    fn close(self, patience: Duration) -> Result<()>
    where
        Self: Sized;
}

/// The rounds of a view's members over a wire between their hosts.
pub struct StagedReduce<W> {
    wire: W,
    stream: Stream,
    segments: Vec<TreeNode>,
    layout: Layout,
    pool: Pool,
}

impl<W: HostWire> StagedReduce<W> {
    pub fn new(context: &Arc<Context>, membership: Membership<'_>, wire: W) -> Result<StagedReduce<W>> {
        let pool = Pool { context: context.clone(), bytes: membership.flat_bytes(), all: Vec::new() };
        let (segments, layout) = (membership.segments(), membership.layout);
        Ok(StagedReduce { wire, stream: Stream::new(context)?, segments, layout, pool })
    }

    fn check(&self, vectors: &Vectors<'_>) -> Result<()> {
        let check = |region: String, room: usize, needed: usize| match room < needed {
            true => Err(NcclError::Room { region, room, needed }),
            false => Ok(()),
        };
        check("the list of segments".into(), vectors.segments.len(), self.segments.len())?;
        for (segment, span) in vectors.segments.iter().enumerate() {
            check(format!("segment {segment}"), span.bytes() as usize, self.pool.bytes)?;
        }
        check("the reduced value".into(), vectors.reduced.bytes() as usize, self.pool.bytes)
    }

    /// This rank's sums, once the copies are done.
    fn copied_out(&mut self, vectors: &Vectors<'_>, patience: Duration) -> Result<Vec<Arc<PinnedBytes>>> {
        let taken = self.segments.iter().map(|_| self.pool.take()).collect::<Result<Vec<_>>>();
        let mut sums = taken?;
        let put = self.put_out(vectors, &mut sums);
        self.settle(put, vectors, &sums, patience)?;
        Ok(sums)
    }

    fn put_out(&self, vectors: &Vectors<'_>, sums: &mut [Arc<PinnedBytes>]) -> Result<()> {
        self.stream.wait_for(vectors.after)?;
        for (sum, from) in sums.iter_mut().zip(vectors.segments) {
            let from = from.part(0, self.pool.bytes as u64)?;
            // SAFETY: nobody else has the pinned memory; both sides are kept until the stream is done, or leaked: `settle`.
            unsafe { self.stream.copy_out_later(alone(sum), 0..self.pool.bytes, &from)? };
        }
        Ok(())
    }

    /// By chunk, as the wire takes them: parts of the sums, which they keep.
    fn by_chunk(&self, sums: &[Arc<PinnedBytes>]) -> Vec<Vec<(TreeNode, Bytes)>> {
        let whole: Vec<Bytes> = sums.iter().map(|sum| Bytes::from_owner(Shared(sum.clone()))).collect();
        let of_chunk = |chunk: u32| {
            let parts = self.segments.iter().zip(&whole);
            parts.map(|(node, bytes)| (*node, bytes.slice(flat(self.layout, chunk)))).collect()
        };
        (0..self.layout.chunks()).map(of_chunk).collect()
    }

    fn copied_in(&mut self, chunks: &[Bytes], vectors: &Vectors<'_>) -> Result<()> {
        let wanted: Vec<usize> = (0..self.layout.chunks()).map(|chunk| self.layout.bytes(chunk)).collect();
        if !chunks.iter().map(Bytes::len).eq(wanted) {
            return Err(NcclError::Wire("other chunks than the layout's came".into()));
        }
        let mut pinned = [self.pool.take()?];
        let put = self.put_in(chunks, &mut pinned[0], vectors.reduced);
        self.settle(put, vectors, &pinned, Duration::ZERO)?;
        self.pool.all.extend(pinned);
        Ok(())
    }

    /// A chunk is on its way while the next is put into pinned memory.
    fn put_in(&self, chunks: &[Bytes], pinned: &mut Arc<PinnedBytes>, reduced: &Span) -> Result<()> {
        let pinned = alone(pinned);
        for (chunk, bytes) in (0u32..).zip(chunks) {
            let range = flat(self.layout, chunk);
            pinned.as_mut_slice()[range.clone()].copy_from_slice(bytes);
            let to = reduced.part(range.start as u64, range.len() as u64)?;
            // SAFETY: each range is written before its copy and not after; the rest as in `put_out`.
            unsafe { self.stream.copy_in_later(&to, pinned, range)? };
        }
        Ok(())
    }

    /// Waits for copies that were put on the stream, or for those before the one that could not be. If the GPU does not
    /// come to their end, no memory is ever freed: that would wait for it.
    fn settle(
        &self,
        put: Result<()>,
        vectors: &Vectors<'_>,
        pinned: &[Arc<PinnedBytes>],
        patience: Duration,
    ) -> Result<()> {
        // An abort cannot end a copy, nor what the copies wait for on this GPU; what is there takes its time.
        let done = is_done_within(&self.stream, patience + ABORT_WAITS);
        if done.is_err() {
            leak(vectors.segments.iter().chain([vectors.reduced]));
            pinned.iter().for_each(|pinned| keep(pinned.clone()));
        }
        done.and(put)
    }
}

fn keep(pinned: Arc<PinnedBytes>) {
    let _kept = ManuallyDrop::new(pinned);
}

/// What the pool gives has no other owner.
fn alone(pinned: &mut Arc<PinnedBytes>) -> &mut PinnedBytes {
    Arc::get_mut(pinned).expect("the pool gives what nobody else has")
}

impl<W: HostWire> DeviceReduce for StagedReduce<W> {
    fn reduce(&mut self, vectors: Vectors<'_>, patience: Duration) -> Result<()> {
        let until = Instant::now() + patience;
        let left = || until.saturating_duration_since(Instant::now());
        self.check(&vectors)?;
        let sums = self.copied_out(&vectors, left())?;
        let by_chunk = self.by_chunk(&sums);
        self.pool.all.extend(sums);
        let chunks = self.wire.reduce(by_chunk, left())?;
        self.copied_in(&chunks, &vectors)
    }

    fn aborter(&self) -> Arc<dyn Abort> {
        self.wire.aborter()
    }

    fn close(self: Box<Self>, patience: Duration) -> Result<()> {
        self.wire.close(patience)
    }
}

/// Pinned memory for flat vectors: taking it anew costs ms, and each round needs it.
struct Pool {
    context: Arc<Context>,
    bytes: usize,
    /// Also what frames still share.
    all: Vec<Arc<PinnedBytes>>,
}

impl Pool {
    fn take(&mut self) -> Result<Arc<PinnedBytes>> {
        match self.all.iter_mut().position(|pinned| Arc::get_mut(pinned).is_some()) {
            Some(free) => Ok(self.all.swap_remove(free)),
            None => Ok(Arc::new(PinnedBytes::new(&self.context, self.bytes)?)),
        }
    }
}

/// Pinned memory as the bytes of frames.
struct Shared(Arc<PinnedBytes>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}
