//! A store that forgets with its process: for tests, and for clusters that nobody will miss.

use super::seat::Seat;
use super::{Candidate, Leadership, Store, StoreError, async_trait};
use bytes::Bytes;
use elastic_control::Record;
use elastic_spec::{Digest, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Memory {
    seat: Seat,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    term: u64,
    records: BTreeMap<String, Vec<u8>>,
    blobs: BTreeMap<Digest, (Bytes, Instant)>,
}

impl Memory {
    pub fn new() -> Memory {
        Memory::default()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nobody panics while holding the store's lock")
    }
}

#[async_trait]
impl Store for Memory {
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        loop {
            self.seat.free().await;
            let term = {
                let mut inner = self.inner();
                inner.term = inner.term.max(candidate.above.0) + 1;
                Term(inner.term)
            };
            if let Some(leadership) = self.seat.take(term, &candidate.address) {
                return Ok(leadership);
            }
        }
    }

    async fn resign(&self, term: Term) {
        self.seat.leave(term);
    }

    async fn leader(&self) -> Result<Option<String>, StoreError> {
        Ok(self.seat.address())
    }

    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        let all = |(key, value): (&String, &Vec<u8>)| Record { key: key.clone(), value: Some(value.clone()) };
        Ok(self.inner().records.iter().map(all).collect())
    }

    async fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError> {
        let mut inner = self.inner();
        self.seat.check(term)?;
        for record in records {
            match &record.value {
                Some(value) => inner.records.insert(record.key.clone(), value.clone()),
                None => inner.records.remove(&record.key),
            };
        }
        Ok(())
    }

    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        self.inner().blobs.insert(digest, (bytes, Instant::now()));
        Ok(())
    }

    async fn blob_bytes(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        Ok(self.inner().blobs.get(&digest).map(|(bytes, _)| bytes.len() as u64))
    }

    async fn get_blob(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        Ok(self.inner().blobs.get(&digest).map(|(bytes, _)| bytes.clone()))
    }

    async fn sweep_blobs(&self, keep: &BTreeSet<Digest>, age: Duration) -> Result<(), StoreError> {
        self.inner().blobs.retain(|digest, (_, put)| keep.contains(digest) || put.elapsed() < age);
        Ok(())
    }
}
