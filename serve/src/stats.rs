//! What one version of a model has done, counted as Triton counts it: a request counts once as success or failure, its
//! rows are inferences, a call of the network is an execution. Times are sums over requests, in µs.

use crate::batching::crew::Times;
use crate::clock::unix_ms;
use crate::refusal::{Reason, Refusal};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Upper bounds of the histogram of request times, in µs.
pub const BOUNDS_US: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000, 10_000_000];

#[derive(Debug, Default)]
pub struct Stats {
    success: AtomicU64,
    failure: [AtomicU64; Reason::ALL.len()],
    fail_us: AtomicU64,
    rows: AtomicU64,
    executions: AtomicU64,
    pending: AtomicI64,
    request_us: AtomicU64,
    queue_us: AtomicU64,
    input_us: AtomicU64,
    infer_us: AtomicU64,
    output_us: AtomicU64,
    last_ms: AtomicU64,
    /// Requests up to each bound, and above the last.
    histogram: [AtomicU64; BOUNDS_US.len() + 1],
    batches: Mutex<BTreeMap<usize, Batch>>,
}

/// Executions of one size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub count: u64,
    pub input_us: u64,
    pub infer_us: u64,
}

/// All of it at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub success: u64,
    pub failure: [u64; Reason::ALL.len()],
    pub fail_us: u64,
    pub rows: u64,
    pub executions: u64,
    pub pending: i64,
    pub request_us: u64,
    pub times: Times,
    pub last_ms: u64,
    pub histogram: [u64; BOUNDS_US.len() + 1],
    pub batches: BTreeMap<usize, Batch>,
}

impl Stats {
    /// A request has its answer.
    pub fn answered(&self, request_us: u64, times: &Times) {
        self.success.fetch_add(1, Relaxed);
        self.request_us.fetch_add(request_us, Relaxed);
        self.queue_us.fetch_add(times.queue_us, Relaxed);
        self.input_us.fetch_add(times.input_us, Relaxed);
        self.infer_us.fetch_add(times.infer_us, Relaxed);
        self.output_us.fetch_add(times.output_us, Relaxed);
        let bucket = BOUNDS_US.iter().position(|bound| request_us <= *bound).unwrap_or(BOUNDS_US.len());
        self.histogram[bucket].fetch_add(1, Relaxed);
    }

    pub fn refused(&self, request_us: u64, refusal: &Refusal) {
        let at = Reason::ALL.iter().position(|reason| *reason == refusal.reason()).expect("all reasons are listed");
        self.failure[at].fetch_add(1, Relaxed);
        self.fail_us.fetch_add(request_us, Relaxed);
    }

    /// The network was called once.
    pub fn executed(&self, rows: usize, times: &Times) {
        self.rows.fetch_add(rows as u64, Relaxed);
        self.executions.fetch_add(1, Relaxed);
        self.last_ms.store(unix_ms(), Relaxed);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        // Sizes are at most the policy's or those of large single requests; the latter share their power of two.
        let size = if rows <= SIZES_EXACT { rows } else { rows.next_power_of_two() };
        let batch = batches.entry(size).or_default();
        batch.count += 1;
        batch.input_us += times.input_us;
        batch.infer_us += times.infer_us;
    }

    pub fn pending(&self, change: i64) {
        self.pending.fetch_add(change, Relaxed);
    }

    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Relaxed);
        Counts {
            success: read(&self.success),
            failure: self.failure.each_ref().map(read),
            fail_us: read(&self.fail_us),
            rows: read(&self.rows),
            executions: read(&self.executions),
            pending: self.pending.load(Relaxed),
            request_us: read(&self.request_us),
            times: Times {
                queue_us: read(&self.queue_us),
                input_us: read(&self.input_us),
                infer_us: read(&self.infer_us),
                output_us: read(&self.output_us),
            },
            last_ms: read(&self.last_ms),
            histogram: self.histogram.each_ref().map(read),
            batches: self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Batch sizes that are counted each by itself.
const SIZES_EXACT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    /// (requests with so many rows each, of one execution) …, then success, count, executions.
    fn check(executions: &[&[usize]], expected: [u64; 3]) {
        let stats = Stats::default();
        for requests in executions {
            stats.executed(requests.iter().sum(), &Times::default());
            requests.iter().for_each(|_| stats.answered(1, &Times::default()));
        }
        let counts = stats.counts();
        assert_eq!([counts.success, counts.rows, counts.executions], expected);
    }

    /// The worked examples of Triton's documentation of its metrics.
    #[test]
    fn requests_rows_and_executions_are_counted_as_triton_counts_them() {
        check(&[&[1]], [1, 1, 1]);
        check(&[&[8]], [1, 8, 1]);
        check(&[&[1], &[8]], [2, 9, 2]);
        check(&[&[1, 1]], [2, 2, 1]);
        check(&[&[1, 8]], [2, 9, 1]);
    }

    #[test]
    fn a_refusal_is_counted_under_its_reason() {
        let stats = Stats::default();
        stats.refused(5, &Refusal::Full { what: "x".into(), retry_after_s: 1 });
        stats.refused(5, &Refusal::Cancelled);
        stats.refused(5, &Refusal::Internal("x".into()));
        stats.refused(5, &Refusal::invalid("x"));
        assert_eq!((stats.counts().failure, stats.counts().fail_us), ([1, 1, 1, 1], 20));
    }
}
