//! Who may speak to a listener, and how a client proves itself: TLS, tokens, certificates, or the loopback.
//!
//! `methods` says what each call needs, `gate` asks for it, `ring` holds the tokens that are known, `tls` takes
//! connections, and `refused` tells the log who was turned away.

mod gate;
mod methods;
mod refused;
mod ring;
mod tls;

pub use methods::{METHODS, Need};
pub use ring::{Denied, Principal, Ring};
pub use tls::{OwnCertificate, TlsError};

use crate::Refusal;
use elastic_spec::access::Role;
pub use refused::Refused;
use std::net::SocketAddr;
use std::path::PathBuf;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

/// What a listener asks of its callers. Cheap to clone; clones share the tokens that are known.
#[derive(Clone, Default)]
pub struct Access {
    /// Whoever shows it may do everything: the cluster's own, or the one of an agent's logs.
    pub token: Option<String>,
    /// TLS.
    pub certificate: Option<OwnCertificate>,
    /// PEM text. Agents must show a certificate that this authority signed, and need no token then.
    pub agent_authority_pem: Option<String>,
    /// Plain text, and no proof, on an address that others can reach is wanted, not an oversight.
    pub insecure: bool,
    /// Tokens besides `token`.
    pub ring: Ring,
    /// Tells the log who was turned away.
    pub refused: Refused,
}

/// What a client shows and trusts.
#[derive(Clone, Default)]
pub struct Credentials {
    pub token: Option<String>,
    /// Read anew for each connection, so that a token can be exchanged under a running agent; in place of `token`.
    pub token_file: Option<PathBuf>,
    /// PEM text of the authority that signed the server's certificate. Needed for https.
    pub authority_pem: Option<String>,
    /// Shown to servers that ask for one.
    pub certificate: Option<OwnCertificate>,
    /// The name that servers' certificates carry; None: the host that is dialled.
    pub server_name: Option<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenBind {
    #[error(
        "{0} can be reached from other machines and would be served in plain text: give a certificate and key \
         (--tls-cert, --tls-key, or --tls-dir; `elastic certs` makes them), or say --insecure if the network is trusted"
    )]
    Plain(SocketAddr),
    #[error(
        "{0} can be reached from other machines and would do what anybody asks: say with --token-file which token \
         callers must show (`elastic certs cluster` makes one), or say --insecure if the network is trusted"
    )]
    Unguarded(SocketAddr),
}

impl Access {
    /// Refuses plain text, and open doors, outside the loopback unless that was asked for.
    pub fn check(&self, bound: SocketAddr) -> Result<(), OpenBind> {
        match bound.ip().is_loopback() || self.insecure {
            true => Ok(()),
            false if self.certificate.is_none() => Err(OpenBind::Plain(bound)),
            false if self.is_open() => Err(OpenBind::Unguarded(bound)),
            false => Ok(()),
        }
    }

    /// Nobody has to prove anything here.
    pub fn is_open(&self) -> bool {
        self.token.is_none() && self.agent_authority_pem.is_none()
    }

    /// Judges the token that a caller shows (the text behind "Bearer "), for what needs `needed`.
    pub fn check_bearer(&self, shown: Option<&str>, needed: Role, now_unix_ms: u64) -> Result<Principal, Denied> {
        if self.is_open() {
            return Ok(Principal::anybody());
        }
        let shown = shown.filter(|text| !text.is_empty()).ok_or(Denied::NoToken)?;
        let principal = match self.token.as_deref().is_some_and(|own| ring::same_text(own, shown)) {
            true => Principal::owner(),
            false => self.ring.find(shown, now_unix_ms)?,
        };
        // Where agents show certificates, a token makes none.
        match principal.may(needed) && (needed != Role::Agent || self.agent_authority_pem.is_none()) {
            true => Ok(principal),
            false if needed == Role::Agent && self.agent_authority_pem.is_some() => Err(Denied::NoCertificate),
            false => Err(Denied::Lacks { who: principal, needed }),
        }
    }

