//! Links over TCP: one connection for each pair of members, kept for as long as both want it.
//!
//! The lower worker id dials, the other accepts, so a pair never has two connections. A view change touches
//! only links that come or go; frames of the old view arrive as before and are judged by `member`. A link that
//! broke is dialled again until its peer is no longer wanted. Whether a silent peer is dead is decided
//! elsewhere; a link only reports what it sees, and closes after a second and a half without a byte.
//!
//! **Back-pressure.** [`Links::send`] never waits, so a member's loop cannot be held up by a peer. Each peer has
//! a queue bounded in bytes ([`LinkConfig::queue_bytes_max`]) that its own task empties; payloads are shared,
//! not copied, so a queued frame costs memory only once its sender lets go of it. A full queue refuses further
//! frames ([`Sent::Full`]), but always keeps the newest `At`, by which the peers' requests go on: what was
//! refused is asked for again. In the other direction a reader that finds the event channel full stops
//! reading, and TCP holds the peer back.
//!
//! `handshake` proves who is there, `tls` encrypts, `queue` and `peer` keep one link going.

mod handshake;
mod peer;
mod queue;
mod stream;
mod tls;

pub use tls::{TlsConfig, TlsError};

use crate::codec::Identity;
use crate::transport::{LinkEvent, Sent, Transport};
use elastic_spec::frame::Frame;
use elastic_spec::limits::WORKERS_MAX;
use elastic_spec::{Digest, JobId, WorkerId};
use handshake::Proof;
use peer::{Peer, Wanted};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use stream::Stream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

/// Nothing was read for so long: the link is closed, in ms. A peer that lives sends a beat each
/// [`LINK_BEAT_MS`], so this is evidence; a false alarm costs one reconnection.
pub const LINK_SILENCE_MS: u64 = 1_500;
pub const LINK_BEAT_MS: u64 = 200;
/// A peer that is no longer wanted may still need our last frames, for so many ms.
pub const LINGER_MS: u64 = 2_000;
/// A peer that dials before our view names it is listened to for so many ms.
pub const UNLISTED_MS: u64 = 10_000;
/// From the first byte to proof on both sides, in ms.
pub const HANDSHAKE_MS: u64 = 2_000;
/// To reach a peer's port at all, in ms.
pub const CONNECT_MS: u64 = 1_000;
/// Between two attempts, in ms: at first, and at most.
pub const REDIAL_MS: u64 = 5;
pub const REDIAL_MS_MAX: u64 = 1_000;
/// Strangers whose proof is awaited at the same time.
const STRANGERS_MAX: usize = 64;

#[derive(Clone)]
pub struct LinkConfig {
    pub me: WorkerId,
    pub job: JobId,
    pub config_digest: Digest,
    /// What only the workers of this job know.
    pub secret: Vec<u8>,
    /// The host (name or address) whose interface is listened on.
    pub bind: String,
    /// The host by which peers reach this one.
    pub advertise: String,
    /// The first free port of these; any free one where there is no range.
    pub ports: Option<RangeInclusive<u16>>,
    pub tls: Option<TlsConfig>,
    /// Allows a bind outside loopback without TLS.
    pub insecure: bool,
    /// Most bytes that wait for one peer. Room for what is sent to one peer at a time is needed: twice a
    /// round's value, and a part of the state. The default suits models up to about 100 MB.
    pub queue_bytes_max: usize,
}

impl LinkConfig {
    pub const QUEUE_BYTES_MAX: usize = 512 << 20;

    /// On loopback, any port, no TLS.
    pub fn local(me: WorkerId, job: JobId, config_digest: Digest, secret: Vec<u8>) -> LinkConfig {
        let host = "127.0.0.1".to_string();
        LinkConfig {
            me,
            job,
            config_digest,
            secret,
            bind: host.clone(),
            advertise: host,
            ports: None,
            tls: None,
            insecure: false,
            queue_bytes_max: LinkConfig::QUEUE_BYTES_MAX,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error(
        "bind {0}: peers' traffic would be readable on the network; give certificates (a TLS directory), \
         bind to loopback, or allow it with --insecure"
    )]
    Exposed(IpAddr),
    #[error("bind {host}: {error}")]
    Host { host: String, error: io::Error },
    #[error("bind {host}: no free port in {first}-{last} ({error})")]
    NoPort { host: IpAddr, first: u16, last: u16, error: io::Error },
    #[error("the data plane's secret is empty: workers could not tell each other from strangers")]
    NoSecret,
}

/// The data plane of one worker. Dropping it closes everything at once; [`Links::close`] lets the last frames out.
pub struct Links {
    address: String,
    shared: Arc<Shared>,
    /// Accepts connections; ends when dropped.
    _tasks: JoinSet<()>,
}

/// What the tasks of one worker's links have in common.
struct Shared {
    me: WorkerId,
    identity: Identity,
    proof: Proof,
    tls: Option<TlsConfig>,
    queue_bytes_max: usize,
    events: mpsc::Sender<LinkEvent>,
    peers: Mutex<BTreeMap<WorkerId, Peer>>,
    /// True once the links are to be closed in good order.
    closing: watch::Sender<bool>,
}

impl Links {
    /// Listens, and delivers what happens into `events`.
    pub async fn start(config: LinkConfig, events: mpsc::Sender<LinkEvent>) -> Result<Links, LinkError> {
        if config.secret.is_empty() {
            return Err(LinkError::NoSecret);
        }
        let listener = listen(&config).await?;
        let port = listener.local_addr().map_err(|error| LinkError::Host { host: config.bind.clone(), error })?.port();
        let address = match config.advertise.contains(':') && !config.advertise.starts_with('[') {
            true => format!("[{}]:{port}", config.advertise),
            false => format!("{}:{port}", config.advertise),
        };
        let shared = Arc::new(Shared {
            me: config.me,
            identity: Identity::new(&config.job, config.config_digest),
            proof: Proof::new(&config.job, config.config_digest, config.me, config.secret),
            tls: config.tls,
            queue_bytes_max: config.queue_bytes_max,
            events,
            peers: Mutex::default(),
            closing: watch::Sender::new(false),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(shared.clone(), listener));
        Ok(Links { address, shared, _tasks: tasks })
    }

    /// Writes what is queued, says goodbye and closes, all within `limit`. Nothing is sent or taken in afterwards.
    pub async fn close(&self, limit: Duration) {
        self.shared.closing.send_replace(true);
        let tasks: Vec<_> = std::mem::take(&mut *self.shared.peers()).into_values().map(Peer::into_task).collect();
        let _ = tokio::time::timeout(limit, async {
            for task in tasks {
                let _ = task.await;
            }
        })
        .await;
    }
}

impl Transport for Links {
    fn send(&self, to: WorkerId, frame: Frame) -> Sent {
        match self.shared.peers().get(&to) {
            Some(peer) => peer.send(frame),
            None => Sent::Unknown,
        }
    }

