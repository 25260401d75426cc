//! Stands before a service: lets a call in or turns it away, by its path and by what the caller shows.

use super::Access;
use super::methods::{Need, need_of};
use super::ring::{Denied, Principal};
use crate::Refusal;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};

/// A service behind its gate.
#[derive(Clone)]
pub(crate) struct Gate<S> {
    inner: S,
    access: Access,
}

impl Access {
    pub(crate) fn gate<S>(&self, inner: S) -> Gate<S> {
        Gate { inner, access: self.clone() }
    }

    fn judge(&self, need: Need, caller: &Caller<'_>, now_unix_ms: u64) -> Result<Principal, Denied> {
        let mut why = None;
        for role in need.roles() {
            let certified = Principal::certified_agent();
            if caller.is_certified && certified.may(role) {
                return Ok(certified);
            }
            match self.check_bearer(caller.bearer, role, now_unix_ms) {
                Ok(principal) => return Ok(principal),
                Err(denied) => why = Some(denied),
            }
        }
        why.map_or_else(|| Ok(Principal::anybody()), Err)
    }
}

/// What is known of who calls.
struct Caller<'a> {
    bearer: Option<&'a str>,
    /// Showed a certificate of the agents' authority; the handshake has checked it.
    is_certified: bool,
    peer: Option<SocketAddr>,
}

impl<'a> Caller<'a> {
    fn of<B>(request: &'a http::Request<B>) -> Caller<'a> {
        let bearer = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let tls = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>();
        let plain = request.extensions().get::<TcpConnectInfo>();
        Caller {
            bearer: bearer.and_then(|value| value.strip_prefix("Bearer ")),
            is_certified: tls.is_some_and(|tls| tls.peer_certs().is_some_and(|chain| !chain.is_empty())),
            peer: tls.map(|tls| tls.get_ref()).or(plain).and_then(TcpConnectInfo::remote_addr),
        }
    }
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let path = request.uri().path();
        let caller = Caller::of(&request);
        match self.access.judge(need_of(path), &caller, now_unix_ms()) {
            Ok(_) => Box::pin(self.inner.call(request)),
            Err(denied) => {
                if denied != Denied::Elsewhere {
                    self.access.tell_refused(caller.peer, path, &denied);
                }
                let status = Status::from(Refusal::from(denied));
                Box::pin(std::future::ready(Ok(status.into_http())))
            }
        }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

/// Tokens expire by the clock on the wall, as the person meant who made them.
fn now_unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
