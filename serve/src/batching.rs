//! Requests of one model wait here until they are computed, several in one call where that is worth it.
//!
//! What is admitted and which requests form a batch are decided by [`queue`], a function of (queue, event, now).
//! [`crew`] is its shell: threads that compute, and callers that wait.

pub mod crew;
pub mod queue;

use std::time::Duration;

/// How a model's requests are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Rows computed in one call at most. A request with more is computed in pieces.
    pub rows_max: usize,
    /// How long a batch that is not full waits for more.
    pub delay: Duration,
    /// Requests that wait at most.
    pub requests_max: usize,
    /// Their bytes at most.
    pub bytes_max: usize,
    /// A model whose full batch takes less is computed by the threads that read requests: handing it to another
    /// and back costs more. Nothing is, if batches wait for more.
    pub quick: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            rows_max: 64,
            delay: Duration::ZERO,
            requests_max: 1024,
            bytes_max: crate::limits::QUEUE_BYTES_MAX,
            quick: crate::limits::QUICK_MAX,
        }
    }
}
