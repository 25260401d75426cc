//! A registry that lies in a bucket, served from there: versions come and labels move while requests run, the store is
//! cut off and comes back, and what is not whole in it is never served.

use crate::cluster::{Guarded, elastic, free_port, run, signal, wait_for};
use elastic_bundle::{Description, Model, Provenance, Shape, Tensor, write};
use elastic_models::build_forward;
use elastic_spec::job::{Activation, Dtype, ModelKind};
use elastic_tests::faulty_http::{Fault, FaultyHttp};
use elastic_tests::s3_server::S3Server;
use elastic_tests::skip::skip;
use elastic_transform::Transform;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

const BUCKET: &str = "served";
const REGISTRY: &str = "s3://served/registry";
const MANIFEST: &str = "manifest.json";

/// A bundle of the seed's own weights: its files, the manifest last.
pub fn bundle(seed: usize) -> Vec<(String, Vec<u8>)> {
    let kind = ModelKind::Mlp { hidden: vec![16], activation: Activation::Relu };
    let data = Shape::Features { features: 8, classes: 3 };
    let network = build_forward(Dtype::F32, &kind, &data.into()).expect("a network");
    let floats =
        |len: usize| -> Vec<f32> { (0..len).map(|i| ((i * 7 + seed * 13) % 11) as f32 / 10.0 - 0.5).collect() };
    let params = network.layout().params.iter();
    let mut weights: Vec<Tensor> =
        params.map(|info| Tensor::of_floats(&info.name, &info.shape, &floats(info.len))).collect();
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    let labels = (0..3).map(|class| class.to_string()).collect();
    let transform = Transform::Scale { scale: 1.0 };
    let description = Description { name: "digits".into(), model: kind, dtype: Dtype::F32, data, transform, labels };
    let dir = tempfile::tempdir().expect("a temporary directory");
    write(dir.path(), &Model { description, weights, tokenizer: None }, &Provenance::default()).expect("a bundle");
    let entries = std::fs::read_dir(dir.path()).expect("its files").flatten();
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|e| (e.file_name().into_string().expect("a name"), std::fs::read(e.path()).expect("a file")))
        .collect();
    files.sort_by_key(|(name, _)| name == MANIFEST);
    files
}

fn publish(server: &S3Server, version: u64, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        server.replace(BUCKET, &format!("registry/digits/{version}/{name}"), bytes);
    }
}

struct Serving {
    process: Guarded,
    address: String,
}

impl Serving {
    fn start(cache: &Path, env: &[(String, String)]) -> Serving {
        let address = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(elastic());
        command.args(["serve", REGISTRY, "--http", &address, "--grpc", "off", "--poll-ms", "50", "--cache"]);
        command.arg(cache).envs(env.iter().cloned()).stdin(Stdio::null());
        let log = std::fs::File::create(cache.with_extension("log")).expect("a log");
        let process = Guarded(command.stderr(log).spawn().expect("elastic starts"));
        Serving { process, address }
    }

    /// Status and body; None while nobody listens.
    fn ask(&self, method: &str, path: &str, body: &str) -> Option<(String, String)> {
        let mut stream = TcpStream::connect(&self.address).ok()?;
        let length = body.len();
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.to_string(), body.to_string()))
    }

    fn json(&self, method: &str, path: &str, body: &str) -> Option<Value> {
        let (status, body) = self.ask(method, path, body)?;
        (status == "200").then(|| serde_json::from_str(&body).expect("JSON"))
    }

    /// The version that answers who names none; None if the request failed.
    fn infer(&self) -> Option<u64> {
        self.inferred("/v2/models/digits/infer")
    }

    fn inferred(&self, path: &str) -> Option<u64> {
        let input = json!({"name": "input", "shape": [1, 8], "datatype": "FP32", "data": [1, 0, 2, 0, 3, 0, 4, 0]});
        let body = json!({"inputs": [input]}).to_string();
        let answer = self.json("POST", path, &body)?;
        answer["model_version"].as_str()?.parse().ok()
    }

    /// The one that answers who names this version.
    fn infer_of(&self, version: u64) -> Option<u64> {
        self.inferred(&format!("/v2/models/digits/versions/{version}/infer"))
    }

    fn label(&self) -> Option<u64> {
        let status = self.json("GET", "/v1/models/digits/labels/live", "")?;
        status["model_version_status"][0]["version"].as_str()?.parse().ok()
    }

    /// State and reason of each version.
    fn index(&self) -> Vec<(String, String, String)> {
        let index = self.json("POST", "/v2/repository/index", "").expect("an index");
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_string();
        let rows = index.as_array().expect("rows").iter();
        rows.map(|row| (text(row, "version"), text(row, "state"), text(row, "reason"))).collect()
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.ask("GET", "/metrics", "").expect("metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} is not in {text}"))
    }
}

