//! A pipeline of digits or of a text in a folder of its own: small enough to run often, with models in every format.

use crate::cluster::{Guarded, elastic, repo, wait_for};
use elastic_pipeline::lineage::Lineage;
use elastic_pipeline::workspace::lineage_of;
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Example {
    Digits,
    /// A gpt that learns a text.
    Text,
}

pub struct Pipeline {
    pub example: Example,
    dir: tempfile::TempDir,
    env: Vec<(String, String)>,
}

/// What a pipeline that nothing disturbed, trained by one worker, has made.
pub struct Calm {
    pub ended: Value,
    /// Of its registry, provenance left out.
    pub published: BTreeMap<String, Vec<u8>>,
}

impl Example {
    pub fn model(self) -> &'static str {
        match self {
            Example::Digits => "digits",
            Example::Text => "notes",
        }
    }

    pub fn undisturbed(self) -> &'static Calm {
        static DIGITS: OnceLock<Calm> = OnceLock::new();
        static TEXT: OnceLock<Calm> = OnceLock::new();
        let calm = match self {
            Example::Digits => &DIGITS,
            Example::Text => &TEXT,
        };
        calm.get_or_init(|| {
            let pipeline = Pipeline::of(self);
            let (ended, _) = pipeline.run(&["--set", "train.workers=1"]);
            let published = files(&pipeline.path("registry"));
            assert!(published.keys().any(|name| name.ends_with("/1/manifest.json")), "{:?}", published.keys());
            Calm { ended, published }
        })
    }
}

impl Pipeline {
    /// Digits without their slices: each is a process more, and only files with columns have them.
    pub fn of(example: Example) -> Pipeline {
        Pipeline::with(example, |text| {
            let is_sliced = |block: &&str| !block.contains("slice = ");
            let blocks: Vec<&str> = text.split("\n\n").filter(is_sliced).collect();
            let lines: Vec<&str> = blocks.iter().flat_map(|block| block.lines().chain([""])).collect();
            let is_kept = |line: &&&str| !line.starts_with("slices = ");
            lines.iter().filter(is_kept).fold(String::new(), |text, line| text + line + "\n")
        })
    }

    /// Digits as the example has them, with an evaluation of each digit.
    pub fn sliced() -> Pipeline {
        Pipeline::with(Example::Digits, |text| {
            assert!(text.contains("slices = [64]") && text.contains("slice = \"64=8\""), "the example has slices");
            text.replace("lower = 0.75", "lower = 0.3")
        })
    }

    fn with(example: Example, change: impl Fn(String) -> String) -> Pipeline {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pipeline = Pipeline { example, dir, env: Vec::new() };
        let folder = match example {
            Example::Digits => repo().join("examples/pipeline/digits"),
            Example::Text => repo().join("examples/pipeline/text"),
        };
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("the example");
        let (job, text) = (read("job.toml"), change(read("pipeline.toml")));
        let changed = |text: String, changes: &[(&str, &str)]| {
            changes.iter().fold(text, |text, (from, to)| {
                assert!(text.contains(from), "the example has no {from}");
                text.replace(from, to)
            })
        };
        let (job, text) = match example {
            Example::Digits => {
                let data = repo().join("examples/digits/digits.csv.gz").display().to_string();
                let bounds = [("lower = 0.93", "lower = 0.85"), ("lower = 0.8 ", "lower = 0.5 ")];
                let text =
                    changed(text, &[("../../digits/digits.csv.gz", &data), ("\"npz\"", "\"npz\", \"safetensors\"")]);
                let text = bounds.iter().fold(text, |text, (from, to)| text.replace(from, to));
                let text = text.replace("lower = 0.8\n", "lower = 0.5\n");
                (changed(job, &[("epochs = 10", "epochs = 3"), ("every = 100", "every = 20")]), text)
            }
            Example::Text => {
                std::fs::copy(folder.join("notes.txt"), pipeline.path("notes.txt")).expect("the example");
                let formats = "[export]\nformats = [\"hf\", \"onnx\", \"npz\", \"safetensors\"]\n\n[check]";
                let text = changed(text, &[("[check]", formats), ("upper = 3.2", "upper = 4.0")]);
                (changed(job, &[("epochs = 30", "epochs = 8"), ("every = 100", "every = 20")]), text)
            }
        };
        std::fs::write(pipeline.path("job.toml"), job).expect("a writable folder");
        std::fs::write(pipeline.path("pipeline.toml"), text).expect("a writable folder");
        pipeline
    }

