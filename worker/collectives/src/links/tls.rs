//! Encryption of the data plane: both sides show a certificate of the cluster's own authority.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

/// Certificates of one worker, for both directions.
#[derive(Clone)]
pub struct TlsConfig {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    /// What peers' certificates must carry; None: the host that is dialled.
    peer_name: Option<ServerName<'static>>,
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {path}: {what}")]
    File { path: PathBuf, what: String },
    #[error("the certificates in {dir} do not fit together: {error}")]
    Unfit { dir: PathBuf, error: rustls::Error },
    #[error("{path} cannot serve as the authority: {what}")]
    Authority { path: PathBuf, what: String },
}

impl TlsConfig {
    /// From `ca.pem` (who is trusted), `cert.pem` (ours, with its chain) and `key.pem`. The certificate must name
    /// the host by which peers reach this worker, or, where addresses come and go, the one name that stands in
    /// `peer-name` of every peer.
    pub fn from_dir(dir: &Path) -> Result<TlsConfig, TlsError> {
        let authorities = certificates(&dir.join("ca.pem"))?;
        let chain = certificates(&dir.join("cert.pem"))?;
        let key_path = dir.join("key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|e| TlsError::File { path: key_path.clone(), what: e.to_string() })?;
        let authority = |what: String| TlsError::Authority { path: dir.join("ca.pem"), what };
        let mut roots = RootCertStore::empty();
        for certificate in authorities {
            roots.add(certificate).map_err(|e| authority(e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let unfit = |error| TlsError::Unfit { dir: dir.to_path_buf(), error };
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .build()
            .map_err(|e| authority(e.to_string()))?;
        let client = ClientConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key.clone_key())
            .map_err(unfit)?;
        let server = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unfit)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(unfit)?;
        let peer_name = peer_name(&dir.join("peer-name"))?;
        Ok(TlsConfig { client: Arc::new(client), server: Arc::new(server), peer_name })
    }

    pub(super) async fn connect(&self, address: &str, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        if let Some(name) = &self.peer_name {
            return Ok(TlsConnector::from(self.client.clone()).connect(name.clone(), socket).await?.into());
        }
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_string())
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host:?} is no host name")))?;
        Ok(TlsConnector::from(self.client.clone()).connect(name, socket).await?.into())
    }

    pub(super) async fn accept(&self, socket: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        Ok(TlsAcceptor::from(self.server.clone()).accept(socket).await?.into())
    }
}

/// The file is there only where certificates carry one name for all.
fn peer_name(path: &Path) -> Result<Option<ServerName<'static>>, TlsError> {
    let bad = |what: String| TlsError::File { path: path.to_path_buf(), what };
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(bad(e.to_string())),
        Ok(text) => {
            let name = text.trim().to_string();
            ServerName::try_from(name).map(Some).map_err(|e| bad(e.to_string()))
        }
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |what: String| TlsError::File { path: path.to_path_buf(), what };
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| bad(e.to_string()))?.collect();
    let found = found.map_err(|e| bad(e.to_string()))?;
    if found.is_empty() { Err(bad("it holds no certificate".to_string())) } else { Ok(found) }
}