#[test]
fn a_registry_in_a_bucket_is_served_followed_and_outlived() {
    let server = match S3Server::shared() {
        Ok(server) => server,
        Err(why) => return skip("a_registry_in_a_bucket_is_served_followed_and_outlived", why),
    };
    server.make_bucket(BUCKET);
    let is_cut = Arc::new(AtomicBool::new(true));
    let cut = is_cut.clone();
    let fault = move |_: &_| if cut.load(SeqCst) { Fault::Broken } else { Fault::None };
    let proxy = FaultyHttp::start(server.address(), fault);
    let direct = server.env(&server.address());
    let registry = |args: &[&str]| {
        let mut command = Command::new(elastic());
        command.arg("pipeline").arg(args[0]).args([REGISTRY, "digits"]).args(&args[1..]);
        run(command.envs(direct.iter().cloned()))
    };
    (1..3).for_each(|version| publish(server, version, &bundle(version as usize)));
    registry(&["label", "live", "1"]);
    let (manifest, others) = bundle(3).split_last().map(|(last, rest)| (last.clone(), rest.to_vec())).expect("files");
    assert_eq!(manifest.0, MANIFEST);
    publish(server, 3, &others);

    let dir = tempfile::tempdir().expect("a temporary directory");
    let serving = Serving::start(&dir.path().join("cache"), &server.env(proxy.address()));
    // It lives, and is not ready before it has seen the bucket; it says why.
    wait_for("the reason", 30, || {
        let (status, body) = serving.ask("GET", "/v2/health/ready", "")?;
        assert_ne!(status, "200", "nothing can be served yet");
        (serving.metric("elastic_serve_mirror_away") == 1.0 || body.contains(REGISTRY)).then_some(())
    });
    is_cut.store(false, SeqCst);
    wait_for("the registry", 30, || (serving.ask("GET", "/v2/health/ready", "")?.0 == "200").then_some(()));
    let ready = |versions: &[&str]| -> Vec<(String, String, String)> {
        versions.iter().map(|v| (v.to_string(), "READY".to_string(), String::new())).collect()
    };
    assert_eq!(serving.index(), ready(&["1", "2"]), "3 has no manifest");
    assert_eq!((serving.infer(), serving.infer_of(2), serving.label()), (Some(1), Some(2), Some(1)));

    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(SeqCst) {
                    assert!(serving.infer().is_some(), "a request failed");
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        // However it ends, the clients end.
        let _over = Over(&over);
        publish(server, 3, &[manifest]);
        wait_for("version 3", 30, || (serving.infer_of(3)? == 3).then_some(()));
        assert_eq!(serving.infer(), Some(1), "the label has not moved");
        wait_for("the end of version 2", 30, || (serving.index() == ready(&["1", "3"])).then_some(()));

        registry(&["label", "live", "3"]);
        wait_for("the label", 30, || (serving.label()? == 3).then_some(()));
        assert_eq!(serving.infer(), Some(3), "who names none goes with the label");
        wait_for("the end of version 1", 30, || (serving.index() == ready(&["3"])).then_some(()));
        // Back to where it was, which is not here any more; 2 never had the label.
        registry(&["rollback"]);
        wait_for("the label's way back", 30, || (serving.label()? == 1).then_some(()));
        assert_eq!(serving.infer(), Some(1), "the rollback is one of who names none");

        is_cut.store(true, SeqCst);
        wait_for("that the store is away", 30, || (serving.metric("elastic_serve_mirror_away") == 1.0).then_some(()));
        registry(&["label", "live", "2"]);
        let mut damaged = bundle(4);
        let weights = damaged.iter_mut().find(|(name, _)| name == "weights.safetensors").expect("weights");
        *weights.1.last_mut().expect("bytes") ^= 1;
        publish(server, 4, &damaged);
        let before = answered.load(SeqCst);
        wait_for("answers meanwhile", 30, || (answered.load(SeqCst) > before + 20).then_some(()));
        assert_eq!((serving.infer(), serving.label()), (Some(1), Some(1)));
        assert_eq!(serving.ask("GET", "/v2/health/ready", "").expect("it answers").0, "200");

        is_cut.store(false, SeqCst);
        wait_for("the label after that", 30, || (serving.label()? == 2).then_some(()));
        let reason = wait_for("the reason of version 4", 30, || {
            let row = serving.index().into_iter().find(|(version, ..)| version == "4")?;
            (row.1 == "UNAVAILABLE").then_some(row.2)
        });
        let says = format!("{REGISTRY}/digits/4/weights.safetensors is damaged: its SHA-256 is ");
        assert!(reason.contains(&says), "{reason}");
        assert_eq!((serving.infer(), serving.metric("elastic_serve_mirror_refused")), (Some(2), 1.0));
        // Mended, it is taken without anybody's asking.
        publish(server, 4, &bundle(4));
        wait_for("version 4", 30, || (serving.infer_of(4)? == 4).then_some(()));
    });
    assert!(answered.load(SeqCst) > 50, "{} answers", answered.load(SeqCst));
    let log = std::fs::read_to_string(dir.path().join("cache.log")).expect("a log");
    assert_eq!(log.matches("the registry cannot be followed").count(), 2, "once for each time: {log}");
    let mut process = serving.process;
    signal(process.pid(), "TERM");
    assert_eq!(process.0.wait().expect("it ends").code(), Some(0), "drained");
}

/// Eight processes at once, each with a label of its own: none writes over what another has written.
#[test]
fn labels_that_many_move_at_once_in_a_bucket_are_all_there() {
    let server = match S3Server::shared() {
        Ok(server) => server,
        Err(why) => return skip("labels_that_many_move_at_once_in_a_bucket_are_all_there", why),
    };
    server.make_bucket("labelled");
    for (name, bytes) in bundle(1) {
        server.replace("labelled", &format!("registry/digits/1/{name}"), &bytes);
    }
    let env = server.env(&server.address());
    let labels: Vec<String> = (0..8).map(|i| format!("label-{i}")).collect();
    let start = |label: &String| {
        let mut command = Command::new(elastic());
        command.args(["pipeline", "label", "s3://labelled/registry", "digits", label, "1"]).envs(env.iter().cloned());
        Guarded(command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("elastic starts"))
    };
    let all: Vec<Guarded> = labels.iter().map(start).collect();
    for mut one in all {
        assert!(one.0.wait().expect("it ends").success());
    }
    let found = server.read("labelled", "registry/digits/labels.json").expect("labels");
    let found: std::collections::BTreeMap<String, u64> = serde_json::from_str(&found).expect("JSON");
    assert_eq!(found, labels.into_iter().map(|label| (label, 1)).collect());
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
