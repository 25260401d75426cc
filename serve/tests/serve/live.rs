//! What happens to requests while versions change, queues fill, clients leave, and the server ends.

use crate::client::Client;
use crate::models::{FEATURES, expected, mlp, put, rows};
use crate::up::{Up, until};
use elastic_serve::limits::BODIES_BYTES_MAX;
use elastic_serve::repository::{Open, bundles};
use elastic_serve::serving::Which;
use elastic_serve::testing::{Held, echo};
use elastic_serve::{Config, Keys};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const ASK: &str = "/v2/models/digits/infer";

fn ask(rows: &[Vec<f32>]) -> String {
    let input = json!({ "name": "input", "shape": [rows.len(), FEATURES], "datatype": "FP32", "data": rows });
    json!({ "inputs": [input], "outputs": [{ "name": "logits" }] }).to_string()
}

/// A body of unknown length may become as large as any, until it is there.
#[test]
fn bodies_without_a_length_hold_what_they_have_once_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let stop = Held::new();
    let up = held(dir.path(), &stop, |_| ());
    let hold = stop.hold();
    let body = ask(&rows(1, 0));
    let request = format!(
        "POST {ASK} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let loaded = up.shared.serving.find("digits", &Which::Default).unwrap();
    let mut clients: Vec<Client> = (0..20).map(|_| up.client()).collect();
    for (before, client) in clients.iter_mut().enumerate() {
        client.send(request.as_bytes());
        until("it waits for the model", || loaded.stats.counts().pending == before as i64 + 1);
    }
    assert!(up.shared.bodies.take(BODIES_BYTES_MAX).is_ok(), "those who wait hold nothing");
    drop(loaded);
    drop(hold);
    for client in &mut clients {
        let answer = client.read().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}

fn version(answer: &Value) -> u64 {
    answer["model_version"].as_str().unwrap().parse().unwrap()
}

fn quick(models: &Path) -> Config {
    Config { poll: Some(Duration::from_millis(20)), ..Config::new(models.to_path_buf()) }
}

/// A registry with one held echo, which a test can stop in the middle of a call.
fn held(dir: &Path, held: &Held, change: impl FnOnce(&mut Config)) -> Up {
    put(&dir.join("digits/1"), &mlp(0));
    let mut config = quick(dir);
    // Else a thread that reads requests would be held.
    config.policy.quick = Duration::ZERO;
    change(&mut config);
    let held = held.clone();
    let open: Open = Arc::new(move |_| Ok(echo(FEATURES, &held)));
    // The warm-up has been through the model already.
    Up::with(config, open)
}

#[test]
fn versions_change_under_load_without_a_failed_request_and_every_answer_is_one_versions() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("digits/1"), &mlp(1));
    let up = Up::with(quick(dir.path()), bundles());
    let rows = rows(3, 0);
    let expected: Vec<Vec<f32>> = (0..6).map(|seed| expected(&mlp(seed), &rows)).collect();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = up.client();
                let mut newest = 0;
                while !over.load(SeqCst) {
                    let answer = client.post(ASK, &ask(&rows));
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let answer = answer.json();
                    let version = version(&answer);
                    assert!(version >= newest, "version {version} after {newest}");
                    newest = version;
                    let logits = answer["outputs"][0]["data"].as_array().unwrap();
                    let logits: Vec<f32> = logits.iter().map(|n| n.as_f64().unwrap() as f32).collect();
                    assert_eq!(logits, expected[version as usize]);
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        for seed in 2..6 {
            let before = answered.load(SeqCst);
            until("requests are answered", || answered.load(SeqCst) > before + 20);
            put(&dir.path().join(format!("digits/{seed}")), &mlp(seed as usize));
            let shown = || up.client().get("/v2/models/digits").json()["versions"] == json!([seed.to_string()]);
            until("the new version answers alone", shown);
        }
        over.store(true, SeqCst);
    });
    assert_eq!(up.client().post(ASK, &ask(&rows)).json()["model_version"], "5");
}

#[test]
fn a_damaged_version_leaves_the_old_one_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("digits/1"), &mlp(1));
    let up = Up::with(quick(dir.path()), bundles());
    put(&dir.path().join(".2"), &mlp(2));
    let weights = dir.path().join(".2/weights.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, &bytes).unwrap();
    std::fs::rename(dir.path().join(".2"), dir.path().join("digits/2")).unwrap();
    let row = || {
        let index = up.client().post("/v2/repository/index", "").json();
        index.as_array().unwrap().iter().find(|row| row["version"] == "2").cloned()
    };
    until("the load was tried", || row().is_some_and(|row| row["state"] == "UNAVAILABLE"));
    assert!(row().unwrap()["reason"].as_str().unwrap().contains("damaged"), "{row:?}", row = row());
    assert_eq!(version(&up.client().post(ASK, &ask(&rows(1, 0))).json()), 1);
    assert_eq!(up.client().get("/v2/health/ready").status, 200);
    let metrics = up.client().get("/metrics").text();
    assert!(!metrics.contains("elastic_serve_load_failures_total 0"), "{metrics}");
    // Mended in place, it answers.
    std::fs::remove_dir_all(dir.path().join("digits/2")).unwrap();
    put(&dir.path().join("digits/2"), &mlp(2));
    until("the mended version answers", || version(&up.client().post(ASK, &ask(&rows(1, 0))).json()) == 2);
}

