//! The serving side: domain traits, and the adapters that put them behind gRPC.
//!
//! What a service decides is its implementer's; here is only reading, writing and the bounds.

pub(crate) mod blob;

use crate::access::{Access, Gate};
use crate::convert::{Wire, one};
use crate::{Refusal, pb};
use bytes::Bytes;
use elastic_spec::api::{Health, JobStatus, LogFile, LogPiece, LogRead, LogsQuery, NodeStatus, Scale, Submit};
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::limits::CONTROL_BYTES_MAX;
use elastic_spec::{Digest, JobId, NodeId};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub use tonic::async_trait;

/// A stream of answers.
pub type Flow<T> = Pin<Box<dyn Stream<Item = Result<T, Refusal>> + Send>>;

/// What the coordinator offers to people and their programs.
#[async_trait]
pub trait Api: Send + Sync + 'static {
    async fn submit(&self, submit: Submit) -> Result<JobId, Refusal>;
    async fn jobs(&self) -> Result<Vec<JobStatus>, Refusal>;
    async fn status(&self, job: JobId) -> Result<JobStatus, Refusal>;
    async fn nodes(&self) -> Result<Vec<NodeStatus>, Refusal>;
    async fn scale(&self, scale: Scale) -> Result<(), Refusal>;
    async fn drain(&self, node: NodeId) -> Result<(), Refusal>;
    async fn cancel(&self, job: JobId) -> Result<(), Refusal>;
    /// The bytes have the digest: that was checked before.
    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), Refusal>;
    async fn has_blob(&self, digest: Digest) -> Result<bool, Refusal>;
    async fn get_blob(&self, digest: Digest) -> Result<Bytes, Refusal>;
    async fn logs(&self, query: LogsQuery) -> Result<Flow<LogPiece>, Refusal>;
    async fn health(&self) -> Health;
}

/// What the coordinator offers to agents.
#[async_trait]
pub trait Control: Send + Sync + 'static {
    async fn attach(&self, reports: Flow<NodeReport>) -> Result<Flow<NodeWant>, Refusal>;
}

/// What an agent offers to the coordinator.
#[async_trait]
pub trait NodeLogs: Send + Sync + 'static {
    async fn list(&self, job: JobId) -> Result<Vec<LogFile>, Refusal>;
    /// In pieces of at most `limits::PIECE_BYTES_MAX`.
    async fn read(&self, read: LogRead) -> Result<Flow<Bytes>, Refusal>;
}

/// Serves a coordinator until `shutdown`. The caller ends its own flows then; what still hangs is cut.
pub async fn serve_coordinator<S: Api + Control>(
    listener: TcpListener,
    service: Arc<S>,
    access: &Access,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    access.check(listener.local_addr()?)?;
    let api = pb::api_server::ApiServer::from_arc(Arc::new(Served(service.clone())))
        .max_decoding_message_size(CONTROL_BYTES_MAX);
    let control = pb::control_server::ControlServer::from_arc(Arc::new(Served(service)))
        .max_decoding_message_size(CONTROL_BYTES_MAX);
    let routes = access.server()?.add_service(gated(api, access)).add_service(gated(control, access));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(routes.serve_with_incoming_shutdown(incoming, shutdown).await?)
}

/// Serves an agent's logs until `shutdown`.
pub async fn serve_logs<S: NodeLogs>(
    listener: TcpListener,
    service: Arc<S>,
    access: &Access,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    access.check(listener.local_addr()?)?;
    let logs = pb::node_logs_server::NodeLogsServer::from_arc(Arc::new(Served(service)));
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    Ok(access.server()?.add_service(gated(logs, access)).serve_with_incoming_shutdown(incoming, shutdown).await?)
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    OpenBind(#[from] crate::OpenBind),
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
    #[error("serve gRPC: {}", with_cause(.0))]
    Transport(#[from] tonic::transport::Error),
}

fn with_cause(e: &tonic::transport::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), |cause| format!("{e}: {cause}"))
}

fn gated<S>(service: S, access: &Access) -> InterceptedService<S, Gate> {
    InterceptedService::new(service, access.gate())
}

struct Served<S>(Arc<S>);

type PbFlow<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Domain stream to wire stream.
fn outgoing<T: Wire + 'static>(flow: Flow<T>) -> PbFlow<T::Pb> {
    Box::pin(flow.map(|item| item.map(Wire::write).map_err(Status::from)))
}

/// Wire stream to domain stream; the first mistake ends it.
pub(crate) fn incoming<T: Wire + 'static>(root: &'static str, stream: Streaming<T::Pb>) -> Flow<T>
where
    T::Pb: Send,
{
    Box::pin(stream.map(move |item| one::<T>(root, item.map_err(Refusal::from)?).map_err(Refusal::from)))
}

