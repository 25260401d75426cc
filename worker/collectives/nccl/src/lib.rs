//! NCCL as the wire of the exact reduction between GPUs: loaded at run time, never waited for without a bound, and
//! aborted from another thread when a member is lost.
//!
//! NCCL's own all-reduce adds in an order that depends on the number of ranks, so it never adds here. Contributions go to the
//! owners of chunks by grouped sends and receives, owners add along the tree by kernels of their own, and the finished
//! chunks go to everyone. What of this has run on a GPU, and what has not: `docs/gpu-nccl.md`.
//!
//! | part | is |
//! |---|---|
//! | [`plan`](mod@plan) | which bytes go to whom in a round: a pure function of view, layout and rank |
//! | [`meeting`] | how the members of a view come to one communicator: pure, on frames of our own |
//! | [`Nccl`] | the library: found, loaded, its version checked |
//! | [`Communicator`] | the members of one view: made, used by one thread, aborted by any, closed in order |
//! | [`round`], [`Adder`] | runs a plan on a communicator, and its sums on the GPU |
//! | [`DeviceReduce`] | a round from GPU memory to GPU memory, by NCCL ([`NcclReduce`]) or our own links ([`StagedReduce`]) |
//! | [`environment`] | what lets several ranks share one GPU |
//! | [`selftest`] | what is to be run where there are a GPU and NCCL |
//!
//! A crate of its own, so that `elastic-collectives` stays free of device libraries and of `unsafe`.

mod adder;
pub mod communicator;
mod config;
mod device_reduce;
pub mod environment;
mod error;
pub mod ffi;
mod group_wire;
mod lending;
mod library;
pub mod meeting;
mod nccl_reduce;
pub mod plan;
pub mod round;
pub mod selftest;
mod staged;
mod stream_wait;
mod version;

pub use adder::{Adder, Adding};
pub use communicator::{Aborter, Communicator, Seat};
pub use config::Config;
pub use device_reduce::{Abort, DeviceReduce, Membership, Vectors};
pub use error::{NcclError, Result};
pub use group_wire::GroupWire;
pub use library::{Nccl, OPTIONAL, UniqueId};
pub use nccl_reduce::NcclReduce;
pub use plan::{Plan, Spread, plan};
pub use staged::{HostWire, StagedReduce};
pub use version::{OLDEST, Version};
