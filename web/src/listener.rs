//! The listener: connections with bounds, TLS where there is a certificate, and headers on every answer.

use crate::access::{allowed, is_foreign};
use crate::refused;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use axum::routing::get;
use elastic_proto::Access;
use elastic_spec::access::Role;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;
use tracing::debug;

/// What there is to read.
#[derive(Default)]
pub struct Routes {
    /// Without a token: what says nothing of the cluster.
    pub open: Router,
    /// For whoever may read.
    pub guarded: Router,
}

#[derive(Debug, thiserror::Error)]
pub enum WebError {
    #[error(transparent)]
    OpenBind(#[from] elastic_proto::OpenBind),
    #[error(transparent)]
    Tls(#[from] elastic_proto::TlsError),
    #[error("listener: {0}")]
    Listener(#[from] std::io::Error),
}

/// Serves until `shutdown`; what is under way then is cut. `/healthz` answers whoever asks.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    access: &Access,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), WebError> {
    let bound = listener.local_addr()?;
    access.check(bound)?;
    let tls = access.server_config(b"http/1.1")?.map(TlsAcceptor::from);
    let router = router(routes, access, bound);
    tokio::select! {
        never = accept(listener, tls, router, access) => match never {},
        () = shutdown => Ok(()),
    }
}

fn router(routes: Routes, access: &Access, bound: SocketAddr) -> Router {
    let guard = Arc::new(Guard { access: access.clone(), is_loopback: bound.ip().is_loopback() });
    routes
        .guarded
        .layer(from_fn_with_state(guard, guarded))
        .merge(routes.open)
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(|| async { refused(StatusCode::NOT_FOUND, "nothing is here") })
        .layer(from_fn(headers))
}

struct Guard {
    access: Access,
    is_loopback: bool,
}

/// Whose connection a request came on.
#[derive(Clone, Copy)]
struct Peer(SocketAddr);

async fn guarded(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
    if is_foreign(&guard.access, guard.is_loopback, request.headers()) {
        const WHY: &str = "this listener answers to names of the loopback only";
        guard.access.tell_refused(peer, "HTTP", &WHY);
        return refused(StatusCode::FORBIDDEN, WHY);
    }
    match allowed(&guard.access, request.headers(), Role::Viewer, peer) {
        Ok(()) => next.run(request).await,
        Err((status, why)) => {
            let mut answer = refused(status, &why);
            answer.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            answer
        }
    }
}

/// Nothing but reads, and nothing in a browser that the page does not need.
async fn headers(request: Request, next: Next) -> Response {
    let mut answer = match *request.method() {
        Method::GET | Method::HEAD => next.run(request).await,
        _ => refused(StatusCode::METHOD_NOT_ALLOWED, "there is nothing here but to read"),
    };
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(*name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    answer
}

const HEADERS: &[(&str, &str)] = &[
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
];

enum Never {}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, router: Router, access: &Access) -> Never {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let seat = seats.clone().acquire_owned().await.expect("the seats are never closed");
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (tls, router, access) = (tls.clone(), router.clone(), access.clone());
                connections.spawn(async move {
                    connection(stream, Peer(peer), tls, router, access).await;
                    drop(seat);
                });
            }
            Err(error) => {
                // Out of file descriptors, or the caller was gone before it was heard.
                debug!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, peer: Peer, tls: Option<TlsAcceptor>, router: Router, access: Access) {
    let _ = stream.set_nodelay(true);
    let Some(tls) = tls else { return speak(stream, peer, router).await };
    match tokio::time::timeout(HANDSHAKE_TIME, tls.accept(stream)).await {
        Ok(Ok(stream)) => speak(stream, peer, router).await,
        Ok(Err(error)) => access.tell_handshake(peer.0, &error),
        Err(_) => access.tell_handshake(peer.0, &std::io::ErrorKind::TimedOut.into()),
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, router: Router) {
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer);
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    let mut http = hyper::server::conn::http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIME).max_buf_size(HEADER_BYTES_MAX);
    if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a connection ended early");
    }
}

/// Callers at once; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// For the head of a request, also between two requests of one connection.
const HEADER_TIME: Duration = Duration::from_secs(30);
const HEADER_BYTES_MAX: usize = 64 << 10;