    fn set_peers(&self, wanted: Vec<(WorkerId, String)>) {
        let wanted: BTreeMap<WorkerId, String> = wanted.into_iter().filter(|(id, _)| *id != self.shared.me).collect();
        let mut peers = self.shared.peers();
        for (id, peer) in peers.iter().filter(|(id, _)| !wanted.contains_key(id)) {
            debug!(peer = %id, "peer is no longer wanted");
            peer.leave(Duration::from_millis(LINGER_MS));
        }
        for (id, address) in wanted {
            let peer = peers.entry(id).or_insert_with(|| Peer::start(&self.shared, id, Wanted::At(address.clone())));
            peer.want(address);
        }
    }

    fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.peers().clear();
    }
}

impl Shared {
    fn peers(&self) -> MutexGuard<'_, BTreeMap<WorkerId, Peer>> {
        self.peers.lock().expect("no one panics with the peers in hand")
    }

    /// A peer has dialled and proved who it is.
    fn take_in(self: &Arc<Shared>, id: WorkerId, stream: Stream) {
        if *self.closing.borrow() {
            return;
        }
        let mut peers = self.peers();
        if !peers.contains_key(&id) && peers.len() >= usize::from(WORKERS_MAX) * 2 {
            warn!(peer = %id, "too many peers; connection closed");
            return;
        }
        let until = Wanted::Until(tokio::time::Instant::now() + Duration::from_millis(UNLISTED_MS));
        peers.entry(id).or_insert_with(|| Peer::start(self, id, until)).take_in(stream);
    }
}

async fn listen(config: &LinkConfig) -> Result<TcpListener, LinkError> {
    let host = |error| LinkError::Host { host: config.bind.clone(), error };
    let found = tokio::net::lookup_host((config.bind.trim_matches(['[', ']']), 0)).await.map_err(host)?.next();
    let ip = found.ok_or_else(|| host(io::Error::from(io::ErrorKind::NotFound)))?.ip();
    if !ip.is_loopback() && config.tls.is_none() && !config.insecure {
        return Err(LinkError::Exposed(ip));
    }
    let ports = config.ports.clone().unwrap_or(0..=0);
    let mut refused = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports.clone() {
        match TcpListener::bind(SocketAddr::new(ip, port)).await {
            Ok(listener) => return Ok(listener),
            Err(error) => refused = error,
        }
    }
    Err(LinkError::NoPort { host: ip, first: *ports.start(), last: *ports.end(), error: refused })
}

/// Accepts until the links are dropped. Strangers are few at a time and short-lived.
async fn accept(shared: Arc<Shared>, listener: TcpListener) {
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    let mut greetings = JoinSet::new();
    loop {
        let permit = strangers.clone().acquire_owned().await.expect("the semaphore is never closed");
        while greetings.try_join_next().is_some() {}
        let (socket, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "connections cannot be accepted; trying again");
                tokio::time::sleep(Duration::from_millis(REDIAL_MS_MAX / 10)).await;
                continue;
            }
        };
        let shared = shared.clone();
        greetings.spawn(async move {
            greet(&shared, socket, from).await;
            drop(permit);
        });
    }
}

async fn greet(shared: &Arc<Shared>, socket: TcpStream, from: SocketAddr) {
    let greeting = async {
        let mut stream = Stream::accept(socket, shared.tls.as_ref()).await?;
        let id = handshake::accept(&shared.proof, &mut stream).await?;
        Ok::<_, handshake::Refused>((id, stream))
    };
    match tokio::time::timeout(Duration::from_millis(HANDSHAKE_MS), greeting).await {
        Ok(Ok((id, stream))) => shared.take_in(id, stream),
        // A connection that says nothing is a probe, or a peer that has thought better of it.
        Ok(Err(handshake::Refused::Io(error))) => debug!(%from, %error, "connection ended before its proof"),
        Ok(Err(why)) => warn!(%from, %why, "connection refused"),
        Err(_) => debug!(%from, "connection gave no proof in time"),
    }
}
