//! The protocol of one rank as a state machine: compute, contribute, finish the tree, commit, redo,
//! catch up, linger. No clock, no socket, no thread: events come in with the time, effects go out.
//!
//! The shell (`elastic-worker`) owns links, the trainer and the disk; the simulator runs this same code.

mod event;

pub use event::{Config, Effect, Event};

/// Why a member is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaving {
    /// Every active member has the last round and its checkpoint is published.
    Finished,
    /// Handed over, as asked.
    Drained,
}
