//! `elastic serve` as a process: it comes up, changes versions under load, and ends on SIGTERM without losing a request.

use crate::cluster::{Guarded, elastic, free_port, job_file, run, signal, submit_local, wait_for};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const CLIENTS: usize = 4;

/// A trained bundle as version 1 of a registry's one model.
fn registry(dir: &Path) -> std::path::PathBuf {
    let (result, _) = submit_local(dir, &job_file("digits"), &["--set", "train.epochs=1"], &[]);
    let registry = dir.join("registry");
    std::fs::create_dir_all(registry.join("digits")).expect("a directory");
    let mut export = Command::new(elastic());
    export.arg("export").arg(result["run_dir"].as_str().expect("run_dir")).arg("--out").arg(registry.join("digits/1"));
    run(&mut export);
    registry
}

/// The same files under a hidden name, which then becomes the version's: it appears whole.
fn publish(registry: &Path, version: u64) {
    let (from, aside) = (registry.join("digits/1"), registry.join("digits/.next"));
    std::fs::create_dir(&aside).expect("a directory");
    for entry in std::fs::read_dir(from).expect("version 1") {
        let path = entry.expect("a file of the bundle").path();
        std::fs::copy(&path, aside.join(path.file_name().expect("a name"))).expect("a copy");
    }
    std::fs::rename(aside, registry.join(format!("digits/{version}"))).expect("the version appears");
}

fn start(registry: &Path, port: u16) -> Guarded {
    let mut command = Command::new(elastic());
    command.arg("serve").arg(registry).args(["--http", &format!(":{port}"), "--grpc", "off", "--poll-ms", "50"]);
    command.args(["--drain-delay-ms", "300"]);
    command.stdin(Stdio::null()).stderr(Stdio::null());
    Guarded(command.spawn().expect("elastic serve starts"))
}

/// A server of these models that is ready, and its port.
pub fn ready(models: &Path) -> (Guarded, u16) {
    let port = free_port();
    let server = start(models, port);
    let is_ready = || get(port, "/v2/health/ready").is_some_and(|answer| answer.status == 200).then_some(());
    wait_for("the server is ready", 20, is_ready);
    (server, port)
}

/// Ends the clients when the test ends, however it does.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

/// Speaks HTTP on one connection, which stays.
pub struct Client {
    stream: BufReader<TcpStream>,
}

pub struct Answer {
    pub status: u16,
    /// The server ends the connection behind this answer.
    closes: bool,
    pub body: Vec<u8>,
}

impl Client {
    pub fn connect(port: u16) -> std::io::Result<Client> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Client { stream: BufReader::new(stream) })
    }

    pub fn ask(&mut self, request: &[u8]) -> std::io::Result<Answer> {
        self.stream.get_mut().write_all(request)?;
        self.answer()
    }

    fn answer(&mut self) -> std::io::Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_ascii_lowercase()),
            }
        }
        let status = lines[0].split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        let header = |name: &str| lines.iter().find_map(|line| line.strip_prefix(name).map(str::trim));
        let length = header("content-length:").and_then(|text| text.parse().ok()).expect("a length");
        let closes = header("connection:") == Some("close");
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok(Answer { status, closes, body })
    }
}

fn get(port: u16, path: &str) -> Option<Answer> {
    Client::connect(port).ok()?.ask(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).ok()
}

fn request() -> Vec<u8> {
    let pixels: Vec<u32> = (0..64).map(|i| (i * 7) % 17).collect();
    let body = format!(
        r#"{{"inputs":[{{"name":"input","shape":[1,64],"datatype":"FP32","data":{pixels:?}}}],"outputs":[{{"name":"logits"}}]}}"#
    );
    format!("POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .into_bytes()
}

/// Version and logits of an answer.
fn read(answer: &Answer) -> (u64, Value) {
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let json: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let version = json["model_version"].as_str().and_then(|text| text.parse().ok()).expect("a version");
    (version, json["outputs"][0]["data"].clone())
}

#[test]
fn a_served_model_changes_versions_under_load_and_drains_without_losing_a_request() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let registry = registry(dir.path());
    let (mut server, port) = ready(&registry);
    let request = request();
    let (_, logits) = read(&Client::connect(port).and_then(|mut client| client.ask(&request)).expect("an answer"));

    let (newest, answered) = (AtomicUsize::new(1), AtomicUsize::new(0));
    let (over, stopped) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _stop = Stop(&stopped);
        let client = || {
            let mut client = Client::connect(port).expect("a connection");
            while !stopped.load(SeqCst) {
                let answer = client.ask(&request).expect("every request has its answer");
                let (version, found) = read(&answer);
                assert_eq!(found, logits, "all versions are copies of one");
                newest.fetch_max(version as usize, SeqCst);
                answered.fetch_add(1, SeqCst);
                // Only a server that ends says so.
                assert!(!answer.closes || over.load(SeqCst), "an answer before the end closes its connection");
                if answer.closes {
                    return;
                }
            }
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(client)).collect();
        for version in 2..5 {
            publish(&registry, version);
            let seen = || (newest.load(SeqCst) as u64 == version).then_some(());
            wait_for("the new version answers", 20, seen);
        }
        // Half of a request is there when the server is told to end.
        let mut slow = Client::connect(port).expect("a connection");
        let (first, rest) = request.split_at(request.len() - 20);
        slow.stream.get_mut().write_all(first).expect("the first part is sent");
        let before = answered.load(SeqCst);
        wait_for("requests are answered", 20, || (answered.load(SeqCst) > before + 100).then_some(()));
        over.store(true, SeqCst);
        signal(server.pid(), "TERM");
        wait_for("nobody new is let in", 20, || TcpStream::connect(("127.0.0.1", port)).is_err().then_some(()));
        for client in clients {
            client.join().expect("no client lost a request");
        }
        slow.stream.get_mut().write_all(rest).expect("the rest is sent");
        let last = slow.answer().expect("who was let in has an answer");
        assert_eq!(read(&last), (4, logits.clone()));
        assert!(last.closes);
    });
    let ended = wait_for("the server ends", 20, || server.0.try_wait().expect("its status"));
    assert_eq!(ended.code(), Some(0), "it drained");
}