    /// All that is started for it gets these variables.
    pub fn with_env(mut self, env: Vec<(String, String)>) -> Pipeline {
        self.env = env;
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Any command of the product, in the pipeline's folder.
    pub fn elastic(&self, args: &[&str]) -> Command {
        let mut command = Command::new(elastic());
        command.args(args).current_dir(self.dir.path()).envs(self.env.iter().cloned());
        command.env_remove("ELASTIC_COORDINATOR").env("XDG_CONFIG_HOME", self.dir.path());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn command(&self, args: &[&str]) -> Command {
        self.elastic(&[&["pipeline", "run", "pipeline.toml", "--json"], args].concat())
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("elastic starts")
    }

    /// Runs it to its end; gives the last line of JSON and what was said.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> (Value, String) {
        ended_well(self.output(args))
    }

    #[track_caller]
    pub fn refused(&self, args: &[&str], code: i32, says: &[&str]) {
        let out = self.output(args);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{said}");
        says.iter().for_each(|says| assert!(said.contains(says), "{says} is not in: {said}"));
        assert!(!self.path("registry").join(self.example.model()).exists(), "nothing is published: {said}");
    }

    /// Runs it until it kills itself at a fail point.
    #[track_caller]
    pub fn killed_at(&self, point: &str, args: &[&str]) {
        let out = self.command(args).env("ELASTIC_PIPELINE_FAIL", point).output().expect("elastic starts");
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), None, "{point}: it was not killed: {said}");
    }

    /// What a blob of an artifact of the newest run holds.
    pub fn blob(&self, stage: &str, artifact: &str, blob: &str) -> String {
        let status = self.status();
        let is_done = |one: &&Value| one["stage"] == stage && one["outputs"][artifact].is_string();
        let executions = status["executions"].as_array().expect("executions").iter();
        let digest = executions.rev().find(is_done).unwrap_or_else(|| panic!("{stage} has made {artifact}: {status}"))
            ["outputs"][artifact]
            .as_str()
            .expect("a digest");
        let lineage = Lineage::look(&lineage_of(&self.path(".pipeline"))).expect("the lineage");
        let row = lineage.find(digest).expect("artifacts").into_iter().next().expect("the artifact");
        let sha256 = row.artifact.blob(blob).expect("the blob").sha256.to_string();
        let place = self.path(".pipeline/store/blobs/sha256").join(&sha256[..2]).join(&sha256);
        std::fs::read_to_string(place).expect("the blob's text")
    }

    pub fn status(&self) -> Value {
        last_json(&self.elastic(&["pipeline", "status", "--json"]).output().expect("elastic starts"))
    }

    /// How many executions each stage has in the newest run, by state.
    pub fn counted(&self) -> BTreeMap<(String, String), usize> {
        let mut counts = BTreeMap::new();
        for one in self.status()["executions"].as_array().expect("executions") {
            let word = |key: &str| one[key].as_str().expect("a word").to_string();
            *counts.entry((word("stage"), word("state"))).or_default() += 1;
        }
        counts
    }

    /// How many members each view of the training had.
    pub fn members_of_views(&self) -> Vec<usize> {
        let status = self.status();
        let executions = status["executions"].as_array().expect("executions").iter();
        let views = executions.filter(|one| one["stage"] == "train").flat_map(|one| one["events"].as_array());
        let members = |view: &Value| view["body"]["members"].as_array().expect("members").len();
        views.flatten().map(members).collect()
    }

    /// Each artifact but what was pushed is the undisturbed one's, onnx, npz and the others too, and so is the registry.
    #[track_caller]
    pub fn assert_undisturbed(&self, ended: &Value) {
        let calm = self.example.undisturbed();
        assert_eq!(ended["content_sha256"], calm.ended["content_sha256"]);
        assert_eq!(artifacts(ended), artifacts(&calm.ended), "each artifact, byte for byte");
        assert_eq!(files(&self.path("registry")), calm.published, "byte for byte");
    }

    /// The product's server on what was published.
    pub fn serve(&self) -> Served {
        let log = self.path("serve.log");
        let args = ["serve", "registry", "--http", "127.0.0.1:0", "--grpc", "off", "--poll-ms", "50"];
        let mut command = self.elastic(&args);
        let file = std::fs::File::create(&log).expect("a log file");
        let process = Guarded(command.stdout(Stdio::null()).stderr(file).spawn().expect("elastic starts"));
        let address = wait_for("the server", 30, || {
            let text = std::fs::read_to_string(&log).ok()?;
            let (_, rest) = text.split_once("127.0.0.1:")?;
            let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
            rest.chars().nth(port.len())?;
            let address = format!("127.0.0.1:{port}");
            ask(&address, "GET", "/v2/health/ready", "").ok().filter(|(status, _)| *status == 200).map(|_| address)
        });
        Served { _process: process, address }
    }
}

