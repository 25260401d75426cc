//! Takes connections over TLS: certificates that are read again when their files change, and handshakes that fail
//! are told to the log with who it was and why.

use super::Access;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Identity;
use tracing::{info, warn};

/// A certificate chain and its key: PEM texts, or files of them, which may be exchanged at any time.
#[derive(Clone)]
pub enum OwnCertificate {
    Pem { chain: String, key: String },
    Files { chain: PathBuf, key: PathBuf },
}

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("read {path}: {what}")]
    File { path: PathBuf, what: String },
    /// `place` is a file, or what a text is for.
    #[error("{place}: {what}")]
    Pem { place: String, what: String },
    #[error("{chain} and {key} do not fit together: {why}")]
    Unfit { chain: String, key: String, why: rustls::Error },
    #[error("set up TLS: {0}")]
    SetUp(rustls::Error),
    #[error("the agents' authority: {0}")]
    Authority(String),
}

impl OwnCertificate {
    pub fn from_pem(chain: &str, key: &str) -> OwnCertificate {
        OwnCertificate::Pem { chain: chain.to_string(), key: key.to_string() }
    }

    /// Reads once, to see that both are there and fit.
    pub fn from_files(chain: PathBuf, key: PathBuf) -> Result<OwnCertificate, TlsError> {
        let own = OwnCertificate::Files { chain, key };
        own.certified(&ring::default_provider())?;
        Ok(own)
    }

    /// Chain and key as they are now.
    fn texts(&self) -> Result<(String, String), TlsError> {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|e| TlsError::File { path: path.clone(), what: e.to_string() })
        };
        match self {
            OwnCertificate::Pem { chain, key } => Ok((chain.clone(), key.clone())),
            OwnCertificate::Files { chain, key } => Ok((read(chain)?, read(key)?)),
        }
    }

    pub(super) fn identity(&self) -> Result<Identity, TlsError> {
        self.texts().map(|(chain, key)| Identity::from_pem(chain, key))
    }

    fn certified(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let (chain, key) = self.texts()?;
        let (chain_place, key_place) = self.places();
        let bad = |place: &String, what: String| TlsError::Pem { place: place.clone(), what };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|e| bad(&chain_place, format!("the certificate in it cannot be read: {e}")))?;
        if chain.is_empty() {
            return Err(bad(&chain_place, "there is no certificate in it".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
            .map_err(|e| bad(&key_place, format!("the key in it cannot be read: {e}")))?;
        let unfit = |why| TlsError::Unfit { chain: chain_place.clone(), key: key_place.clone(), why };
        CertifiedKey::from_der(chain, key, provider).map_err(unfit)
    }

    /// Where chain and key come from, for errors.
    fn places(&self) -> (String, String) {
        match self {
            OwnCertificate::Pem { .. } => ("the certificate".into(), "the certificate's key".into()),
            OwnCertificate::Files { chain, key } => (chain.display().to_string(), key.display().to_string()),
        }
    }

    /// Other ones: its files were written anew, exchanged, or given to somebody else.
    fn written(&self) -> Option<[Written; 2]> {
        let OwnCertificate::Files { chain, key } = self else { return None };
        let of = |path: &PathBuf| {
            let about = std::fs::metadata(path).ok()?;
            Some([about.mtime(), about.mtime_nsec(), about.ctime(), about.ctime_nsec(), about.ino() as i64])
        };
        Some([of(chain)?, of(key)?])
    }
}

/// Of a file: times of its content and of its place, and the inode.
type Written = [i64; 5];

/// The certificate in force. A change of the files is seen at a handshake; a pair that does not fit, as between the
/// writing of one file and the other, is not taken, and the one before serves on.
struct Newest {
    own: OwnCertificate,
    provider: Arc<CryptoProvider>,
    now: Mutex<Held>,
}

struct Held {
    key: Arc<CertifiedKey>,
    /// Of the files that it was read from.
    written: Option<[Written; 2]>,
    looked: Instant,
    /// Why the files as they are now are not taken, as it was told.
    told: Option<String>,
}

impl std::fmt::Debug for Newest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Newest")
    }
}

