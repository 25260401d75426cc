//! One peer: its queue, and a task that keeps a connection to it for as long as it is wanted.

use super::handshake::{self, Refused};
use super::queue::Queue;
use super::stream::{ReadHalf, Stream, WriteHalf};
use super::{CONNECT_MS, HANDSHAKE_MS, LINK_BEAT_MS, LINK_SILENCE_MS, REDIAL_MS, REDIAL_MS_MAX, Shared};
use crate::codec::{self, DecodeError, HEADER_BYTES, Header, Identity, Wire};
use crate::transport::{LinkEvent, Sent};
use bytes::{Buf, Bytes, BytesMut};
use elastic_spec::WorkerId;
use elastic_spec::frame::Frame;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

/// Payloads up to this size share one write with their neighbours; larger ones are handed over as they lie.
const GATHER_BYTES_MAX: usize = 16 << 10;
/// A write is not held back beyond this.
const WRITE_BYTES: usize = 64 << 10;
/// Read at a time, unless a large frame is on its way.
const READ_BYTES: usize = 256 << 10;
/// Memory taken ahead of what a large frame has really sent.
const AHEAD_BYTES_MAX: usize = 4 << 20;
/// After our goodbye, the peer has so long to say its own, in ms.
const GOODBYE_MS: u64 = 300;

/// For how long a peer is to be reachable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// While it is there, at host:port.
    At(String),
    Until(Instant),
}

pub struct Peer {
    queue: Arc<Queue>,
    wanted: watch::Sender<Wanted>,
    inbound: mpsc::Sender<Stream>,
    task: Option<JoinHandle<()>>,
}

impl Peer {
    pub fn start(shared: &Arc<Shared>, id: WorkerId, wanted: Wanted) -> Peer {
        let queue = Arc::new(Queue::new(shared.queue_bytes_max));
        let (wanted, wanted_now) = watch::channel(wanted);
        let (inbound, dialled_us) = mpsc::channel(1);
        let link = Link { shared: shared.clone(), id, queue: queue.clone(), wanted: wanted_now, dialled_us };
        Peer { queue, wanted, inbound, task: Some(tokio::spawn(link.keep())) }
    }

    pub fn send(&self, frame: Frame) -> Sent {
        self.queue.push(frame)
    }

    pub fn want(&self, address: String) {
        self.wanted
            .send_if_modified(|wanted| std::mem::replace(wanted, Wanted::At(address.clone())) != Wanted::At(address));
    }

    /// No longer wanted: the link ends after `linger`. Saying so twice does not prolong it.
    pub fn leave(&self, linger: Duration) {
        self.wanted.send_if_modified(|wanted| match wanted {
            Wanted::Until(_) => false,
            Wanted::At(_) => {
                *wanted = Wanted::Until(Instant::now() + linger);
                true
            }
        });
    }

    /// The peer has dialled. Should one more stand in line already, the peer will dial again.
    pub fn take_in(&self, stream: Stream) {
        let _ = self.inbound.try_send(stream);
    }

    /// Lets the task run to its end by itself.
    pub fn into_task(mut self) -> JoinHandle<()> {
        self.task.take().expect("a peer has its task until it is taken")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What the task works with.
struct Link {
    shared: Arc<Shared>,
    id: WorkerId,
    queue: Arc<Queue>,
    wanted: watch::Receiver<Wanted>,
    dialled_us: mpsc::Receiver<Stream>,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the peer closed it")]
    Eof,
    #[error("nothing came for {LINK_SILENCE_MS} ms")]
    Silent,
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("no one listens to its events any more")]
    Unheard,
    #[error("the peer dialled again")]
    Replaced,
    #[error("the peer is no longer wanted")]
    Unwanted,
    #[error("closed in good order")]
    Closed,
}

impl Link {
    async fn keep(mut self) {
        let mut closing = self.shared.closing.subscribe();
        let mut pause = Duration::from_millis(REDIAL_MS);
        let mut replacement = None;
        loop {
            let stream = match replacement.take() {
                Some(stream) => stream,
                None => tokio::select! {
                    Some(stream) = self.dialled_us.recv() => stream,
                    stream = dial(&self.shared, self.id, self.wanted.clone(), pause) => stream,
                    () = expiry(self.wanted.clone()) => match self.forget() {
                        true => return,
                        false => continue,
                    },
                    _ = closing.wait_for(|closing| *closing) => return,
                },
            };
            let since = Instant::now();
            let (end, next) = self.serve(stream, &mut closing).await;
            replacement = next;
            match &end {
                End::Decode(error) => warn!(peer = %self.id, %error, "link closed: the peer sent what is no frame"),
                end => debug!(peer = %self.id, %end, "link down"),
            }
            let told = self.shared.events.send(LinkEvent::Down(self.id)).await;
            if told.is_err() || matches!(end, End::Closed) {
                return;
            }
            // A link that breaks as soon as it is up is not dialled in a tight loop.
            pause = match since.elapsed() > Duration::from_millis(REDIAL_MS_MAX) {
                true => Duration::from_millis(REDIAL_MS),
                false => (pause * 2).min(Duration::from_millis(REDIAL_MS_MAX)),
            };
        }
    }

