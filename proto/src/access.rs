//! Who may speak to a listener, and how a client proves itself: TLS, a bearer token, or the loopback.

use crate::Refusal;
use std::net::SocketAddr;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Request, Status};

/// What a listener asks of its callers.
#[derive(Clone, Default)]
pub struct Access {
    /// Every call must carry it.
    pub token: Option<String>,
    /// TLS.
    pub certificate: Option<ServerCertificate>,
    /// Plain text on an address that others can reach is wanted, not an oversight.
    pub insecure: bool,
}

/// PEM texts.
#[derive(Clone)]
pub struct ServerCertificate {
    pub chain_pem: String,
    pub key_pem: String,
}

/// What a client shows and trusts.
#[derive(Clone, Default)]
pub struct Credentials {
    pub token: Option<String>,
    /// PEM text of the authority that signed the server's certificate. Needed for https.
    pub authority_pem: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "{0} can be reached from other machines and would be served in plain text: give a certificate and key \
     (--tls-cert, --tls-key), or say --insecure if the network is trusted"
)]
pub struct OpenBind(SocketAddr);

impl Access {
    /// Refuses plain text outside the loopback unless that was asked for.
    pub fn check(&self, bound: SocketAddr) -> Result<(), OpenBind> {
        match bound.ip().is_loopback() || self.insecure || self.certificate.is_some() {
            true => Ok(()),
            false => Err(OpenBind(bound)),
        }
    }

    pub(crate) fn server(&self) -> Result<Server, tonic::transport::Error> {
        let server = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_LATE))
            .max_concurrent_streams(STREAMS_MAX);
        match &self.certificate {
            None => Ok(server),
            Some(c) => server.tls_config(ServerTlsConfig::new().identity(Identity::from_pem(&c.chain_pem, &c.key_pem))),
        }
    }

    pub(crate) fn gate(&self) -> Gate {
        Gate { wanted: self.token.as_ref().map(|t| format!("Bearer {t}")) }
    }
}

/// Lets calls with the right token pass.
#[derive(Clone)]
pub(crate) struct Gate {
    wanted: Option<String>,
}

impl tonic::service::Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(wanted) = &self.wanted else { return Ok(request) };
        let shown = request.metadata().get("authorization").map(|v| v.as_bytes());
        match shown {
            Some(shown) if same(shown, wanted.as_bytes()) => Ok(request),
            Some(_) => Err(Status::unauthenticated("the token is not this cluster's")),
            None => Err(Status::unauthenticated("this cluster wants a token: set ELASTIC_TOKEN or --token-file")),
        }
    }
}

/// Takes the same time wherever the first difference is.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

impl Credentials {
    /// An endpoint for "host:port", "http://…" or "https://…".
    pub(crate) fn endpoint(&self, url: &str) -> Result<Endpoint, Refusal> {
        let bad = |e: &dyn std::fmt::Display| Refusal::Invalid(format!("address \"{url}\": {e}"));
        let url_whole = match (url.contains("://"), &self.authority_pem) {
            (true, _) => url.to_string(),
            (false, None) => format!("http://{url}"),
            (false, Some(_)) => format!("https://{url}"),
        };
        let endpoint = Endpoint::from_shared(url_whole.clone()).map_err(|e| bad(&e))?;
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_LATE)
            .tcp_nodelay(true);
        match (url_whole.starts_with("https://"), &self.authority_pem) {
            (false, _) => Ok(endpoint),
            (true, None) => Err(bad(&"https needs the authority's certificate (--tls-ca)")),
            (true, Some(pem)) => endpoint
                .tls_config(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
                .map_err(|e| bad(&e)),
        }
    }

    pub(crate) fn bearer(&self) -> Result<Bearer, Refusal> {
        let header = self.token.as_ref().map(|t| format!("Bearer {t}").parse()).transpose();
        let bad = |_| Refusal::Invalid("the token has characters that cannot travel in a header".into());
        Ok(Bearer { header: header.map_err(bad)? })
    }
}

/// Puts the token on each call.
#[derive(Clone)]
pub(crate) struct Bearer {
    header: Option<tonic::metadata::MetadataValue<tonic::metadata::Ascii>>,
}

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(header) = &self.header {
            request.metadata_mut().insert("authorization", header.clone());
        }
        Ok(request)
    }
}

/// A peer that the network has swallowed is noticed after the sum of these two.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);
const KEEP_ALIVE_LATE: std::time::Duration = std::time::Duration::from_secs(3);
pub(crate) const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);
/// Calls open at once on one connection.
const STREAMS_MAX: u32 = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_bind_is_refused_and_names_both_cures() {
        let everywhere = "0.0.0.0:7070".parse().unwrap();
        let words = Access::default().check(everywhere).unwrap_err().to_string();
        assert!(words.contains("--insecure") && words.contains("--tls-cert"), "{words}");
        assert!(Access { insecure: true, ..Access::default() }.check(everywhere).is_ok());
        assert!(Access::default().check("127.0.0.1:7070".parse().unwrap()).is_ok());
        assert!(Access::default().check("[::1]:7070".parse().unwrap()).is_ok());
    }

    #[test]
    fn https_without_an_authority_says_what_is_missing() {
        let Err(Refusal::Invalid(words)) = Credentials::default().endpoint("https://a:1") else {
            panic!("https without an authority must be refused")
        };
        assert!(words.contains("--tls-ca"), "{words}");
    }
}
