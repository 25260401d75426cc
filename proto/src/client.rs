//! The calling side: coordinators and agents' logs, in domain words.

use crate::access::{Bearer, CONNECT_TIMEOUT, Credentials};
use crate::convert::{Wire, one};
use crate::server::{Flow, blob, incoming};
use crate::{Refusal, pb};
use bytes::Bytes;
use elastic_spec::api::{
    Health, JobStatus, LogFile, LogPiece, LogRead, LogsQuery, MakeToken, NodeStatus, Scale, Submit, TokenInfo,
};
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::limits::{CONTROL_BYTES_MAX, PIECE_BYTES_MAX};
use elastic_spec::{Digest, JobId, NodeId, TokenName};
use std::time::Duration;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Response, Status};

type Wired = InterceptedService<Channel, Bearer>;

/// A connection to one coordinator. Cheap to clone; calls may run side by side.
#[derive(Clone, Debug)]
pub struct Coordinator {
    url: String,
    api: pb::api_client::ApiClient<Wired>,
    control: pb::control_client::ControlClient<Wired>,
}

impl Coordinator {
    /// Connects to "host:port", "http://…" or "https://…".
    pub async fn connect(url: &str, credentials: &Credentials) -> Result<Coordinator, Refusal> {
        let channel = connect(url, credentials).await?;
        let wired = InterceptedService::new(channel, credentials.bearer()?);
        Ok(Coordinator {
            url: url.to_string(),
            api: pb::api_client::ApiClient::new(wired.clone()).max_decoding_message_size(CONTROL_BYTES_MAX),
            control: pb::control_client::ControlClient::new(wired).max_decoding_message_size(CONTROL_BYTES_MAX),
        })
    }

    /// Asks each of `urls` in turn who leads, and connects to that one.
    pub async fn connect_leader(urls: &[String], credentials: &Credentials) -> Result<Coordinator, Refusal> {
        let mut last = Refusal::Invalid("no coordinator is named".into());
        for url in urls {
            match Coordinator::leader_by(url, credentials).await {
                Ok(coordinator) => return Ok(coordinator),
                Err(e) if e.is_passing() => last = e,
                Err(e) => return Err(e),
            }
        }
        Err(last)
    }

    async fn leader_by(url: &str, credentials: &Credentials) -> Result<Coordinator, Refusal> {
        let asked = Coordinator::connect(url, credentials).await?;
        let health = asked.health().await?;
        match (health.leads, health.leader) {
            (Some(_), _) => Ok(asked),
            (None, Some(leader)) => {
                let named = Coordinator::connect(&leader, credentials).await?;
                match named.health().await?.leads {
                    Some(_) => Ok(named),
                    None => Err(Refusal::Standby { leader: None }),
                }
            }
            (None, None) => Err(Refusal::Standby { leader: None }),
        }
    }

    /// As it was given to `connect`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The control stream: reports up for as long as `reports` flows, wants down.
    pub async fn attach(
        &self,
        reports: impl Stream<Item = NodeReport> + Send + 'static,
    ) -> Result<Flow<NodeWant>, Refusal> {
        let reports = reports.map(Wire::write);
        let wants = in_time(self.control.clone().attach(reports)).await?;
        Ok(incoming("want", wants))
    }

    pub async fn submit(&self, submit: Submit) -> Result<JobId, Refusal> {
        let reply = in_time(self.api.clone().submit(submit.write())).await?;
        Ok(crate::convert::job("submitted.job", reply.job)?)
    }

    pub async fn jobs(&self) -> Result<Vec<JobStatus>, Refusal> {
        answer("jobs", self.api.clone().jobs(pb::Empty {})).await
    }

    pub async fn status(&self, job: &JobId) -> Result<JobStatus, Refusal> {
        answer("job", self.api.clone().status(job.clone().write())).await
    }

    pub async fn nodes(&self) -> Result<Vec<NodeStatus>, Refusal> {
        answer("nodes", self.api.clone().nodes(pb::Empty {})).await
    }

    pub async fn scale(&self, scale: Scale) -> Result<(), Refusal> {
        in_time(self.api.clone().scale(scale.write())).await.map(drop)
    }

    pub async fn drain(&self, node: &NodeId) -> Result<(), Refusal> {
        in_time(self.api.clone().drain(node.clone().write())).await.map(drop)
    }

    pub async fn cancel(&self, job: &JobId) -> Result<(), Refusal> {
        in_time(self.api.clone().cancel(job.clone().write())).await.map(drop)
    }

