//! One worker of a job that runs a command, as a real process: what becomes of what it starts, and what it says last.
//!
//! The test is its agent; the worker is this very program, started again.

use bytes::BytesMut;
use elastic_proto::framed::Framed;
use elastic_spec::facts::{End, Launch, Phase, WorkerStatus, WorkerUp};
use elastic_spec::job::{ParseContext, parse};
use elastic_spec::view::{Pace, Role, View, ViewMember, WorkerOrder, exit};
use elastic_spec::{Epoch, JobId, NodeId, Rank, WorkerId};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

const WORKER: WorkerId = WorkerId(7);
/// Far more than anything here needs.
const WAIT: Duration = Duration::from_secs(30);

/// Not a test of its own: the worker that the others start.
#[test]
fn a_worker_process() {
    if std::env::var_os("ELASTIC_AGENT_SOCKET").is_some() {
        elastic_worker::main_with(|_, _, _| unreachable!("a command has no model"));
    }
}

struct Worker {
    dir: tempfile::TempDir,
    child: Child,
    stream: UnixStream,
    statuses: Receiver<WorkerStatus>,
    view: Option<View>,
}

impl Worker {
    /// Runs `script` with `sh`, in a folder of its own, as the first generation.
    fn start(script: &str) -> Worker {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let run = serde_json::json!(["sh", "-c", script]);
        let job = format!("name = \"commands\"\n[command]\nrun = {run}\ngrace = 2\n");
        let context = ParseContext { base_dir: dir.path().display().to_string(), ..ParseContext::default() };
        let spec = parse(&job, &context).unwrap().spec;
        let launch = Launch {
            spec_json: spec.canonical_json(),
            blobs: Vec::new(),
            secret: Vec::new(),
            run_dir: path("run").display().to_string(),
            program: None,
        };
        std::fs::write(path("launch.json"), serde_json::to_vec(&launch).unwrap()).unwrap();
        let listener = UnixListener::bind(path("agent.sock")).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_worker_process", "--nocapture", "--test-threads=1"])
            .env("ELASTIC_AGENT_SOCKET", path("agent.sock"))
            .env("ELASTIC_WORKER_TOKEN", "token")
            .env("ELASTIC_WORKER_ID", format!("{:x}", WORKER.0))
            .env("ELASTIC_JOB", "commands")
            .env("ELASTIC_LAUNCH", path("launch.json"))
            .env_remove("ELASTIC_FAIL")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (stream, _) = listener.accept().unwrap();
        let (status, statuses) = channel();
        let theirs = stream.try_clone().unwrap();
        std::thread::spawn(move || hear(theirs, &status));
        let mut worker = Worker { dir, child, stream, statuses, view: None };
        let address = worker.until("ready", |status| status.phase == Phase::Ready).address;
        let node = NodeId::parse("n").unwrap();
        worker.view = Some(View {
            job: JobId::parse("commands").unwrap(),
            epoch: Epoch::new(1, 1),
            pace: Pace::Run,
            members: vec![ViewMember { worker: WORKER, node, address, role: Role::Active }],
            shard_map: vec![Rank(0)],
        });
        worker.order(false);
        worker
    }

    fn order(&mut self, leave: bool) {
        let mut bytes = BytesMut::new();
        WorkerOrder { view: self.view.clone(), leave, restarts: 0 }.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
    }

    fn until(&self, what: &str, is_so: impl Fn(&WorkerStatus) -> bool) -> WorkerStatus {
        let begun = Instant::now();
        loop {
            let left = WAIT.saturating_sub(begun.elapsed());
            let status = self.statuses.recv_timeout(left).unwrap_or_else(|e| panic!("it never was {what}: {e}"));
            if is_so(&status) {
                return status;
            }
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn zombies(&self) -> usize {
        let is_one = |stat: String| {
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().take(2).collect();
            (fields == ["Z", &self.child.id().to_string()]).then_some(())
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| is_one(std::fs::read_to_string(entry.path().join("stat")).ok()?)).count()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // At the end of its socket it ends what it started, and itself.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        let _ = self.child.wait();
    }
}

fn hear(mut stream: UnixStream, to: &Sender<WorkerStatus>) {
    let mut bytes = BytesMut::new();
    let mut block = [0; 4096];
    loop {
        while let Some(up) = WorkerUp::decode(&mut bytes).unwrap() {
            if let WorkerUp::Status(status) = up {
                // A test that is over hears no more.
                let _ = to.send(*status);
            }
        }
        match stream.read(&mut block) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&block[..count]),
        }
    }
}

#[track_caller]
fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WAIT, "{what}: not within {WAIT:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn orphans_that_ended_are_reaped_while_their_generation_goes_on() {
    let script = "i=0; while [ $i -lt 50 ]; do (sh -c 'exit 0' &); i=$((i+1)); done; touch made; exec sleep 600";
    let worker = Worker::start(script);
    wait_for("50 orphans", || worker.path("made").exists());
    wait_for("no zombie under the worker", || worker.zombies() == 0);
    while worker.statuses.try_recv().is_ok() {}
    worker.until("still at it", |status| status.phase == Phase::Active && status.failure.is_none());
}

#[test]
fn a_worker_that_leaves_while_done_work_is_cleared_says_that_it_is_done() {
    let left = "trap 'touch asked' TERM; touch left; while :; do sleep 0.05; done";
    let script = format!("({left}) & while [ ! -e left ]; do sleep 0.01; done; exit 0");
    let mut worker = Worker::start(&script);
    // What was left behind is asked to end only when the generation has ended well.
    wait_for("SIGTERM for what was left behind", || worker.path("asked").exists());
    worker.order(true);
    assert_eq!(worker.child.wait().unwrap().code(), Some(exit::DRAINED));
    worker.until("finished", |status| status.phase == Phase::Finished);
}

#[test]
fn an_error_file_of_long_before_is_not_why_a_process_was_killed() {
    let write = |age: &str| {
        let file = "\"$TORCHELASTIC_ERROR_FILE\"";
        let script = format!(
            "echo '{{\"message\": \"ValueError: of then\"}}' > {file}; touch -d '{age}' {file}; echo last >&2; kill -9 $$"
        );
        let failure = Worker::start(&script).until("failed", |status| status.failure.is_some()).failure.unwrap();
        assert_eq!(failure.end, End::Signal(9));
        (failure.message, failure.error_file.is_some())
    };
    assert_eq!(write("2 seconds ago"), ("ValueError: of then".into(), true));
    assert_eq!(write("2 hours ago"), ("last".into(), false));
}