    /// Tells the log that somebody was turned away, without what was shown, and not more often than a person reads.
    pub fn tell_refused(&self, peer: Option<SocketAddr>, what: &str, why: &dyn std::fmt::Display) {
        self.refused.tell(peer, what, why);
    }
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
            (true, Some(pem)) => {
                let mut tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
                if let Some(name) = &self.server_name {
                    tls = tls.domain_name(name);
                }
                if let Some(own) = &self.certificate {
                    tls = tls.identity(own.identity().map_err(|e| Refusal::Invalid(e.to_string()))?);
                }
                endpoint.tls_config(tls).map_err(|e| bad(&e))
            }
        }
    }

    /// The token as it is now.
    pub fn now(&self) -> Result<Option<String>, Refusal> {
        let token = match &self.token_file {
            None => self.token.clone(),
            Some(path) => {
                let read = |e| Refusal::Invalid(format!("read the token in {}: {e}", path.display()));
                Some(std::fs::read_to_string(path).map_err(read)?.trim().to_string())
            }
        };
        Ok(token.filter(|t| !t.is_empty()))
    }

    pub(crate) fn bearer(&self) -> Result<Bearer, Refusal> {
        let header = self.now()?.map(|t| format!("Bearer {t}").parse()).transpose();
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
pub(crate) const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(2);
pub(crate) const KEEP_ALIVE_LATE: std::time::Duration = std::time::Duration::from_secs(3);
pub(crate) const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::access::{Token, token_text};
    use elastic_spec::{Digest, TokenName};

    const NOW: u64 = 1_000_000;

    fn token(name: &str, role: Role) -> (Token, String) {
        let name = TokenName::parse(name).unwrap();
        let text = token_text(&name, Digest::of(name.as_str().as_bytes()).0.as_ref().try_into().unwrap());
        let digest = Digest::of(text.as_bytes());
        (Token { name, role, digest, made_unix_ms: 0, expires_unix_ms: NOW + 1 }, text)
    }

    /// A listener with its own token and one of each role.
    fn guarded() -> (Access, Vec<(Role, String)>) {
        let access = Access { token: Some("own".into()), ..Access::default() };
        let made = Role::ALL.map(|role| token(role.as_str(), role));
        access.ring.replace(made.iter().map(|(token, _)| token.clone()).collect());
        (access, made.into_iter().map(|(token, text)| (token.role, text)).collect())
    }

    #[test]
    fn an_open_bind_is_refused_and_names_the_cures() {
        let everywhere = "0.0.0.0:7070".parse().unwrap();
        let words = Access::default().check(everywhere).unwrap_err().to_string();
        for cure in ["--insecure", "--tls-cert", "elastic certs"] {
            assert!(words.contains(cure), "{words}");
        }
        let certificate = Some(OwnCertificate::from_pem("", ""));
        let words = Access { certificate: certificate.clone(), ..Access::default() }.check(everywhere).unwrap_err();
        assert_eq!(words, OpenBind::Unguarded(everywhere));
        let guarded = Access { certificate, token: Some("t".into()), ..Access::default() };
        assert_eq!(guarded.check(everywhere), Ok(()));
        assert!(Access { insecure: true, ..Access::default() }.check(everywhere).is_ok());
        assert!(Access::default().check("127.0.0.1:7070".parse().unwrap()).is_ok());
        assert!(Access::default().check("[::1]:7070".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_token_opens_what_its_role_covers_and_nothing_else() {
        let (access, made) = guarded();
        for (role, text) in &made {
            for needed in Role::ALL {
                let judged = access.check_bearer(Some(text), needed, NOW);
                assert_eq!(judged.is_ok(), role.covers(needed), "{role} for {needed}: {judged:?}");
            }
        }
        for needed in Role::ALL {
            assert!(access.check_bearer(Some("own"), needed, NOW).is_ok(), "the cluster's own token: {needed}");
        }
    }

    #[test]
    fn what_is_missing_unknown_expired_or_revoked_is_refused_as_such() {
        let (access, made) = guarded();
        let admin = made[3].1.as_str();
        let judge = |shown: Option<&str>, now| access.check_bearer(shown, Role::Viewer, now).unwrap_err();
        assert_eq!(judge(None, NOW), Denied::NoToken);
        assert_eq!(judge(Some(""), NOW), Denied::NoToken);
        assert_eq!(judge(Some("own2"), NOW), Denied::Unknown);
        let mut forged = admin.to_string();
        forged.pop();
        assert_eq!(judge(Some(&forged), NOW), Denied::Unknown);
        forged.push(if admin.ends_with('0') { '1' } else { '0' });
        assert_eq!(judge(Some(&forged), NOW), Denied::Unknown);
        assert!(matches!(judge(Some(admin), NOW + 1), Denied::Expired(name) if name.as_str() == "admin"));
        access.ring.replace(Vec::new());
        assert_eq!(judge(Some(admin), NOW), Denied::Unknown, "revoked");
        access.ring.forget();
        assert_eq!(judge(Some(admin), NOW), Denied::Elsewhere, "a standby knows none");
    }

    #[test]
    fn where_agents_show_certificates_no_token_makes_an_agent() {
        let (access, made) = guarded();
        let access = Access { agent_authority_pem: Some(String::new()), ..access };
        for shown in ["own", &made[0].1] {
            assert_eq!(access.check_bearer(Some(shown), Role::Agent, NOW), Err(Denied::NoCertificate));
        }
        assert!(access.check_bearer(Some("own"), Role::Admin, NOW).is_ok());
    }

    #[test]
    fn no_refusal_says_what_was_shown() {
        let (access, made) = guarded();
        for (_, text) in &made {
            for needed in Role::ALL {
                if let Err(denied) = access.check_bearer(Some(text), needed, NOW) {
                    let secret = text.rsplit('.').next().unwrap();
                    assert!(!denied.to_string().contains(secret) && !format!("{denied:?}").contains(secret));
                }
            }
        }
    }

    #[test]
    fn https_without_an_authority_says_what_is_missing() {
        let Err(Refusal::Invalid(words)) = Credentials::default().endpoint("https://a:1") else {
            panic!("https without an authority must be refused")
        };
        assert!(words.contains("--tls-ca"), "{words}");
    }
}