#[async_trait]
impl<S: Control> pb::control_server::Control for Served<S> {
    type AttachStream = PbFlow<pb::NodeWant>;

    async fn attach(
        &self,
        request: Request<Streaming<pb::NodeReport>>,
    ) -> Result<Response<PbFlow<pb::NodeWant>>, Status> {
        let wants = self.0.attach(incoming("report", request.into_inner())).await?;
        Ok(Response::new(outgoing(wants)))
    }
}

#[async_trait]
impl<S: Api> pb::api_server::Api for Served<S> {
    type GetBlobStream = PbFlow<pb::BlobPiece>;
    type LogsStream = PbFlow<pb::LogPiece>;

    async fn submit(&self, request: Request<pb::SubmitRequest>) -> Result<Response<pb::SubmitReply>, Status> {
        let submit = request.into_inner().try_into().map_err(Refusal::from)?;
        let job = self.0.submit(submit).await?;
        Ok(Response::new(pb::SubmitReply { job: job.to_string() }))
    }

    async fn jobs(&self, _: Request<pb::Empty>) -> Result<Response<pb::JobList>, Status> {
        Ok(Response::new(self.0.jobs().await?.write()))
    }

    async fn status(&self, request: Request<pb::JobRef>) -> Result<Response<pb::JobStatus>, Status> {
        let job = one("status", request.into_inner()).map_err(Refusal::from)?;
        Ok(Response::new(self.0.status(job).await?.write()))
    }

    async fn nodes(&self, _: Request<pb::Empty>) -> Result<Response<pb::NodeList>, Status> {
        Ok(Response::new(self.0.nodes().await?.write()))
    }

    async fn scale(&self, request: Request<pb::ScaleRequest>) -> Result<Response<pb::Empty>, Status> {
        self.0.scale(request.into_inner().try_into().map_err(Refusal::from)?).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn drain(&self, request: Request<pb::NodeRef>) -> Result<Response<pb::Empty>, Status> {
        self.0.drain(one("drain", request.into_inner()).map_err(Refusal::from)?).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn cancel(&self, request: Request<pb::JobRef>) -> Result<Response<pb::Empty>, Status> {
        self.0.cancel(one("cancel", request.into_inner()).map_err(Refusal::from)?).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn put_blob(&self, request: Request<Streaming<pb::BlobPiece>>) -> Result<Response<pb::Empty>, Status> {
        let (digest, bytes) = blob::collect(request.into_inner()).await?;
        self.0.put_blob(digest, bytes).await?;
        Ok(Response::new(pb::Empty {}))
    }

    async fn has_blob(&self, request: Request<pb::BlobRef>) -> Result<Response<pb::HasBlobReply>, Status> {
        let digest = one("has_blob", request.into_inner()).map_err(Refusal::from)?;
        Ok(Response::new(pb::HasBlobReply { has: self.0.has_blob(digest).await? }))
    }

    async fn get_blob(&self, request: Request<pb::BlobRef>) -> Result<Response<PbFlow<pb::BlobPiece>>, Status> {
        let digest = one("get_blob", request.into_inner()).map_err(Refusal::from)?;
        let bytes = self.0.get_blob(digest).await?;
        Ok(Response::new(Box::pin(tokio_stream::iter(blob::pieces(digest, bytes)).map(Ok))))
    }

    async fn logs(&self, request: Request<pb::LogsRequest>) -> Result<Response<PbFlow<pb::LogPiece>>, Status> {
        let query = request.into_inner().try_into().map_err(Refusal::from)?;
        Ok(Response::new(outgoing(self.0.logs(query).await?)))
    }

    async fn health(&self, _: Request<pb::Empty>) -> Result<Response<pb::HealthReply>, Status> {
        Ok(Response::new(self.0.health().await.write()))
    }
}

#[async_trait]
impl<S: NodeLogs> pb::node_logs_server::NodeLogs for Served<S> {
    type ReadStream = PbFlow<pb::LogBytes>;

    async fn list(&self, request: Request<pb::LogListRequest>) -> Result<Response<pb::LogList>, Status> {
        let job = crate::convert::job("list.job", request.into_inner().job).map_err(Refusal::from)?;
        Ok(Response::new(self.0.list(job).await?.write()))
    }

    async fn read(&self, request: Request<pb::LogRead>) -> Result<Response<PbFlow<pb::LogBytes>>, Status> {
        let read = request.into_inner().try_into().map_err(Refusal::from)?;
        let pieces = self.0.read(read).await?;
        Ok(Response::new(Box::pin(pieces.map(|p| p.map(|bytes| pb::LogBytes { bytes }).map_err(Status::from)))))
    }
}