    /// Carries frames both ways until something ends it.
    async fn serve(&mut self, stream: Stream, closing: &mut watch::Receiver<bool>) -> (End, Option<Stream>) {
        let events = &self.shared.events;
        if events.send(LinkEvent::Up(self.id)).await.is_err() {
            return (End::Unheard, None);
        }
        debug!(peer = %self.id, "link up");
        let (from_peer, to_peer) = stream.split();
        let mut reading = JoinSet::new();
        reading.spawn(read(from_peer, self.shared.identity, self.id, events.clone()));
        let read_end = |joined: Option<Result<End, _>>| joined.and_then(Result::ok).unwrap_or(End::Eof);
        tokio::select! {
            end = write(to_peer, self.shared.identity, &self.queue, closing) => {
                if matches!(end, End::Closed) {
                    // Closing with unread bytes would make the kernel take back what the peer has not read yet.
                    let _ = timeout(Duration::from_millis(GOODBYE_MS), reading.join_next()).await;
                }
                (end, None)
            }
            joined = reading.join_next() => (read_end(joined), None),
            Some(stream) = self.dialled_us.recv() => (End::Replaced, Some(stream)),
            () = expiry(self.wanted.clone()) => (End::Unwanted, None),
        }
    }

    /// Takes the peer off the list, unless it is wanted again.
    fn forget(&self) -> bool {
        let mut peers = self.shared.peers();
        let is_over = matches!(&*self.wanted.borrow(), Wanted::Until(when) if *when <= Instant::now());
        if is_over && let Some(peer) = peers.remove(&self.id) {
            drop(peer.into_task());
        }
        is_over
    }
}

/// Ends when the peer's time is over.
async fn expiry(mut wanted: watch::Receiver<Wanted>) {
    loop {
        let now = wanted.borrow_and_update().clone();
        let changed = match now {
            Wanted::At(_) => wanted.changed().await,
            Wanted::Until(when) => tokio::select! {
                () = sleep_until(when) => return,
                changed = wanted.changed() => changed,
            },
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

/// Dials until there is a proved connection. Never ends for a peer that dials us.
async fn dial(shared: &Shared, id: WorkerId, mut wanted: watch::Receiver<Wanted>, mut pause: Duration) -> Stream {
    if shared.me > id {
        return std::future::pending().await;
    }
    let mut said = String::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let Wanted::At(address) = now else {
            if wanted.changed().await.is_err() {
                return std::future::pending().await;
            }
            continue;
        };
        match dial_once(shared, id, &address).await {
            Ok(stream) => {
                if !said.is_empty() {
                    info!(peer = %id, address, "peer reached after all");
                }
                return stream;
            }
            Err(error) => {
                let why = error.to_string();
                match error {
                    _ if why == said => {}
                    Refused::Io(_) => info!(peer = %id, address, why, "peer cannot be reached; trying on"),
                    _ => warn!(peer = %id, address, why, "no link with peer; trying on"),
                }
                said = why;
            }
        }
        tokio::select! {
            () = sleep(pause) => pause = (pause * 2).min(Duration::from_millis(REDIAL_MS_MAX)),
            changed = wanted.changed() => {
                if changed.is_err() {
                    return std::future::pending().await;
                }
                pause = Duration::from_millis(REDIAL_MS);
            }
        }
    }
}

async fn dial_once(shared: &Shared, id: WorkerId, address: &str) -> Result<Stream, Refused> {
    let late = |what: &str| io::Error::new(io::ErrorKind::TimedOut, format!("no {what} in time"));
    let connecting = Stream::dial(address, shared.tls.as_ref());
    let mut stream = timeout(Duration::from_millis(CONNECT_MS), connecting).await.map_err(|_| late("connection"))??;
    let proving = handshake::dial(&shared.proof, id, &mut stream);
    timeout(Duration::from_millis(HANDSHAKE_MS), proving).await.map_err(|_| late("proof"))??;
    Ok(stream)
}

/// Empties the queue into the connection; small frames share a write. Beats when there is nothing to say.
async fn write(mut to: WriteHalf, identity: Identity, queue: &Queue, closing: &mut watch::Receiver<bool>) -> End {
    let mut out = BytesMut::with_capacity(WRITE_BYTES + GATHER_BYTES_MAX + HEADER_BYTES);
    let beat = codec::encode(identity, &Wire::Beat).expect("a beat has no body").head;
    loop {
        match write_queued(&mut to, identity, queue, &mut out).await {
            Ok(()) => {}
            Err(error) => return error.into(),
        }
        if *closing.borrow() {
            let _ = to.shutdown().await;
            return End::Closed;
        }
        tokio::select! {
            waited = timeout(Duration::from_millis(LINK_BEAT_MS), queue.wait()) => {
                if waited.is_err() {
                    out.extend_from_slice(&beat);
                }
            }
            changed = closing.changed() => {
                if changed.is_err() {
                    return End::Unheard;
                }
            }
        }
    }
}

async fn write_queued(to: &mut WriteHalf, identity: Identity, queue: &Queue, out: &mut BytesMut) -> io::Result<()> {
    while let Some(frame) = queue.pop() {
        let encoded = match codec::encode(identity, &Wire::Frame(frame)) {
            Ok(encoded) => encoded,
            Err(error) => {
                error!(%error, "a frame of ours cannot be sent");
                continue;
            }
        };
        out.extend_from_slice(&encoded.head);
        if encoded.payload.len() <= GATHER_BYTES_MAX {
            out.extend_from_slice(&encoded.payload);
            if out.len() < WRITE_BYTES {
                continue;
            }
            to.write_all(out).await?;
        } else {
            to.write_all_buf(&mut Buf::chain(&out[..], &encoded.payload[..])).await?;
        }
        out.clear();
    }
    if !out.is_empty() {
        to.write_all(out).await?;
        out.clear();
    }
    to.flush().await
}

/// Delivers frames until the connection ends or falls silent.
async fn read(mut from: ReadHalf, identity: Identity, id: WorkerId, events: mpsc::Sender<LinkEvent>) -> End {
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    loop {
        let lacking = loop {
            match next(identity, &mut buffer) {
                Err(error) => return error.into(),
                Ok(Next::Beat) => {}
                Ok(Next::Frame(frame)) => {
                    if events.send(LinkEvent::Frame { from: id, frame }).await.is_err() {
                        return End::Unheard;
                    }
                }
                Ok(Next::Lacks(bytes)) => break bytes,
            }
        };
        // A length is only a claim: memory for a large frame grows with what has come of it.
        let most = AHEAD_BYTES_MAX.max(buffer.len());
        if buffer.capacity() - buffer.len() < lacking.min(most) {
            buffer.reserve(lacking.clamp(READ_BYTES, most));
        }
        match timeout(Duration::from_millis(LINK_SILENCE_MS), from.read_buf(&mut buffer)).await {
            Err(_) => return End::Silent,
            Ok(Err(error)) => return error.into(),
            Ok(Ok(0)) => return End::Eof,
            Ok(Ok(_)) => {}
        }
    }
}

enum Next {
    Beat,
    Frame(Frame),
    /// So many bytes are still on their way.
    Lacks(usize),
}

/// Takes one frame off the front of what was read.
fn next(identity: Identity, buffer: &mut BytesMut) -> Result<Next, DecodeError> {
    let Some(head) = buffer.first_chunk::<HEADER_BYTES>() else {
        return Ok(Next::Lacks(HEADER_BYTES - buffer.len()));
    };
    let header = Header::decode(identity, head)?;
    let body = header.body_bytes();
    if buffer.len() < HEADER_BYTES + body {
        return Ok(Next::Lacks(HEADER_BYTES + body - buffer.len()));
    }
    buffer.advance(HEADER_BYTES);
    // A small payload that someone keeps must not keep the whole buffer.
    let body = match body <= GATHER_BYTES_MAX {
        true => {
            let copy = Bytes::copy_from_slice(&buffer[..body]);
            buffer.advance(body);
            copy
        }
        false => buffer.split_to(body).freeze(),
    };
    Ok(match header.frame(body)? {
        Wire::Beat => Next::Beat,
        Wire::Frame(frame) => Next::Frame(frame),
    })
}
