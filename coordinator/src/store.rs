//! Where records and inputs outlive the coordinator, and who may write them.
//!
//! One contract, three stores, one conformance suite (`tests/coordinator/store.rs`):
//! * terms rise: each `campaign` on the same store, also after a crash, gets a higher term;
//! * a commit lands only while its term leads, and then whole (a commit too large for one transaction of
//!   the store lands in pieces, in the order given);
//! * after `commit` returned, the records survive kill -9;
//! * blobs are named by their digest and need no leader: whoever writes one writes the same bytes.
//!
//! What the records mean is `control`'s business.

mod embedded;
mod etcd;
mod memory;
mod seat;

pub use embedded::Embedded;
pub use etcd::{Etcd, EtcdTls};
pub use memory::Memory;

use bytes::Bytes;
use elastic_control::Record;
pub use elastic_proto::server::async_trait;
use elastic_spec::{Digest, Term};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Waits until the candidate leads. Dropping the future gives the attempt up.
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError>;

    /// Leads no more, if it does: the next candidate need not wait for a lease to run out.
    async fn resign(&self, term: Term);

    /// Where the present leader is.
    async fn leader(&self) -> Result<Option<String>, StoreError>;

    /// All records.
    async fn load(&self) -> Result<Vec<Record>, StoreError>;

    /// Writes the records if `term` leads.
    async fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError>;

    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError>;

    /// The length of a blob that is there.
    async fn blob_bytes(&self, digest: Digest) -> Result<Option<u64>, StoreError>;

    async fn get_blob(&self, digest: Digest) -> Result<Option<Bytes>, StoreError>;

    /// Drops blobs that are not in `keep` and were last put longer than `age` ago.
    async fn sweep_blobs(&self, keep: &BTreeSet<Digest>, age: Duration) -> Result<(), StoreError>;

    /// Why the store cannot be reached at present.
    fn trouble(&self) -> Option<String> {
        None
    }
}

/// Who wants to lead.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where callers reach it.
    pub address: String,
    /// A higher term than the store's was seen in the world (the store may have been put back from a
    /// backup): the new term must be above it.
    pub above: Term,
}

/// Leads until `over` says otherwise.
#[derive(Debug)]
pub struct Leadership {
    pub term: Term,
    over: watch::Receiver<bool>,
}

impl Leadership {
    /// Returns when it is certain that this leadership has ended. A store that cannot be reached ends
    /// nothing: then nobody else can have become leader without our term being fenced.
    pub async fn ended(&mut self) {
        // An error means that the store's side is gone, which ends the leadership as well.
        let _ = self.over.wait_for(|over| *over).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("term {0} leads no more")]
    Fenced(Term),
    /// It may or may not have taken effect; the same call may be made again.
    #[error("the store is away: {0}")]
    Away(String),
}
