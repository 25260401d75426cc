//! A real etcd on free ports, for tests. Found by `ELASTIC_ETCD` or on `PATH`.

use elastic_coordinator::store::EtcdTls;
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
    /// It speaks TLS alone, and asks callers for a certificate.
    pub tls: Option<EtcdTls>,
}

impl EtcdServer {
    /// `None`, and a line that says so, where there is no etcd.
    pub async fn start(test: &str) -> Option<EtcdServer> {
        EtcdServer::start_with(test, None).await
    }

    /// With certificates of an authority that was made for it.
    pub async fn start_secured(test: &str) -> Option<EtcdServer> {
        EtcdServer::start_with(test, Some(certificates())).await
    }

    async fn start_with(test: &str, tls: Option<EtcdTls>) -> Option<EtcdServer> {
        let Some(program) = program() else {
            skip(test, "no etcd: install etcd-server, or set ELASTIC_ETCD to its path");
            return None;
        };
        let dir = tempfile::tempdir().expect("a folder");
        let (port, peer_port) = (free_port(), free_port());
        let process = spawn(&program, dir.path(), port, peer_port, tls.as_ref());
        let mut server = EtcdServer { process, dir, program, port, peer_port, tls };
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
        self.process = spawn(&self.program, self.dir.path(), self.port, self.peer_port, self.tls.as_ref());
        self.wait_ready().await;
    }

    async fn wait_ready(&mut self) {
        let begun = Instant::now();
        while elastic_coordinator::store::Etcd::connect(&[&self.host()], "ready", self.tls.as_ref()).await.is_err() {
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

/// One certificate for both sides, and the authority that signed it.
pub fn certificates() -> EtcdTls {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut authority = CertificateParams::new(vec![]).expect("no names");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("signed");
    let key = KeyPair::generate().expect("a key");
    let own = CertificateParams::new(vec!["127.0.0.1".to_string()]).expect("an address");
    let own = own.signed_by(&key, &authority).expect("signed");
    EtcdTls { authority_pem: authority.pem(), chain_pem: own.pem(), key_pem: key.serialize_pem() }
}

fn spawn(program: &Path, dir: &Path, port: u16, peer_port: u16, tls: Option<&EtcdTls>) -> Child {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let (client, peer) = (format!("{scheme}://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer_port}"));
    let mut command = Command::new(program);
    if let Some(tls) = tls {
        for (flag, name, text) in [
            ("--trusted-ca-file", "ca.pem", &tls.authority_pem),
            ("--cert-file", "cert.pem", &tls.chain_pem),
            ("--key-file", "key.pem", &tls.key_pem),
        ] {
            let path = dir.join(name);
            std::fs::write(&path, text).expect("a file");
            command.arg(flag).arg(path);
        }
        command.arg("--client-cert-auth=true");
    }
    command
        .arg("--data-dir")
        .arg(dir.join("data"))
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