    /// Uploads an input; returns its digest. One that is there already does not travel again.
    pub async fn put_blob(&self, bytes: Bytes) -> Result<Digest, Refusal> {
        let digest = Digest::of(&bytes);
        if !self.has_blob(digest).await? {
            let pieces = tokio_stream::iter(blob::pieces(digest, bytes));
            let put = tokio::time::timeout(BLOB_TIMEOUT, async { self.api.clone().put_blob(pieces).await });
            put.await.map_err(|_| late(BLOB_TIMEOUT))??;
        }
        Ok(digest)
    }

    pub async fn has_blob(&self, digest: Digest) -> Result<bool, Refusal> {
        Ok(in_time(self.api.clone().has_blob(digest.write())).await?.has)
    }

    /// The bytes of an input, checked against the digest.
    pub async fn get_blob(&self, digest: Digest) -> Result<Bytes, Refusal> {
        let pieces = in_time(self.api.clone().get_blob(digest.write())).await?;
        let whole = tokio::time::timeout(BLOB_TIMEOUT, blob::collect(pieces)).await;
        let (named, bytes) = whole.map_err(|_| late(BLOB_TIMEOUT))??;
        match named == digest {
            true => Ok(bytes),
            false => Err(Refusal::Internal(format!("asked for blob {digest}, was sent {named}"))),
        }
    }

    pub async fn logs(&self, query: LogsQuery) -> Result<Flow<LogPiece>, Refusal> {
        Ok(incoming("piece", in_time(self.api.clone().logs(query.write())).await?))
    }

    /// Makes a token and gives its text, which is told this once.
    pub async fn make_token(&self, make: MakeToken) -> Result<String, Refusal> {
        Ok(in_time(self.api.clone().make_token(make.write())).await?.token)
    }

    pub async fn tokens(&self) -> Result<Vec<TokenInfo>, Refusal> {
        answer("tokens", self.api.clone().tokens(pb::Empty {})).await
    }

    pub async fn revoke_token(&self, name: &TokenName) -> Result<(), Refusal> {
        in_time(self.api.clone().revoke_token(name.clone().write())).await.map(drop)
    }

    pub async fn health(&self) -> Result<Health, Refusal> {
        answer("health", self.api.clone().health(pb::Empty {})).await
    }
}

/// A connection to an agent's logs.
#[derive(Clone, Debug)]
pub struct NodeLogs {
    logs: pb::node_logs_client::NodeLogsClient<Wired>,
}

impl NodeLogs {
    pub async fn connect(address: &str, credentials: &Credentials) -> Result<NodeLogs, Refusal> {
        let wired = InterceptedService::new(connect(address, credentials).await?, credentials.bearer()?);
        Ok(NodeLogs {
            logs: pb::node_logs_client::NodeLogsClient::new(wired).max_decoding_message_size(CONTROL_BYTES_MAX),
        })
    }

    pub async fn list(&self, job: &JobId) -> Result<Vec<LogFile>, Refusal> {
        answer("logs", self.logs.clone().list(pb::LogListRequest { job: job.to_string() })).await
    }

    pub async fn read(&self, read: LogRead) -> Result<Flow<Bytes>, Refusal> {
        let pieces = in_time(self.logs.clone().read(read.write())).await?;
        Ok(Box::pin(pieces.map(|piece| {
            let bytes = piece?.bytes;
            crate::convert::at_most("piece.bytes", "bytes", bytes.len(), PIECE_BYTES_MAX)?;
            Ok(bytes)
        })))
    }
}

async fn connect(url: &str, credentials: &Credentials) -> Result<Channel, Refusal> {
    credentials.endpoint(url)?.connect().await.map_err(|e| {
        let mut words = format!("no answer from {url}");
        let mut cause = std::error::Error::source(&e);
        while let Some(e) = cause {
            words.push_str(&format!(": {e}"));
            cause = e.source();
        }
        Refusal::Unavailable(words)
    })
}

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Refusal> {
    Ok(tokio::time::timeout(CALL_TIMEOUT, call).await.map_err(|_| late(CALL_TIMEOUT))??.into_inner())
}

fn late(limit: Duration) -> Refusal {
    Refusal::Unavailable(format!("no answer within {} s", limit.as_secs()))
}

async fn answer<T: Wire>(
    root: &str,
    call: impl Future<Output = Result<Response<T::Pb>, Status>>,
) -> Result<T, Refusal> {
    Ok(one(root, in_time(call).await?)?)
}

/// An answer that a coordinator gives from memory, after at most one store write.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const BLOB_TIMEOUT: Duration = Duration::from_secs(120);

const _: () = assert!(CONNECT_TIMEOUT.as_secs() < CALL_TIMEOUT.as_secs());
