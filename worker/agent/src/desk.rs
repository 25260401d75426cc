//! Where workers talk to their agent: a Unix socket that only this user and only known processes may use.
//!
//! A worker says who it is with the token it was started with, then its whole status whenever that
//! changes; it is told its whole order whenever that changes. Only the newest order counts, so a slow
//! worker costs no queue. The end of the connection tells a worker that its agent is gone; that a
//! worker is gone is told by `process`, which knows better.

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use elastic_proto::framed::Framed;
use elastic_spec::WorkerId;
use elastic_spec::facts::{WorkerStatus, WorkerUp};
use elastic_spec::view::WorkerOrder;
use std::collections::BTreeMap;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// A worker that connects must say who it is within this time.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// The kernel takes paths of sockets up to this length.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// What came over a worker's connection.
#[derive(Debug)]
pub struct Said {
    pub worker: WorkerId,
    pub what: What,
}

#[derive(Debug)]
pub enum What {
    Status(Box<WorkerStatus>),
    /// The connection has ended: nothing more will be said.
    HungUp,
}

/// The socket and who may use it.
#[derive(Debug)]
pub struct Desk {
    path: PathBuf,
    seats: Arc<Mutex<BTreeMap<WorkerId, Seat>>>,
    /// Accepts and serves; ends with the desk.
    _serving: JoinSet<()>,
}

#[derive(Debug)]
struct Seat {
    token: String,
    orders: watch::Receiver<WorkerOrder>,
}

impl Desk {
    /// Listens in `state_dir`, or in a directory of its own where that path is too long for a socket.
    pub fn open(state_dir: &Path, said: mpsc::Sender<Said>) -> Result<Desk> {
        let path = socket_path(state_dir)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("remove the old socket {}", path.display()));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
        let seats = Arc::new(Mutex::new(BTreeMap::new()));
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, seats.clone(), said));
        Ok(Desk { path, seats, _serving: serving })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Lets the process that knows `token` speak as `worker`, once; it is told what `orders` says.
    pub fn expect(&self, worker: WorkerId, token: String, orders: watch::Receiver<WorkerOrder>) {
        locked(&self.seats).insert(worker, Seat { token, orders });
    }

    /// The process has ended: nobody may come in its name.
    pub fn close(&self, worker: WorkerId) {
        locked(&self.seats).remove(&worker);
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(dir) = self.path.parent() {
            // Succeeds only for the desk's own, empty directory.
            let _ = std::fs::remove_dir(dir);
        }
    }
}

fn locked(seats: &Mutex<BTreeMap<WorkerId, Seat>>) -> std::sync::MutexGuard<'_, BTreeMap<WorkerId, Seat>> {
    seats.lock().unwrap_or_else(PoisonError::into_inner)
}

fn socket_path(state_dir: &Path) -> Result<PathBuf> {
    let short = state_dir.join("desk");
    let dir = match short.as_os_str().len() + "/agent.sock".len() <= SOCKET_PATH_BYTES_MAX {
        true => short,
        false => std::env::temp_dir().join(format!("elastic-{:016x}", crate::random()?)),
    };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("make the directory {}", dir.display()))?;
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o700))
        .with_context(|| format!("close {} to others", dir.display()))?;
    Ok(dir.join("agent.sock"))
}

async fn accept(listener: UnixListener, seats: Arc<Mutex<BTreeMap<WorkerId, Seat>>>, said: mpsc::Sender<Said>) {
    let mut talks = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (seats, said) = (seats.clone(), said.clone());
                    talks.spawn(async move {
                        if let Err(error) = talk(stream, &seats, said).await {
                            tracing::warn!(error = format!("{error:#}"), "a worker's connection was closed");
                        }
                    });
                }
                // Out of descriptors: those that are open go on, and the next try may find one.
                Err(error) => {
                    tracing::warn!(%error, "cannot take a worker's connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            Some(_) = talks.join_next() => {}
        }
    }
}

