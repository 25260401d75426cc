//! Records in etcd v3 (3.4 and newer), and the leader's key under a lease.
//!
//! The term is the revision that created the leader's key, plus an offset that only grows: it is raised
//! when the world has seen a higher term than this etcd counts (put back from a backup). Every write of
//! a leader is a transaction guarded by that revision; the lease only tidies up after the dead. A lease
//! that could not be kept alive because etcd is away ends nothing until etcd itself says that it is over.

mod blobs;
mod wire;

use super::{Candidate, Leadership, Store, StoreError, async_trait};
use bytes::Bytes;
use elastic_control::Record;
use elastic_spec::{Digest, Term};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::watch;
pub use wire::EtcdTls;
use wire::{Client, Keys, Op};

pub struct Etcd {
    client: Arc<Client>,
    prefix: String,
    held: Mutex<Option<Held>>,
}

/// The leadership that this process last held; it may be over.
#[derive(Clone, Copy)]
struct Held {
    term: Term,
    revision: i64,
    lease: i64,
}

impl Etcd {
    /// Keys stand under `prefix/`. Fails if none of the hosts answers now: a wrong address should show.
    pub async fn connect(hosts: &[&str], prefix: &str, tls: Option<&EtcdTls>) -> anyhow::Result<Etcd> {
        let client = Arc::new(Client::new(hosts, tls).map_err(anyhow::Error::msg)?);
        let store = Etcd { client, prefix: prefix.trim_end_matches('/').to_string(), held: Mutex::new(None) };
        store.leader().await?;
        Ok(store)
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    /// All (key without the folder, value) under `folder/`, in pages that fit an answer.
    async fn list(&self, folder: &str) -> Result<Vec<(String, Bytes)>, StoreError> {
        let start = self.key(folder);
        let end = beyond(&start);
        let (mut from, mut all) = (start.clone(), Vec::new());
        loop {
            let page = self.client.range(Keys { from: from.clone(), end: end.clone() }, PAGE_KEYS).await?;
            for pair in page.kvs {
                let key = String::from_utf8_lossy(&pair.key).into_owned();
                from = format!("{key}\0");
                all.push((key[start.len()..].to_string(), pair.value));
            }
            if !page.more {
                return Ok(all);
            }
        }
    }

    /// Puts the leader's key if there is none. `None`: somebody was faster.
    async fn try_lead(&self, candidate: &Candidate) -> Result<Option<Held>, StoreError> {
        let lease = self.client.lease(LEASE_TTL_S).await?;
        let address = Bytes::from(candidate.address.clone());
        let put = Op::Put { key: self.key(LEADER), value: address, lease };
        let reply = self.client.guarded(&self.key(LEADER), 0, vec![put]).await?;
        let Some(header) = reply.header.filter(|_| reply.succeeded) else {
            self.client.revoke(lease).await?;
            return Ok(None);
        };
        let held = Held { term: Term(0), revision: header.revision, lease };
        self.with_term(held, candidate.above).await.map(Some)
    }

    /// Reads the offset, raises it if need be, and so knows the term.
    async fn with_term(&self, held: Held, above: Term) -> Result<Held, StoreError> {
        let revision = held.revision as u64;
        let stored = self.client.get(&self.key(OFFSET)).await?.unwrap_or_default();
        let offset: u64 = String::from_utf8_lossy(&stored).parse().unwrap_or(0);
        let needed = (above.0 + 1).saturating_sub(revision);
        if needed > offset {
            let raised = Op::Put { key: self.key(OFFSET), value: needed.to_string().into(), lease: 0 };
            self.write(held, vec![raised]).await?;
        }
        Ok(Held { term: Term(revision + offset.max(needed)), ..held })
    }

    /// A write that only the leader can make.
    async fn write(&self, held: Held, ops: Vec<Op>) -> Result<(), StoreError> {
        match self.client.guarded(&self.key(LEADER), held.revision, ops).await?.succeeded {
            true => Ok(()),
            false => Err(StoreError::Fenced(held.term)),
        }
    }

    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().expect("nobody panics while holding this lock")
    }
}

