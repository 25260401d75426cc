//! A thin etcd v3 client: the calls that the store needs, over any of several hosts.
//!
//! Own, because the client crate needs `protoc` on the machine that builds it.

use crate::store::StoreError;
use bytes::Bytes;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status, Streaming};
use tracing::{info, warn};

#[allow(clippy::all)]
mod pb {
    tonic::include_proto!("etcdserverpb");
}

pub(super) use pb::{RangeResponse, TxnResponse};
use pb::{kv_client::KvClient, lease_client::LeaseClient};

/// PEM texts: whom to trust, and what to show.
#[derive(Clone)]
pub struct EtcdTls {
    pub authority_pem: String,
    pub chain_pem: String,
    pub key_pem: String,
}

pub(super) struct Client {
    hosts: Vec<Channel>,
    /// The host that answered last.
    at: AtomicUsize,
    trouble: Mutex<Option<String>>,
}

/// A range of keys: `end` is not in it.
pub(super) struct Keys {
    pub from: String,
    pub end: String,
}

impl Client {
    pub fn new(hosts: &[&str], tls: Option<&EtcdTls>) -> Result<Client, String> {
        let channel = |host: &&str| {
            let scheme = if tls.is_some() { "https" } else { "http" };
            let bad = |e: tonic::transport::Error| format!("{host}: {e}");
            let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}")).map_err(bad)?;
            if let Some(tls) = tls {
                let authority = Certificate::from_pem(&tls.authority_pem);
                let own = Identity::from_pem(&tls.chain_pem, &tls.key_pem);
                let config = ClientTlsConfig::new().ca_certificate(authority).identity(own);
                endpoint = endpoint.tls_config(config).map_err(bad)?;
            }
            let endpoint = endpoint
                .connect_timeout(CALL_TIMEOUT / 2)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(3))
                .keep_alive_while_idle(true);
            Ok::<Channel, String>(endpoint.connect_lazy())
        };
        let hosts = hosts.iter().map(channel).collect::<Result<_, _>>()?;
        Ok(Client { hosts, at: AtomicUsize::new(0), trouble: Mutex::new(None) })
    }

    /// Why etcd did not answer the last time.
    pub fn trouble(&self) -> Option<String> {
        self.trouble.lock().expect("nobody panics while holding this lock").clone()
    }

    /// Notes whether etcd answers; says it when it changes.
    fn note(&self, now: Option<&str>) {
        let mut trouble = self.trouble.lock().expect("nobody panics while holding this lock");
        match (trouble.is_some(), now) {
            (false, Some(why)) => warn!(%why, "etcd is away: views are still served, nothing can be written"),
            (true, None) => info!("etcd is back"),
            _ => {}
        }
        *trouble = now.map(String::from);
    }

    /// One call with a bound on its time, at each host in turn until one answers.
    async fn call<T, F>(&self, make: impl Fn(Channel) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut why = String::new();
        for _ in 0..self.hosts.len() {
            let at = self.at.load(Ordering::Relaxed);
            match tokio::time::timeout(CALL_TIMEOUT, make(self.hosts[at].clone())).await {
                Ok(Ok(answer)) => {
                    self.note(None);
                    return Ok(answer.into_inner());
                }
                Ok(Err(status)) => why = words(&status),
                Err(_) => why = format!("no answer within {} s", CALL_TIMEOUT.as_secs()),
            }
            self.at.store((at + 1) % self.hosts.len(), Ordering::Relaxed);
        }
        self.note(Some(&why));
        Err(StoreError::Away(why))
    }

    pub async fn range(&self, keys: Keys, limit: i64) -> Result<RangeResponse, StoreError> {
        let range = pb::RangeRequest { key: keys.from.into(), range_end: keys.end.into(), limit };
        self.call(|host| {
            let mut kv = KvClient::new(host).max_decoding_message_size(ANSWER_BYTES_MAX);
            let range = range.clone();
            async move { kv.range(range).await }
        })
        .await
    }

    pub async fn get(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        let found = self.range(Keys { from: key.to_string(), end: String::new() }, 1).await?;
        Ok(found.kvs.into_iter().next().map(|kv| kv.value))
    }

    pub async fn put(&self, key: &str, value: Bytes) -> Result<(), StoreError> {
        let put = pb::PutRequest { key: key.to_string().into(), value, lease: 0 };
        self.call(|host| {
            let put = put.clone();
            async move { KvClient::new(host).put(put).await }
        })
        .await
        .map(drop)
    }

    pub async fn delete(&self, keys: Keys) -> Result<(), StoreError> {
        let delete = pb::DeleteRangeRequest { key: keys.from.into(), range_end: keys.end.into() };
        self.call(|host| {
            let delete = delete.clone();
            async move { KvClient::new(host).delete_range(delete).await }
        })
        .await
        .map(drop)
    }

    /// Does `ops` together if `key` was created by `revision` (0: if there is no such key).
    pub async fn guarded(&self, key: &str, revision: i64, ops: Vec<Op>) -> Result<TxnResponse, StoreError> {
        let guard = pb::Compare {
            result: pb::compare::Result::Equal.into(),
            target: pb::compare::Target::Create.into(),
            key: key.to_string().into(),
            target_union: Some(pb::compare::TargetUnion::CreateRevision(revision)),
        };
        let txn = pb::TxnRequest { compare: vec![guard], success: ops.into_iter().map(Op::write).collect() };
        self.call(|host| {
            let txn = txn.clone();
            async move { KvClient::new(host).txn(txn).await }
        })
        .await
    }

    pub async fn lease(&self, ttl_s: i64) -> Result<i64, StoreError> {
        let grant = pb::LeaseGrantRequest { ttl: ttl_s };
        Ok(self.call(|host| async move { LeaseClient::new(host).lease_grant(grant).await }).await?.id)
    }

    pub async fn revoke(&self, id: i64) -> Result<(), StoreError> {
        let revoke = pb::LeaseRevokeRequest { id };
        self.call(|host| async move { LeaseClient::new(host).lease_revoke(revoke).await }).await.map(drop)
    }

    /// Prolongs the lease once; says whether there still is one.
    pub async fn beat(&self, id: i64) -> Result<bool, StoreError> {
        let beats = || {
            let (beat, beats) = mpsc::channel(1);
            // The channel has room for the one beat; its sender goes, so the stream ends behind it.
            let _ = beat.try_send(pb::LeaseKeepAliveRequest { id });
            ReceiverStream::new(beats)
        };
        let first = |mut replies: Streaming<pb::LeaseLife>| async move {
            replies.message().await?.map(Response::new).ok_or_else(|| Status::unavailable("the stream ended"))
        };
        let life = self.call(|host| async move {
            first(LeaseClient::new(host).lease_keep_alive(beats()).await?.into_inner()).await
        });
        Ok(life.await?.ttl > 0)
    }
}

/// A write in a transaction.
pub(super) enum Op {
    Put { key: String, value: Bytes, lease: i64 },
    Delete { key: String },
}

impl Op {
    fn write(self) -> pb::RequestOp {
        use pb::request_op::Request;
        let request = match self {
            Op::Put { key, value, lease } => Request::RequestPut(pb::PutRequest { key: key.into(), value, lease }),
            Op::Delete { key } => {
                Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.into(), range_end: Bytes::new() })
            }
        };
        pb::RequestOp { request: Some(request) }
    }
}

fn words(status: &Status) -> String {
    match (status.code(), std::error::Error::source(status)) {
        (Code::Unavailable | Code::Unknown, Some(source)) => source.to_string(),
        _ => status.message().to_string(),
    }
}

pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: usize = 64 << 20;