async fn talk(mut stream: UnixStream, seats: &Mutex<BTreeMap<WorkerId, Seat>>, said: mpsc::Sender<Said>) -> Result<()> {
    let mut bytes = BytesMut::new();
    let hello = tokio::time::timeout(HELLO_WITHIN, next(&mut stream, &mut bytes));
    let (worker, mut orders) = match hello.await.context("it did not say who it is")?? {
        Some(WorkerUp::Hello { worker, token }) => (worker, seat(seats, worker, &token)?),
        Some(WorkerUp::Status(_)) => bail!("it spoke before it said who it is"),
        None => return Ok(()),
    };
    orders.mark_changed();
    let talked = converse(&mut stream, &mut bytes, worker, &mut orders, &said).await;
    let _ = said.send(Said { worker, what: What::HungUp }).await;
    talked
}

async fn converse(
    stream: &mut UnixStream,
    bytes: &mut BytesMut,
    worker: WorkerId,
    orders: &mut watch::Receiver<WorkerOrder>,
    said: &mpsc::Sender<Said>,
) -> Result<()> {
    let mut order = BytesMut::new();
    loop {
        tokio::select! {
            up = next(stream, bytes) => match up? {
                Some(WorkerUp::Status(status)) => {
                    if said.send(Said { worker, what: What::Status(status) }).await.is_err() {
                        return Ok(());
                    }
                }
                Some(WorkerUp::Hello { .. }) => bail!("worker {worker} said twice who it is"),
                None => return Ok(()),
            },
            changed = orders.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                order.clear();
                orders.borrow_and_update().clone().encode(&mut order);
                if let Err(error) = stream.write_all(&order).await {
                    // It may have said something before it ended, and the end itself is told elsewhere.
                    tracing::debug!(%worker, %error, "a worker did not hear its order");
                    while let Ok(Some(WorkerUp::Status(status))) = next(stream, bytes).await {
                        let _ = said.send(Said { worker, what: What::Status(status) }).await;
                    }
                    return Ok(());
                }
            }
        }
    }
}

/// The place kept for this worker; the token is compared in full whatever it is.
fn seat(
    seats: &Mutex<BTreeMap<WorkerId, Seat>>,
    worker: WorkerId,
    token: &str,
) -> Result<watch::Receiver<WorkerOrder>> {
    let mut seats = locked(seats);
    let differs = |seat: &Seat| {
        let pairs = seat.token.bytes().zip(token.bytes());
        seat.token.len() != token.len() || pairs.fold(0, |all, (a, b)| all | (a ^ b)) != 0
    };
    match seats.get(&worker) {
        None => bail!("worker {worker} is not expected"),
        Some(seat) if differs(seat) => bail!("somebody without its token spoke as worker {worker}"),
        Some(_) => Ok(seats.remove(&worker).expect("it was there under the same lock").orders),
    }
}

