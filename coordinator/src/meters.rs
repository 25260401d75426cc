//! What this coordinator counts of itself, where it happens; `web::metrics` writes it down for Prometheus.

use elastic_web::metrics::{Counts, Histogram};
use std::sync::atomic::AtomicU64;

#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// By method and outcome.
    pub requests: Counts,
    /// One event, from the machine's call to its effects.
    pub decisions: Histogram,
    /// One commit of records, whatever came of it.
    pub store_writes: Histogram,
    /// By outcome.
    pub store_commits: Counts,
    pub store_records: AtomicU64,
    /// What happened, by kind.
    pub notes: Counts,
}
