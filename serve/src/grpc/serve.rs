//! The gRPC listener: connections are counted with those of HTTP, shake hands as those do, and end as those do.

use super::Service;
use super::gate::Gate;
use super::wire::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::limits::{BODY_BYTES_MAX, STREAMS_MAX};
use crate::server::{Guest, next, raised, shaken};
use crate::state::Shared;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::Connected;

const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// A body, with names, shapes and parameters around its numbers.
pub(super) const MESSAGE_BYTES_MAX: usize = BODY_BYTES_MAX + (1 << 20);

/// Answers until `stopped`, then until the calls that are open have their answers.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let (out, entering) = mpsc::channel(1);
    let accepting = tokio::spawn(accept(listener, shared.clone(), stopped.clone(), out));
    let service = GrpcInferenceServiceServer::new(Service { shared: shared.clone() })
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(usize::MAX);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_MAX)
        .add_service(Gate::new(service, shared));
    let end = async move { raised(&mut stopped).await };
    if let Err(error) = server.serve_with_incoming_shutdown(ReceiverStream::new(entering), end).await {
        tracing::error!(%error, "the gRPC listener ended");
    }
    accepting.abort();
}

/// Many handshakes may be under way at once; none holds up another.
async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    out: mpsc::Sender<io::Result<Entered>>,
) {
    let acceptor = shared.config.door.tls.as_ref().map(|tls| TlsAcceptor::from(tls.grpc.clone()));
    loop {
        let (stream, peer) = tokio::select! {
            _ = raised(&mut stopped) => return,
            next = next(&listener, &shared) => next,
        };
        // Too many: the connection is closed, and the client tries again after a while.
        let Some(guest) = Guest::enter(&shared) else { continue };
        let (acceptor, out, shared, mut stopped) = (acceptor.clone(), out.clone(), shared.clone(), stopped.clone());
        tokio::spawn(async move {
            let entering = async {
                let stream: Box<dyn Duplex> = match acceptor {
                    None => Box::new(stream),
                    Some(acceptor) => Box::new(shaken(acceptor, stream, peer, &shared).await?),
                };
                Some(Entered { stream, peer, _guest: guest })
            };
            let entered = tokio::select! {
                _ = raised(&mut stopped) => return,
                entered = entering => entered,
            };
            if let Some(entered) = entered {
                // Nobody is there to take it when the server has stopped.
                let _ = out.send(Ok(entered)).await;
            }
        });
    }
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Duplex for S {}

/// A connection that is counted as long as it lives.
struct Entered {
    stream: Box<dyn Duplex>,
    peer: SocketAddr,
    _guest: Guest,
}

/// Whose connection a call came on.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub SocketAddr);

impl Connected for Entered {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.peer)
    }
}

impl AsyncRead for Entered {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Entered {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