/// The next message; None at the end. Cancel-safe: what was read stays in `bytes`.
async fn next(stream: &mut UnixStream, bytes: &mut BytesMut) -> Result<Option<WorkerUp>> {
    loop {
        if let Some(up) = WorkerUp::decode(bytes).context("read what a worker says")? {
            return Ok(Some(up));
        }
        match stream.read_buf(bytes).await {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => return Ok(None),
            Err(e) => return Err(e).context("read from a worker"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::facts::Phase;
    use elastic_spec::{Round, Step};

    fn status(step: u64) -> WorkerUp {
        WorkerUp::Status(Box::new(WorkerStatus {
            address: "127.0.0.1:1".into(),
            numerics: 1,
            phase: Phase::Ready,
            view: None,
            at: Some(Round(step)),
            step: Step(step),
            steps_total: 9,
            progress: 1,
            waiting_on: vec![],
            lost_peers: vec![],
            metrics: None,
            published: None,
            error: None,
            stalls_ms: vec![],
            run_dir_id: None,
            unpublished: None,
            failure: None,
        }))
    }

    async fn say(stream: &mut UnixStream, ups: Vec<WorkerUp>) {
        let mut bytes = BytesMut::new();
        ups.into_iter().for_each(|up| up.encode(&mut bytes));
        stream.write_all(&bytes).await.unwrap();
    }

    fn hello(worker: u64, token: &str) -> WorkerUp {
        WorkerUp::Hello { worker: WorkerId(worker), token: token.into() }
    }

    async fn order(stream: &mut UnixStream) -> Option<WorkerOrder> {
        let mut bytes = BytesMut::new();
        loop {
            if let Some(order) = WorkerOrder::decode(&mut bytes).unwrap() {
                return Some(order);
            }
            if stream.read_buf(&mut bytes).await.unwrap() == 0 {
                return None;
            }
        }
    }

    #[tokio::test]
    async fn a_known_worker_is_told_its_order_at_each_change_and_heard_to_its_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let (said, mut heard) = mpsc::channel(4);
        let desk = Desk::open(dir.path(), said).unwrap();
        let (orders, receiver) = watch::channel(WorkerOrder { view: None, leave: false, restarts: 0 });
        desk.expect(WorkerId(5), "secret".into(), receiver);
        let mut worker = UnixStream::connect(desk.path()).await.unwrap();
        say(&mut worker, vec![hello(5, "secret"), status(3)]).await;
        assert!(!order(&mut worker).await.unwrap().leave);
        let Some(Said { worker: WorkerId(5), what: What::Status(first) }) = heard.recv().await else {
            panic!("the status is passed on")
        };
        assert_eq!(first.step, Step(3));
        orders.send_replace(WorkerOrder { view: None, leave: true, restarts: 0 });
        assert!(order(&mut worker).await.unwrap().leave);
        say(&mut worker, vec![status(4)]).await;
        drop(worker);
        assert!(matches!(heard.recv().await.unwrap().what, What::Status(status) if status.step == Step(4)));
        assert!(matches!(heard.recv().await.unwrap().what, What::HungUp));
    }

    #[tokio::test]
    async fn strangers_are_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let (said, mut heard) = mpsc::channel(4);
        let desk = Desk::open(dir.path(), said).unwrap();
        let (_orders, receiver) = watch::channel(WorkerOrder { view: None, leave: false, restarts: 0 });
        desk.expect(WorkerId(5), "secret".into(), receiver);
        for bad in [vec![hello(5, "secreT")], vec![hello(6, "secret")], vec![status(1)]] {
            let mut stranger = UnixStream::connect(desk.path()).await.unwrap();
            say(&mut stranger, bad).await;
            assert_eq!(order(&mut stranger).await, None);
        }
        assert!(heard.try_recv().is_err());
    }

    #[tokio::test]
    async fn the_end_of_the_agent_is_the_end_of_the_connection() {
        let dir = tempfile::tempdir().unwrap();
        let (said, _heard) = mpsc::channel(4);
        let desk = Desk::open(dir.path(), said).unwrap();
        let (_orders, receiver) = watch::channel(WorkerOrder { view: None, leave: false, restarts: 0 });
        desk.expect(WorkerId(5), "secret".into(), receiver);
        let mut worker = UnixStream::connect(desk.path()).await.unwrap();
        say(&mut worker, vec![hello(5, "secret")]).await;
        assert!(order(&mut worker).await.is_some());
        let path = desk.path().to_path_buf();
        drop(desk);
        assert_eq!(order(&mut worker).await, None);
        assert!(!path.exists());
    }

    #[test]
    fn a_deep_state_directory_gets_a_short_socket_path_closed_to_others() {
        let deep = Path::new("/nonexistent").join("x".repeat(120));
        let path = socket_path(&deep).unwrap();
        let dir = path.parent().unwrap();
        assert_eq!(std::fs::metadata(dir).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::remove_dir(dir).unwrap();
    }
}
