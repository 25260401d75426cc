//! A server that is up, in this process, on ports of the system's choice.

use crate::client::Client;
use elastic_serve::repository::{Open, bundles};
use elastic_serve::{Config, Listeners, Server};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::oneshot;

pub struct Up {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub shared: Arc<elastic_serve::state::Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<bool>>,
}

impl Up {
    /// With what lies in a directory, once that is loaded or refused.
    pub fn new(models: &Path) -> Up {
        Up::with(Config::new(models.to_path_buf()), bundles())
    }

    pub fn with(config: Config, open: Open) -> Up {
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, up) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let http = elastic_serve::bind(":0").await.unwrap();
                let grpc = elastic_serve::bind(":0").await.unwrap();
                let addresses = (http.local_addr().unwrap(), grpc.local_addr().unwrap());
                let server = Server::start(config, Listeners { http, grpc: Some(grpc) }, open).unwrap();
                server.settled().await;
                told.send((addresses, server.shared.clone())).unwrap();
                server.until(async { drop(stopped.await) }).await
            })
        });
        let ((http, grpc), shared) = up.recv().expect("the server starts");
        Up { http, grpc, shared, stop: Some(stop), thread: Some(thread) }
    }

    pub fn client(&self) -> Client {
        Client::new(self.http)
    }

    /// What SIGTERM does.
    pub fn begin_to_drain(&mut self) {
        drop(self.stop.take());
    }

    /// Whether everybody got an answer.
    pub fn ended(mut self) -> bool {
        self.begin_to_drain();
        self.thread.take().expect("it ends once").join().expect("the server does not panic")
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.begin_to_drain();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Waits for a condition, with a bound.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("not within 15 s: {what}");
}
