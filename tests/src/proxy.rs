//! A TCP proxy that stands between two processes and can cut, black-hole or delay what passes.
//!
//! For partition tests with real processes: give one of them the proxy's address instead of the other's. It
//! moves bytes and knows no protocol; which link to break when is the test's business.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Forward,
    /// Living connections are reset and new ones refused at once.
    Cut,
    /// Connections stand, new ones are accepted, and nothing passes; bytes wait until it forwards again.
    BlackHole,
    /// Everything arrives so much later, in order.
    Delay(Duration),
}

pub struct Proxy {
    address: String,
    mode: watch::Sender<Mode>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free port of loopback and forwards to `target` (host:port).
    pub async fn start(target: impl Into<String>) -> io::Result<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (mode, mode_now) = watch::channel(Mode::Forward);
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, Arc::from(target.into()), mode_now));
        Ok(Proxy { address, mode, _tasks: tasks })
    }

    /// host:port to give out instead of the target's.
    pub fn address(&self) -> &str {
        &self.address
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
}

async fn accept(listener: TcpListener, target: Arc<str>, mode: watch::Receiver<Mode>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(client, target.clone(), mode.clone()));
    }
}

async fn connection(client: TcpStream, target: Arc<str>, mode: watch::Receiver<Mode>) {
    let mut cut = mode.clone();
    let passing = async {
        // A black hole swallows the first packet too: the target learns nothing of this connection.
        mode.clone().wait_for(|mode| *mode != Mode::BlackHole).await.ok()?;
        let server = TcpStream::connect(&*target).await.ok()?;
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
        // An end of either direction is passed on, and the other may go on.
        tokio::join!(pass(from_client, to_server, mode.clone()), pass(from_server, to_client, mode));
        Some(())
    };
    tokio::select! {
        _ = passing => {}
        _ = cut.wait_for(|mode| *mode == Mode::Cut) => {}
    }
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut mode: watch::Receiver<Mode>,
) {
    let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let mode_at_reading = mode.clone();
    let reading = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let delay = match *mode_at_reading.borrow() {
                Mode::Delay(delay) => delay,
                _ => Duration::ZERO,
            };
            if late.send((Instant::now() + delay, buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((when, bytes)) = due.recv().await {
            sleep_until(when).await;
            let passed = mode.wait_for(|mode| *mode != Mode::BlackHole).await.is_ok();
            if !passed || to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    };
    tokio::join!(reading, writing);
}
