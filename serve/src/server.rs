//! Sockets: who is let in, for how long, and how the server ends.
//!
//! The end: readiness says no at once; for the drain's delay requests are still taken, so that a load balancer can
//! notice; then no connection is taken any more, open ones end after the answer they wait for, and what is left when
//! the drain's time is over is cut off.

use crate::config::Config;
use crate::limits::{HANDSHAKE_TIME_MAX, HEAD_BYTES_MAX, HEAD_TIME_MAX, HEADERS_MAX};
use crate::patient::Patient;
use crate::repository::{self, Inbox, Open, Orders};
use crate::state::Shared;
use crate::{grpc, http};
use anyhow::{Context, Result};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

/// Where requests come in. Bound by the caller, so that a port that is taken is told before anything is loaded.
pub struct Listeners {
    pub http: TcpListener,
    pub grpc: Option<TcpListener>,
}

/// A server that runs.
pub struct Server {
    pub shared: Arc<Shared>,
    /// No new connections, and open ones end.
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Server {
    /// Begins to load and to answer; health is answered at once, models when they are ready.
    pub fn start(config: Config, listeners: Listeners, open: Open) -> Result<Server> {
        let (orders, inbox): (Orders, Inbox) = Orders::new();
        let acceptor = config.door.tls.as_ref().map(|tls| TlsAcceptor::from(tls.http.clone()));
        if let Some(mirror) = &config.mirror {
            mirror.start(config.keep, config.poll).context("start the thread of the mirror")?;
        }
        let shared = Arc::new(Shared::new(config, orders));
        let (stop, stopped) = watch::channel(false);
        let mut tasks = vec![tokio::spawn(repository::run(shared.clone(), open, inbox, stopped.clone()))];
        tasks.push(tokio::spawn(accept(listeners.http, acceptor, shared.clone(), stopped.clone())));
        if let Some(listener) = listeners.grpc {
            tasks.push(tokio::spawn(grpc::serve(listener, shared.clone(), stopped)));
        }
        Ok(Server { shared, stop, tasks })
    }

    /// Waits until every model that was there at the start is loaded or refused.
    pub async fn settled(&self) {
        loop {
            let settled = self.shared.view.lock().unwrap_or_else(std::sync::PoisonError::into_inner).settled;
            if settled {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Runs until `end`, then drains. True if everybody got an answer in time.
    pub async fn until(self, end: impl Future<Output = ()>) -> bool {
        end.await;
        let config = &self.shared.config;
        info!(delay_ms = config.drain_delay.as_millis() as u64, "draining");
        self.shared.drain();
        tokio::time::sleep(config.drain_delay).await;
        let _ = self.stop.send(true);
        let all_answered = tokio::time::timeout(config.drain, self.ended()).await.is_ok();
        if !all_answered {
            warn!(connections = self.shared.connections(), "the drain's time is over; what is left is cut off");
        }
        self.tasks.iter().for_each(JoinHandle::abort);
        all_answered
    }

    async fn ended(&self) {
        while self.shared.connections() > 0 || self.tasks.iter().any(|task| !task.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Counts a connection as long as it lives; None if there are too many.
pub(crate) struct Guest(Arc<Shared>);

impl Guest {
    pub(crate) fn enter(shared: &Arc<Shared>) -> Option<Guest> {
        let most = shared.config.connections;
        let fits = |open: usize| (open < most).then_some(open + 1);
        shared.open.fetch_update(Relaxed, Relaxed, fits).ok().map(|_| Guest(shared.clone()))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

/// Waits until the flag is up, or nobody can raise it any more.
pub(crate) async fn raised(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|up| *up).await;
}

/// The next connection. Accept errors of one, or a process out of file descriptors, are told and waited out: neither
/// ends the server.
pub(crate) async fn next(listener: &TcpListener, shared: &Shared) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                return (stream, peer);
            }
            Err(error) => {
                shared.config.door.refused(None, "a connection", &error);
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The handshake, within its time. None: it came to nothing, which is told.
pub(crate) async fn shaken<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: TlsAcceptor,
    stream: S,
    peer: SocketAddr,
    shared: &Shared,
) -> Option<TlsStream<S>> {
    let late = |_| Err(io::ErrorKind::TimedOut.into());
    match tokio::time::timeout(HANDSHAKE_TIME_MAX, acceptor.accept(stream)).await.unwrap_or_else(late) {
        Ok(stream) => Some(stream),
        Err(error) => {
            shared.config.door.handshake(peer, &error);
            None
        }
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    loop {
        let (stream, peer) = tokio::select! {
            _ = raised(&mut stopped) => return,
            next = next(&listener, &shared) => next,
        };
        let (shared, stopped) = (shared.clone(), stopped.clone());
        match Guest::enter(&shared) {
            Some(guest) => drop(tokio::spawn(connection((stream, peer), acceptor.clone(), guest, shared, stopped))),
            None => drop(tokio::spawn(turn_away(stream, acceptor.is_some(), shared))),
        }
    }
}

/// Too many connections: said in plain HTTP, which a client understands; one with TLS sees its connection closed.
async fn turn_away(mut stream: TcpStream, is_tls: bool, shared: Arc<Shared>) {
    const ANSWER: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
        connection: close\r\ncontent-length: 57\r\n\r\n{\"error\":\"too many connections; come again in a second\"}\n";
    shared.answers.count(503);
    if !is_tls {
        let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(ANSWER.as_bytes())).await;
    }
}

async fn connection(
    (stream, peer): (TcpStream, SocketAddr),
    acceptor: Option<TlsAcceptor>,
    guest: Guest,
    shared: Arc<Shared>,
    stopped: watch::Receiver<bool>,
) {
    // Inside of TLS as well: there too nobody polls an answer that cannot be written.
    let stream = Patient::new(stream, shared.config.unread);
    match acceptor {
        None => speak(stream, peer, shared, stopped).await,
        Some(acceptor) => {
            if let Some(stream) = shaken(acceptor, stream, peer, &shared).await {
                speak(stream, peer, shared, stopped).await;
            }
        }
    }
    drop(guest);
}

async fn speak(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: SocketAddr,
    shared: Arc<Shared>,
    mut stopped: watch::Receiver<bool>,
) {
    let service = service_fn(move |request| http::answer(shared.clone(), peer, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = raised(&mut stopped) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection ended");
    }
}

/// An address as a flag has it: `:8000` is this machine only, `0.0.0.0:8000` is everybody's.
pub async fn bind(address: &str) -> Result<TcpListener> {
    let whole = match address.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => address.to_string(),
    };
    TcpListener::bind(&whole).await.with_context(|| format!("listen on {address}"))
}
