//! The exact reduction of a round between GPUs, whatever carries it: each rank brings the sums of its subtrees in its
//! GPU's memory, and all have the whole sum in theirs at the end, with the same bits by any way.
//!
//! | way | carries |
//! |---|---|
//! | [`NcclReduce`](crate::NcclReduce) | from GPU to GPU, owners add on the GPU |
//! | [`StagedReduce`](crate::StagedReduce) | through the host's memory, over our own transports, owners add there |
//!
//! Either is made for one view and ends with it. The view's meeting, and what to do after an error, are the caller's.

use crate::error::Result;
use elastic_cuda::driver::{Event, Span};
use elastic_spec::Rank;
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::view::View;
use std::sync::Arc;
use std::time::Duration;

/// A rank's part in the rounds of a view.
#[derive(Clone, Copy, Debug)]
pub struct Membership<'a> {
    pub view: &'a View,
    pub rank: Rank,
    pub layout: Layout,
}

impl Membership<'_> {
    /// The subtrees whose sums this rank brings: the largest that its shards fill, from left to right.
    pub fn segments(&self) -> Vec<TreeNode> {
        tree::cover(self.view.shards(), |shard| self.view.is_mapped_to(shard, self.rank))
    }

    /// Bytes of a subtree's sum and of the reduced value, each a flat vector: all floats, then the tail.
    pub fn flat_bytes(&self) -> usize {
        self.layout.floats * 4 + Tail::BYTES
    }
}

/// The memories of one round, all of one GPU.
#[derive(Clone, Copy)]
pub struct Vectors<'a> {
    /// For each of [`Membership::segments`] its sum. Only read, so that they can go out again in the next view.
    pub segments: &'a [Span],
    /// Where the round's value goes. After an error what it holds is of no worth.
    pub reduced: &'a Span,
    /// Reached when the segments are written. One that was never marked is taken for reached.
    pub after: &'a Event,
}

/// The rounds of one view. Every active rank has one, of the same way.
pub trait DeviceReduce: Send {
    /// One round, to its end: then `reduced` is written, and no stream need wait for it. Every rank calls it equally often.
    ///
    /// After an error the memories are the caller's again, as after a success, and this value is of no more use: the members
    /// meet again in the next view. But for [`NcclError::Stuck`](crate::NcclError::Stuck) and
    /// [`NcclError::Hung`](crate::NcclError::Hung), after which the process must end.
    fn reduce(&mut self, vectors: Vectors<'_>, patience: Duration) -> Result<()>;

    /// What ends a round that is under way, from any thread.
    fn aborter(&self) -> Arc<dyn Abort>;

    /// Lets all ranks come to an end together. Every rank closes; one that does not is an error here.
    fn close(self: Box<Self>, patience: Duration) -> Result<()>;
}

/// Ends rounds from any thread, at any time, more than once.
pub trait Abort: Send + Sync {
    /// A round that is under way ends with an error soon, and none begins any more.
    fn abort(&self) -> Result<()>;
}