#[test]
fn a_version_that_is_being_copied_is_not_seen_until_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("digits/1"), &mlp(1));
    let up = Up::with(quick(dir.path()), bundles());
    let from = dir.path().join(".whole");
    put(&from, &mlp(2));
    let to = dir.path().join("digits/2");
    std::fs::create_dir(&to).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(&from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort_by_key(|name| name == "manifest.json");
    for file in &files {
        let index = up.client().post("/v2/repository/models/digits/load", "");
        assert_eq!(index.status, 200, "{}", index.text());
        assert_eq!(version(&up.client().post(ASK, &ask(&rows(1, 0))).json()), 1, "before {file:?}");
        std::fs::copy(from.join(file), to.join(file)).unwrap();
    }
    assert_eq!(up.client().post("/v2/repository/models/digits/load", "").status, 200);
    assert_eq!(version(&up.client().post(ASK, &ask(&rows(1, 0))).json()), 2);
}

#[test]
fn labels_name_versions_that_answer_beside_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    for seed in 1..4 {
        put(&dir.path().join(format!("digits/{seed}")), &mlp(seed));
    }
    std::fs::write(dir.path().join("digits/labels.json"), r#"{"stable": 1}"#).unwrap();
    let up = Up::with(quick(dir.path()), bundles());
    let body = json!({ "instances": rows(1, 0) }).to_string();
    let ask = |path: &str| up.client().post(path, &body);
    let logits = |path: &str| ask(path).json()["predictions"][0]["logits"].clone();
    assert_eq!(logits("/v1/models/digits/labels/stable:predict"), logits("/v1/models/digits/versions/1:predict"));
    assert_eq!(logits("/v1/models/digits:predict"), logits("/v1/models/digits/versions/3:predict"));
    assert_eq!(ask("/v1/models/digits/versions/2:predict").status, 404);
    std::fs::write(dir.path().join("digits/labels.json"), r#"{"stable": 2}"#).unwrap();
    until("the label has moved", || ask("/v1/models/digits/versions/2:predict").status == 200);
    assert_eq!(logits("/v1/models/digits/labels/stable:predict"), logits("/v1/models/digits/versions/2:predict"));
}

/// Sends on a connection of its own and gives what the server says.
fn send(up: &Up, headers: Vec<(&'static str, String)>) -> std::thread::JoinHandle<crate::client::Answer> {
    let address = up.http;
    std::thread::spawn(move || {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        Client::new(address).ask("POST", ASK, &headers, ask(&rows(1, 0)).as_bytes())
    })
}

fn pending(up: &Up) -> i64 {
    up.shared.serving.table().models["digits"].versions[&1].stats.counts().pending
}

/// The metrics have this line.
#[track_caller]
fn counts(up: &Up, line: &str) {
    let metrics = up.client().get("/metrics").text();
    assert!(metrics.lines().any(|found| found == line), "no {line} in {metrics}");
}

#[test]
fn a_full_queue_says_when_to_come_again_and_loses_nobody_who_was_admitted() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Held::new();
    let up = held(dir.path(), &gate, |config| {
        config.policy.requests_max = 2;
        config.policy.rows_max = 1;
    });
    let shut = gate.hold();
    let mut admitted = Vec::new();
    for count in 1..=3 {
        admitted.push(send(&up, vec![]));
        until("it waits", || pending(&up) == count);
    }
    let refused = send(&up, vec![]).join().unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (429, Some("1")), "{}", refused.text());
    drop(shut);
    assert!(admitted.into_iter().all(|one| one.join().unwrap().status == 200));
    counts(&up, r#"nv_inference_request_failure{model="digits",version="1",reason="REJECTED"} 1"#);
    counts(&up, r#"elastic_serve_http_responses_total{code="429"} 1"#);
}

#[test]
fn a_deadline_that_passes_is_a_504() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Held::new();
    let up = held(dir.path(), &gate, |_| {});
    let shut = gate.hold();
    let late = send(&up, vec![("request-timeout-ms", "20".into())]).join().unwrap();
    assert_eq!(late.status, 504, "{}", late.text());
    drop(shut);
    assert_eq!(send(&up, vec![]).join().unwrap().status, 200);
    counts(&up, r#"elastic_serve_http_responses_total{code="504"} 1"#);
    counts(&up, r#"nv_inference_request_failure{model="digits",version="1",reason="OTHER"} 1"#);
}

#[test]
fn a_client_that_leaves_is_not_computed_and_counted_as_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Held::new();
    let up = held(dir.path(), &gate, |_| {});
    let shut = gate.hold();
    let first = send(&up, vec![]);
    until("the first is being computed", || pending(&up) == 1);
    let mut leaver = up.client();
    let body = ask(&rows(1, 0));
    leaver.send(format!("POST {ASK} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
    until("the second waits", || pending(&up) == 2);
    drop(leaver);
    until("the second has left", || pending(&up) == 1);
    drop(shut);
    assert_eq!(first.join().unwrap().status, 200);
    let counts = up.shared.serving.table().models["digits"].versions[&1].stats.counts();
    assert_eq!((counts.success, counts.failure), (1, [0, 1, 0, 0]));
}

#[test]
fn a_drain_says_no_to_probes_first_and_answers_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Held::new();
    let mut up = held(dir.path(), &gate, |config| config.drain_delay = Duration::from_millis(300));
    let shut = gate.hold();
    let waiting: Vec<_> = (0..3).map(|_| send(&up, vec![])).collect();
    until("all wait", || pending(&up) == 3);
    up.begin_to_drain();
    until("readiness says no", || up.client().get("/v2/health/ready").status == 503);
    // For the delay requests are still taken.
    let taken = send(&up, vec![]);
    until("it was taken", || pending(&up) == 4);
    drop(shut);
    assert!(waiting.into_iter().chain([taken]).all(|one| one.join().unwrap().status == 200));
    assert!(up.ended());
}

#[test]
fn a_drain_ends_in_time_though_a_request_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let gate = Held::new();
    let up = held(dir.path(), &gate, |config| config.drain = Duration::from_millis(100));
    let shut = gate.hold();
    let address = up.http;
    let stuck = std::thread::spawn(move || {
        let mut client = Client::new(address);
        let body = ask(&rows(1, 0));
        client
            .send(format!("POST {ASK} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
        client.read().is_err()
    });
    until("it waits", || pending(&up) == 1);
    assert!(!up.ended());
    drop(shut);
    assert!(stuck.join().unwrap(), "what is cut off has no answer");
}

#[test]
fn too_many_connections_are_turned_away_and_leave_room_when_they_end() {
    let dir = tempfile::tempdir().unwrap();
    let up = held(dir.path(), &Held::new(), |config| config.connections = 2);
    let mut guests = [up.client(), up.client()];
    assert!(guests.iter_mut().all(|guest| guest.get("/v2/health/live").status == 200));
    let answer = up.client().get("/v2/health/live");
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    let metrics = guests[0].get("/metrics").text();
    assert!(metrics.contains(r#"elastic_serve_http_responses_total{code="503"} 1"#), "{metrics}");
    drop(guests);
    until("there is room again", || up.client().get("/v2/health/live").status == 200);
}

#[test]
fn with_keys_only_probes_are_answered_without_one() {
    let dir = tempfile::tempdir().unwrap();
    let key = "0123456789abcdef";
    let up = held(dir.path(), &Held::new(), |config| config.keys = Keys::parse(key).unwrap());
    assert_eq!(up.client().get("/v2/health/ready").status, 200);
    let refused = up.client().get("/metrics");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    assert_eq!(send(&up, vec![]).join().unwrap().status, 401);
    assert_eq!(send(&up, vec![("authorization", format!("Bearer {key}"))]).join().unwrap().status, 200);
    assert_eq!(send(&up, vec![("x-api-key", key.into())]).join().unwrap().status, 200);
}

#[test]
fn a_model_that_is_not_ready_is_a_503_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let up = held(dir.path(), &Held::new(), |_| {});
    assert_eq!(up.client().post("/v2/repository/models/digits/unload", "").status, 200);
    let refused = send(&up, vec![]).join().unwrap();
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("1")), "{}", refused.text());
    counts(&up, r#"elastic_serve_http_responses_total{code="503"} 1"#);
}

#[test]
fn a_key_without_the_role_may_ask_and_neither_load_nor_unload() {
    let dir = tempfile::tempdir().unwrap();
    let (asks, loads) = ("0123456789abcdef", "fedcba9876543210");
    let keys = Keys::parse(&format!("{asks}\nadmin {loads}")).unwrap();
    let up = held(dir.path(), &Held::new(), |config| config.keys = keys);
    let ask = |act: &str, key: &str| {
        up.client().ask("POST", &format!("/v2/repository/models/digits/{act}"), &[("x-api-key", key)], b"").status
    };
    assert_eq!((ask("unload", asks), ask("load", asks)), (403, 403));
    assert_eq!(send(&up, vec![("x-api-key", asks.into())]).join().unwrap().status, 200);
    assert_eq!((ask("unload", loads), ask("load", loads)), (200, 200));
}

#[test]
fn packed_requests_are_read_and_answers_packed_on_demand() {
    use flate2::{Compression, read::GzDecoder, write::GzEncoder};
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    let up = held(dir.path(), &Held::new(), |_| {});
    let rows = rows(20, 0);
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(ask(&rows).as_bytes()).unwrap();
    let headers = [("content-encoding", "gzip"), ("accept-encoding", "gzip, deflate")];
    let answer = up.client().ask("POST", ASK, &headers, &encoder.finish().unwrap());
    assert_eq!((answer.status, answer.header("content-encoding")), (200, Some("gzip")));
    let mut text = String::new();
    GzDecoder::new(answer.body.as_slice()).read_to_string(&mut text).unwrap();
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(answer["outputs"][0]["data"], json!(rows.concat()));
}
