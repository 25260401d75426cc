//! A real etcd on free ports, for tests. Found by `ELASTIC_ETCD` or on `PATH`.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub struct EtcdServer {
    process: Child,
    dir: tempfile::TempDir,
    program: PathBuf,
    port: u16,
    peer_port: u16,
}

impl EtcdServer {
    /// `None`, and a line that says so, where there is no etcd.
    pub async fn start(test: &str) -> Option<EtcdServer> {
        let Some(program) = program() else {
            skip(test, "no etcd: install etcd-server, or set ELASTIC_ETCD to its path");
            return None;
        };
        let dir = tempfile::tempdir().expect("a folder");
        let (port, peer_port) = (free_port(), free_port());
        let process = spawn(&program, dir.path(), port, peer_port);
        let mut server = EtcdServer { process, dir, program, port, peer_port };
        server.wait_ready().await;
        Some(server)
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.process.kill().expect("etcd can be killed");
        self.process.wait().expect("etcd can be waited for");
    }

    /// Starts it again on the same data.
    pub async fn start_again(&mut self) {
        self.process = spawn(&self.program, self.dir.path(), self.port, self.peer_port);
        self.wait_ready().await;
    }

    async fn wait_ready(&mut self) {
        let begun = Instant::now();
        while elastic_coordinator::store::Etcd::connect(&[&self.host()], "ready").await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "etcd answers within 30 s");
            assert!(self.process.try_wait().expect("etcd's state").is_none(), "etcd stays up");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("ELASTIC_ETCD") {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|etcd| etcd.is_file())
}

fn spawn(program: &Path, dir: &Path, port: u16, peer_port: u16) -> Child {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    Command::new(program)
        .arg("--data-dir")
        .arg(dir)
        .args(["--name", "test", "--listen-client-urls", &client, "--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("test={peer}")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("etcd starts")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a free port").port()
}

/// The same line as `elastic_tests::skip`, which this crate cannot see.
pub fn skip(test: &str, reason: &str) {
    let line = format!("{test}: {reason}\n");
    print!("skipped: {line}");
    if let Some(path) = std::env::var_os("ELASTIC_SKIP_FILE") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is noted");
    }
}
