//! TLS of the HTTP listener, by rustls and ring. That of gRPC is tonic's.

use crate::config::Certificate;
use anyhow::{Context, Result};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;

pub fn acceptor(certificate: &Certificate) -> Result<TlsAcceptor> {
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(certificate.chain_pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("read the certificate")?;
    anyhow::ensure!(!chain.is_empty(), "there is no certificate in the file of --tls-cert");
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).context("read the certificate's key")?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .context("set up TLS")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("use the certificate with its key")?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
