//! A cloud takes a machine back: the node drains as on SIGTERM, and the job keeps its bits. The metadata servers are
//! ours and say what those of the clouds are documented to say; agents, workers and signals are real.

use crate::cluster::{Cluster, assert_same, signal, wait_for};
use crate::faults::{submit, undisturbed};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Says nothing of interest until `take`.
struct Metadata {
    port: u16,
    takes: Arc<AtomicBool>,
}

impl Metadata {
    fn start() -> Metadata {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let takes = Arc::new(AtomicBool::new(false));
        let told = takes.clone();
        // Ends with the test's process.
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let _ = answer(socket, told.load(Ordering::SeqCst));
            }
        });
        Metadata { port, takes }
    }

    fn take(&self) {
        self.takes.store(true, Ordering::SeqCst);
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }
}

fn answer(mut socket: TcpStream, takes: bool) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        match socket.read(&mut piece)? {
            0 => break,
            n => request.extend_from_slice(&piece[..n]),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let has = |header: &str| request.contains(header);
    let body = match request.split_whitespace().nth(1).unwrap_or_default() {
        "/latest/api/token" if request.starts_with("PUT") && has("token-ttl-seconds") => Some("session".into()),
        "/latest/meta-data/spot/instance-action" if has("X-aws-ec2-metadata-token: session") => {
            takes.then(|| "{\"action\":\"terminate\",\"time\":\"2026-11-26T20:00:00Z\"}".to_string())
        }
        "/computeMetadata/v1/instance/preempted" if has("Metadata-Flavor: Google") => {
            Some(if takes { "TRUE" } else { "FALSE" }.to_string())
        }
        path if path.starts_with("/metadata/instance/compute/name") => Some("vm-1".into()),
        path if path.starts_with("/metadata/scheduledevents") && has("Metadata: true") => Some(match takes {
            true => "{\"Events\":[{\"EventType\":\"Preempt\",\"Resources\":[\"vm-1\"]}]}".into(),
            false => "{\"Events\":[{\"EventType\":\"Preempt\",\"Resources\":[\"vm-2\"]}]}".into(),
        }),
        _ => None,
    };
    let (status, body) = body.map_or(("404 Not Found", String::new()), |body| ("200 OK", body));
    write!(socket, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

#[test]
fn nodes_that_three_clouds_take_back_under_load_drain_and_the_job_keeps_its_bits() {
    let mut cluster = Cluster::start(None, 1);
    let metadata = [Metadata::start(), Metadata::start(), Metadata::start()];
    let urls = [
        metadata[0].url("/latest/meta-data/spot/instance-action"),
        metadata[1].url("/computeMetadata/v1/instance/preempted"),
        metadata[2].url("/metadata/scheduledevents?api-version=2020-07-01"),
    ];
    for (name, url) in ["aws", "gcp", "azure"].into_iter().zip(&urls) {
        cluster.start_agent_with(name, &[], &["--preemption-url", url]);
    }
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    cluster.until_step(&job, 50);
    for (name, metadata) in ["aws", "gcp", "azure"].into_iter().zip(&metadata) {
        let mut leaver = cluster.agents.remove(name).expect("it runs");
        assert!(leaver.process.0.try_wait().expect("its state is known").is_none(), "{name} runs until it is told");
        metadata.take();
        let ended = wait_for("the agent drains and ends", 40, || leaver.process.0.try_wait().expect("its state"));
        assert!(ended.success(), "{name}: a drain ends with {ended}");
        // Others take its place, so that each notice meets a node that works.
        cluster.start_agent(&format!("{name}-next"), &[]);
    }
    let (status, proof) = cluster.until_done(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    assert_eq!(status["last_fault"], serde_json::Value::Null, "{status:#}");
    assert_same(&proof, undisturbed());
}

#[test]
fn agents_that_get_sigterm_under_load_one_after_the_other_lose_nothing() {
    let mut cluster = Cluster::start(None, 3);
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    cluster.until_step(&job, 50);
    for name in ["n0", "n1"] {
        let mut leaver = cluster.agents.remove(name).expect("it runs");
        signal(leaver.process.pid(), "TERM");
        let ended = wait_for("the agent drains and ends", 40, || leaver.process.0.try_wait().expect("its state"));
        assert!(ended.success(), "{name}: a drain ends with {ended}");
    }
    cluster.until_active(&job, 1);
    let (status, proof) = cluster.until_done(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    assert_eq!(status["last_fault"], serde_json::Value::Null, "{status:#}");
    assert_same(&proof, undisturbed());
}
