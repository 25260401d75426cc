//! What may not be said yet, because the records behind it do not stand.
//!
//! Persist, then speak: replies to callers and acknowledged ends wait here until the store has taken
//! the records. Views and slots do not wait. They promise nothing: a leader that comes after without
//! these records rebuilds them from what agents report, so training goes on while the store is away.

use crate::meters::Meters;
use crate::store::{Store, StoreError};
use elastic_control::{Record, Reply, RequestId};
use elastic_spec::Term;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tracing::{info, warn};

pub(crate) struct Unsaid {
    store: Arc<dyn Store>,
    term: Term,
    /// On its way to the store, or to be sent again.
    sent: Batch,
    flight: Option<JoinHandle<Result<(), StoreError>>>,
    /// What came since.
    later: Batch,
    /// Why records wait.
    late: Option<String>,
    meters: Arc<Meters>,
}

#[derive(Default)]
struct Batch {
    /// Of several writes to one key the last counts.
    records: BTreeMap<String, Option<Vec<u8>>>,
    replies: Vec<(RequestId, Reply)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.records.is_empty() && self.replies.is_empty()
    }
}

/// What became of the records on their way.
pub(crate) enum Landed {
    /// These may be said now; `all` if nothing is left unsaid.
    Said {
        replies: Vec<(RequestId, Reply)>,
        all: bool,
    },
    Fenced,
}

impl Unsaid {
    pub fn new(store: Arc<dyn Store>, term: Term, meters: Arc<Meters>) -> Unsaid {
        Unsaid { store, term, sent: Batch::default(), flight: None, later: Batch::default(), late: None, meters }
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty() && self.later.is_empty()
    }

    /// Takes records, and the replies that wait for them, or for those before them.
    pub fn add(&mut self, records: Vec<Record>, replies: Vec<(RequestId, Reply)>) {
        self.later.records.extend(records.into_iter().map(|r| (r.key, r.value)));
        self.later.replies.extend(replies);
        self.start();
    }

    fn start(&mut self) {
        if self.sent.is_empty() {
            self.sent = std::mem::take(&mut self.later);
        }
        if self.sent.is_empty() || self.flight.is_some() {
            return;
        }
        let (store, term) = (self.store.clone(), self.term);
        let records: Vec<Record> =
            self.sent.records.iter().map(|(key, value)| Record { key: key.clone(), value: value.clone() }).collect();
        let is_again = self.late.is_some();
        let meters = self.meters.clone();
        self.flight = Some(tokio::spawn(async move {
            if is_again {
                tokio::time::sleep(RETRY_PERIOD).await;
            }
            let begun = Instant::now();
            let landed = store.commit(term, &records).await;
            meters.store_writes.observe(begun.elapsed());
            let outcome = match &landed {
                Ok(()) => "ok",
                Err(StoreError::Fenced(_)) => "fenced",
                Err(StoreError::Away(_)) => "away",
            };
            meters.store_commits.add([outcome, ""], 1);
            if landed.is_ok() {
                meters.store_records.fetch_add(records.len() as u64, Ordering::Relaxed);
            }
            landed
        }));
    }

    /// Returns when records have landed or were fenced; never, while there are none. May be dropped.
    pub async fn landed(&mut self) -> Landed {
        loop {
            let Some(flight) = &mut self.flight else { return std::future::pending().await };
            let landed = flight.await;
            self.flight = None;
            match landed {
                Ok(Ok(())) => {
                    if self.late.take().is_some() {
                        info!(term = %self.term, "the store has taken what waited");
                    }
                    let replies = std::mem::take(&mut self.sent).replies;
                    self.start();
                    return Landed::Said { replies, all: self.is_empty() };
                }
                Ok(Err(StoreError::Fenced(_))) => return Landed::Fenced,
                Ok(Err(StoreError::Away(why))) => self.retry(&why),
                Err(broken) => self.retry(&broken.to_string()),
            }
        }
    }

    fn retry(&mut self, why: &str) {
        if self.late.replace(why.to_string()).is_none() {
            warn!(term = %self.term, %why, "records wait for the store; views are still served");
        }
        self.start();
    }

    /// Why records wait, for those who ask.
    pub fn late(&self) -> Option<&String> {
        self.late.as_ref()
    }
}

impl Drop for Unsaid {
    fn drop(&mut self) {
        if let Some(flight) = &self.flight {
            flight.abort();
        }
    }
}

const RETRY_PERIOD: Duration = Duration::from_millis(300);
