//! The gRPC listener: connections are counted with those of HTTP, and end as those do.

use super::Service;
use super::wire::grpc_inference_service_server::GrpcInferenceServiceServer;
use crate::config::Certificate;
use crate::limits::{BODY_BYTES_MAX, STREAMS_MAX};
use crate::server::{Guest, raised};
use crate::state::Shared;
use anyhow::{Context as _, Result};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic::transport::{Identity, Server, ServerTlsConfig};

const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Names, shapes and parameters around a request's numbers.
const FRAME_BYTES: usize = 1 << 20;

pub fn server(certificate: Option<&Certificate>) -> Result<Server> {
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_MAX);
    match certificate {
        None => Ok(server),
        Some(Certificate { chain_pem, key_pem }) => server
            .tls_config(ServerTlsConfig::new().identity(Identity::from_pem(chain_pem, key_pem)))
            .context("use the certificate with its key"),
    }
}

/// Answers until `stopped`, then until the calls that are open have their answers.
pub(crate) async fn serve(
    listener: TcpListener,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
    mut server: Server,
) {
    let guests = shared.clone();
    let entering = TcpListenerStream::new(listener).filter_map(move |stream| match stream {
        Ok(stream) => {
            let _ = stream.set_nodelay(true);
            // Too many: the connection is closed, and the client tries again after a while.
            Guest::enter(&guests).map(|guest| Ok::<_, io::Error>(Entered { stream, _guest: guest }))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection cannot be accepted");
            None
        }
    });
    let service = GrpcInferenceServiceServer::new(Service { shared })
        .max_decoding_message_size(BODY_BYTES_MAX + FRAME_BYTES)
        .max_encoding_message_size(usize::MAX);
    let end = async move { raised(&mut stopped).await };
    if let Err(error) = server.add_service(service).serve_with_incoming_shutdown(entering, end).await {
        tracing::error!(%error, "the gRPC listener ended");
    }
}

/// A connection that is counted as long as it lives.
struct Entered {
    stream: TcpStream,
    _guest: Guest,
}

impl Connected for Entered {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
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
