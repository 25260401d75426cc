//! Stands before the service: lets a call in or turns it away, by its path and the key that is shown, before a byte of
//! its messages is read.

use super::serve::{MESSAGE_BYTES_MAX, Peer};
use super::weighed::Weighed;
use crate::limits::PROBE_BYTES_MAX;
use crate::state::Shared;
use elastic_spec::access::Role;
use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

/// A service behind its gate.
#[derive(Clone)]
pub(super) struct Gate<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Gate<S> {
    pub fn new(inner: S, shared: Arc<Shared>) -> Gate<S> {
        Gate { inner, shared }
    }
}

/// The role whose key is asked for. None: answered without a key, which probes do not have. A call that stands nowhere
/// here is an admin's.
fn needed(path: &str) -> Option<Role> {
    let (_, call) = path.rsplit_once('/').unwrap_or_default();
    match call {
        "ServerLive" | "ServerReady" => None,
        "ModelReady" | "ServerMetadata" | "ModelMetadata" | "ModelInfer" | "ModelStreamInfer" | "ModelConfig"
        | "ModelStatistics" | "RepositoryIndex" => Some(Role::Viewer),
        _ => Some(Role::Admin),
    }
}

impl<S, B> Service<http::Request<B>> for Gate<S>
where
    S: Service<http::Request<Weighed<B>>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<http::Response<Body>, Infallible>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let needed = needed(request.uri().path());
        match self.shared.config.keys.admit(request.headers(), needed) {
            Ok(()) => {
                let most = if needed.is_some() { MESSAGE_BYTES_MAX } else { PROBE_BYTES_MAX };
                let weighed = |body| Weighed::new(body, self.shared.bodies.clone(), most);
                Box::pin(self.inner.call(request.map(weighed)))
            }
            Err(refusal) => {
                let peer = request.extensions().get::<Peer>().map(|peer| peer.0);
                self.shared.config.door.refused(peer, request.uri().path(), &refusal);
                Box::pin(std::future::ready(Ok(Status::from(refusal).into_http())))
            }
        }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every call of the protocol's file, and the role that it needs.
    #[test]
    fn every_call_needs_a_key_but_those_of_probes_and_loading_needs_an_admins() {
        let proto = include_str!("../../proto/inference.proto");
        let calls = proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        let mut counts = [0; 3];
        for call in calls {
            let expected = match call {
                "ServerLive" | "ServerReady" => None,
                "RepositoryModelLoad" | "RepositoryModelUnload" => Some(Role::Admin),
                _ => Some(Role::Viewer),
            };
            let found = needed(&format!("/inference.GRPCInferenceService/{call}"));
            assert_eq!(found, expected, "{call}");
            counts[found.map_or(0, |role| 1 + usize::from(role == Role::Admin))] += 1;
        }
        assert_eq!(counts, [2, 8, 2]);
        assert_eq!(needed("/inference.GRPCInferenceService/Another"), Some(Role::Admin));
        assert_eq!(needed(""), Some(Role::Admin));
    }
}