#[async_trait]
impl Store for Etcd {
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        loop {
            if self.leader().await?.is_none()
                && let Some(held) = self.try_lead(candidate).await?
            {
                *self.held() = Some(held);
                let (over, watched) = watch::channel(false);
                // Ends with the lease, or when nobody looks at it any more: nobody has to stop it.
                tokio::spawn(keep_alive(self.client.clone(), held.lease, over));
                return Ok(Leadership { term: held.term, over: watched });
            }
            tokio::time::sleep(CAMPAIGN_PERIOD).await;
        }
    }

    async fn resign(&self, term: Term) {
        let held = self.held().filter(|held| held.term == term);
        if let Some(held) = held {
            // If etcd is away, the lease runs out by itself.
            let _ = self.client.revoke(held.lease).await;
        }
    }

    async fn leader(&self) -> Result<Option<String>, StoreError> {
        let found = self.client.get(&self.key(LEADER)).await?;
        Ok(found.map(|address| String::from_utf8_lossy(&address).into_owned()))
    }

    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        let all = self.list(RECORDS).await?;
        Ok(all.into_iter().map(|(key, value)| Record { key, value: Some(value.into()) }).collect())
    }

    async fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError> {
        let held = self.held().filter(|held| held.term == term).ok_or(StoreError::Fenced(term))?;
        let mut ops = Vec::new();
        let mut bytes = 0;
        for record in records {
            let size = record.key.len() + record.value.as_ref().map_or(0, Vec::len) + OP_BYTES;
            if ops.len() == TXN_OPS_MAX || (bytes + size > TXN_BYTES_MAX && !ops.is_empty()) {
                self.write(held, std::mem::take(&mut ops)).await?;
                bytes = 0;
            }
            bytes += size;
            let key = self.key(&format!("{RECORDS}{}", record.key));
            ops.push(match &record.value {
                Some(value) => Op::Put { key, value: value.clone().into(), lease: 0 },
                None => Op::Delete { key },
            });
        }
        self.write(held, ops).await
    }

    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        blobs::put(self, digest, &bytes).await
    }

    async fn blob_bytes(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        blobs::length(self, digest).await
    }

    async fn get_blob(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        blobs::get(self, digest).await
    }

    async fn sweep_blobs(&self, keep: &BTreeSet<Digest>, age: Duration) -> Result<(), StoreError> {
        blobs::sweep(self, keep, age).await
    }

    fn trouble(&self) -> Option<String> {
        self.client.trouble()
    }
}

/// Beats until etcd says that the lease is over, or nobody leads by it any more.
async fn keep_alive(client: Arc<Client>, lease: i64, over: watch::Sender<bool>) {
    loop {
        let pause = match client.beat(lease).await {
            Ok(true) => BEAT_PERIOD,
            Ok(false) => break,
            Err(_) => RETRY_PERIOD,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = over.closed() => return,
        }
    }
    over.send_replace(true);
}

/// The first key behind all those that begin with `folder/`: '0' comes after '/'.
fn beyond(folder: &str) -> String {
    format!("{}0", folder.trim_end_matches('/'))
}

/// Three beats fit in it; below 2 s etcd rounds up anyway.
const LEASE_TTL_S: i64 = 5;
const BEAT_PERIOD: Duration = Duration::from_millis(1_500);
const RETRY_PERIOD: Duration = Duration::from_millis(300);
const CAMPAIGN_PERIOD: Duration = Duration::from_millis(250);
/// etcd's own defaults are 128 operations and 1.5 MiB.
const TXN_OPS_MAX: usize = 100;
const TXN_BYTES_MAX: usize = 1 << 20;
/// What an operation takes beside its key and value, generously.
const OP_BYTES: usize = 64;
const PAGE_KEYS: i64 = 32;
const LEADER: &str = "leader";
const OFFSET: &str = "term-offset";
const RECORDS: &str = "records/";