impl ResolvesServerCert for Newest {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut held = self.now.lock().expect("nobody panics while holding this lock");
        if held.looked.elapsed() >= LOOK_PERIOD {
            held.looked = Instant::now();
            let written = self.own.written();
            if written != held.written {
                match self.own.certified(&self.provider) {
                    Ok(key) => {
                        (held.key, held.written, held.told) = (Arc::new(key), written, None);
                        info!("the certificate was exchanged");
                    }
                    // Tried again each time: the files may be as they are, and the reason gone.
                    Err(error) if held.told.as_ref().is_some_and(|told| *told == error.to_string()) => {}
                    Err(error) => {
                        warn!(%error, "the new certificate is not taken; the one before serves on");
                        held.told = Some(error.to_string());
                    }
                }
            }
        }
        Some(held.key.clone())
    }
}

/// Makes TLS connections of TCP connections.
pub(crate) struct Tls {
    config: Arc<ServerConfig>,
    access: Access,
}

impl Access {
    /// None: plain text.
    pub(crate) fn tls(&self) -> Result<Option<Tls>, TlsError> {
        let Some(config) = self.server_config(b"h2")? else { return Ok(None) };
        Ok(Some(Tls { config, access: self.clone() }))
    }

    /// For a listener of one's own that speaks `protocol` (ALPN) over the same certificate. None: plain text.
    pub fn server_config(&self, protocol: &[u8]) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        let Some(own) = &self.certificate else { return Ok(None) };
        let provider = Arc::new(ring::default_provider());
        let written = own.written();
        let key = Arc::new(own.certified(&provider)?);
        let now = Mutex::new(Held { key, written, looked: Instant::now(), told: None });
        let newest = Arc::new(Newest { own: own.clone(), provider: provider.clone(), now });
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(TlsError::SetUp)?;
        let builder = match &self.agent_authority_pem {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                // People come without a certificate; what needs one is in `methods`.
                let verifier = WebPkiClientVerifier::builder_with_provider(roots(pem)?.into(), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|e| TlsError::Authority(e.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(newest);
        config.alpn_protocols = vec![protocol.to_vec()];
        Ok(Some(Arc::new(config)))
    }
}

fn roots(pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|e| TlsError::Authority(e.to_string()))?;
        roots.add(certificate).map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    match roots.is_empty() {
        true => Err(TlsError::Authority("there is no certificate in it".into())),
        false => Ok(roots),
    }
}

impl Tls {
    /// Connections whose handshake is over. Many may be under way at once; none holds up another.
    pub fn incoming(self, listener: TcpListener) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
        let (out, connections) = mpsc::channel(1);
        tokio::spawn(self.accept(listener, out));
        ReceiverStream::new(connections)
    }

    async fn accept(self, listener: TcpListener, out: mpsc::Sender<io::Result<TlsStream<TcpStream>>>) {
        let room = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let (socket, peer) = tokio::select! {
                () = out.closed() => return,
                taken = listener.accept() => match taken {
                    Ok(taken) => taken,
                    // Out of file descriptors, or the caller has hung up already.
                    Err(error) => {
                        self.access.tell_refused(None, "accept", &error);
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (acceptor, access, out) = (TlsAcceptor::from(self.config.clone()), self.access.clone(), out.clone());
            tokio::spawn(async move {
                let _permit = permit;
                let _ = socket.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(socket)).await {
                    // Nobody is there to take it when the server has stopped.
                    Ok(Ok(stream)) => drop(out.send(Ok(stream)).await),
                    Ok(Err(error)) => access.tell_handshake(peer, &error),
                    Err(_) => access.tell_handshake(peer, &io::ErrorKind::TimedOut.into()),
                }
            });
        }
    }
}

impl Access {
    /// Tells the log that somebody's handshake came to nothing, as [`Access::tell_refused`] does. Whoever looks
    /// whether the port is open, as probes do, and hangs up, is not told of.
    pub fn tell_handshake(&self, peer: SocketAddr, error: &io::Error) {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {}
            _ => self.tell_refused(Some(peer), "TLS handshake", &words(error)),
        }
    }
}

/// What went wrong, in the words of whoever has to mend it.
fn words(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::TimedOut {
        return "took too long".into();
    }
    let cause = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    match cause {
        Some(rustls::Error::InvalidMessage(_)) => "the caller speaks plain text, or something else than TLS".into(),
        Some(rustls::Error::AlertReceived(alert)) => {
            format!("the caller refused our certificate ({alert:?}): it trusts another authority, or the name differs")
        }
        Some(rustls::Error::InvalidCertificate(why)) => format!("the caller's certificate: {why:?}"),
        _ => error.to_string(),
    }
}

/// How often files are looked at, at most.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
const HANDSHAKES_MAX: usize = 256;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