/// A server, which ends with the test.
pub struct Served {
    _process: Guarded,
    address: String,
}

impl Served {
    /// The answer of a request with this body.
    #[track_caller]
    pub fn ask(&self, path: &str, body: &str) -> Value {
        let (status, text) = ask(&self.address, "POST", path, body).expect("the server answers");
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

impl Served {
    /// None while it is not there.
    pub fn may_get(&self, path: &str) -> Option<Value> {
        let (status, text) = ask(&self.address, "GET", path, "").ok()?;
        (status == 200).then(|| serde_json::from_str(&text).expect("JSON"))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        let (status, text) = ask(&self.address, "GET", path, "").expect("the server answers");
        assert_eq!(status, 200, "{path}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }
}

/// Status and body.
fn ask(address: &str, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: s\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap_or_default(), body.to_string()))
}

#[track_caller]
pub fn ended_well(out: Output) -> (Value, String) {
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{}: {said}", out.status);
    (last_json(&out), said)
}

pub fn last_json(out: &Output) -> Value {
    let text = String::from_utf8_lossy(&out.stdout);
    serde_json::from_str(text.lines().last().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{e}: {text}{}", String::from_utf8_lossy(&out.stderr)))
}

/// Each stage of a run, and whether it was done already.
pub fn cached(ended: &Value) -> Vec<(String, bool)> {
    let stages = ended["stages"].as_array().expect("stages").iter();
    stages.map(|s| (s["stage"].as_str().expect("a stage").to_string(), s["cached"] == true)).collect()
}

/// Stages that were not.
pub fn ran(ended: &Value) -> Vec<String> {
    cached(ended).into_iter().filter(|(_, cached)| !cached).map(|(stage, _)| stage).collect()
}

/// What was pushed names the place that it was pushed to, and is left out.
pub fn artifacts(ended: &Value) -> Vec<Value> {
    let stages = ended["stages"].as_array().expect("stages").iter();
    stages.filter(|stage| stage["stage"] != "push").map(|stage| stage["artifacts"].clone()).collect()
}

/// Every file below, with its bytes; provenance tells who and when, and is left out.
pub fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(dir).expect("below").display().to_string();
            if path.is_dir() {
                folders.push(path);
            } else if !name.ends_with("provenance.json") {
                // A pipeline that runs removes what it no longer needs.
                all.extend(std::fs::read(&path).ok().map(|bytes| (name, bytes)));
            }
        }
    }
    all
}
