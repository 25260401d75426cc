//! The serving side: domain traits, and the adapters that put them behind gRPC.
//!
//! What a service decides is its implementer's; here is only reading, writing and the bounds.

pub(crate) mod blob;

use crate::access::{Access, KEEP_ALIVE, KEEP_ALIVE_LATE, TlsError};
use crate::convert::{Wire, one};
use crate::{Refusal, pb};
use bytes::Bytes;
use elastic_spec::api::{
    Health, JobStatus, LogFile, LogPiece, LogRead, LogsQuery, MakeToken, NodeStatus, Scale, Submit, TokenInfo,
};
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::limits::CONTROL_BYTES_MAX;
use elastic_spec::{Digest, JobId, NodeId, TokenName};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_stream::{Stream, StreamExt};
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
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
    /// The text of the token.
    async fn make_token(&self, make: MakeToken) -> Result<String, Refusal>;
    async fn tokens(&self) -> Result<Vec<TokenInfo>, Refusal>;
    async fn revoke_token(&self, name: TokenName) -> Result<(), Refusal>;
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
    let (api, control) = (
        pb::api_server::ApiServer::from_arc(Arc::new(Served(service.clone())))
            .max_decoding_message_size(CONTROL_BYTES_MAX),
        pb::control_server::ControlServer::from_arc(Arc::new(Served(service)))
            .max_decoding_message_size(CONTROL_BYTES_MAX),
    );
    let routes = server().add_service(access.gate(api)).add_service(access.gate(control));
    run(routes, listener, access, Box::pin(shutdown)).await
}

/// Takes connections, over TLS where there is a certificate.
///
/// Boxed, as is what it waits for: so the whole of gRPC is compiled here, and not again in each program that serves.
fn run<'a>(routes: Router, listener: TcpListener, access: &'a Access, shutdown: Waits<'a, ()>) -> Waits<'a, Ended> {
    Box::pin(async move {
        match access.tls()? {
            None => {
                let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
                Ok(routes.serve_with_incoming_shutdown(incoming, shutdown).await?)
            }
            Some(tls) => Ok(routes.serve_with_incoming_shutdown(tls.incoming(listener), shutdown).await?),
        }
    })
}

type Waits<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
type Ended = Result<(), ServeError>;

fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE_LATE))
        .max_concurrent_streams(STREAMS_MAX)
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
    run(server().add_service(access.gate(logs)), listener, access, Box::pin(shutdown)).await
}

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    OpenBind(#[from] crate::OpenBind),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
    #[error("serve gRPC: {}", with_cause(.0))]
    Transport(#[from] tonic::transport::Error),
}

fn with_cause(e: &tonic::transport::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), |cause| format!("{e}: {cause}"))
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

    async fn make_token(&self, request: Request<pb::MakeTokenRequest>) -> Result<Response<pb::MakeTokenReply>, Status> {
        let token = self.0.make_token(request.into_inner().try_into().map_err(Refusal::from)?).await?;
        Ok(Response::new(pb::MakeTokenReply { token }))
    }

    async fn tokens(&self, _: Request<pb::Empty>) -> Result<Response<pb::TokenList>, Status> {
        Ok(Response::new(self.0.tokens().await?.write()))
    }

    async fn revoke_token(&self, request: Request<pb::TokenRef>) -> Result<Response<pb::Empty>, Status> {
        self.0.revoke_token(one("revoke", request.into_inner()).map_err(Refusal::from)?).await?;
        Ok(Response::new(pb::Empty {}))
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

/// Calls open at once on one connection.
const STREAMS_MAX: u32 = 256;
