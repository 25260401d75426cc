//! What happens to texts that are under way: listeners leave, desks fill, versions change, a step panics, the server
//! ends.

use crate::client::Client;
use crate::models::{put, writer};
use crate::text::{CONTEXT, PATH};
use crate::up::{Up, until};
use elastic_serve::repository::{Open, bundles};
use elastic_serve::serving::Which;
use elastic_serve::testing::{Held, Hold, held_texts};
use elastic_serve::{Config, bundled};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A server whose first version's steps of texts a test can hold.
fn held(dir: &Path, held: &Held, change: impl FnOnce(&mut Config)) -> Up {
    put(&dir.join("text/1"), &writer(CONTEXT, 0));
    let mut config = Config { poll: Some(Duration::from_millis(20)), ..Config::new(dir.to_path_buf()) };
    change(&mut config);
    let held = held.clone();
    let open: Open = Arc::new(move |dir| {
        let model = bundled::open(dir)?;
        Ok(if dir.ends_with("1") { held_texts(model, &held) } else { model })
    });
    Up::with(config, open)
}

/// A figure of `/metrics`, of the model's newest version.
fn figure(up: &Up, name: &str) -> u64 {
    let text = up.client().get("/metrics").text();
    let line = text.lines().rfind(|line| line.starts_with(&format!("{name}{{model=\"text\"")));
    let line = line.unwrap_or_else(|| panic!("{name} is not in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

fn ask(seed: u64, max_tokens: usize) -> Value {
    json!({ "model": "text", "prompt": "It was", "max_tokens": max_tokens, "seed": seed })
}

fn streamed(seed: u64) -> String {
    let mut ask = ask(seed, 60);
    ask["stream"] = json!(true);
    ask.to_string()
}

/// Text of an event, if it is one with a text.
fn said(event: &[u8]) -> String {
    let text = String::from_utf8_lossy(event);
    let objects = text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let objects = objects.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    objects.map(|event| event["choices"][0]["text"].as_str().unwrap_or_default().to_string()).collect()
}

/// Begins a stream, reads its first piece, and holds it in the middle.
fn begun(up: &Up, gate: &Held, seed: u64) -> (Client, String, Hold) {
    let hold = gate.hold_after(6);
    let mut client = up.client().live();
    let answer = client.post(PATH, &streamed(seed));
    assert_eq!(answer.status, 200);
    let first = client.chunk().unwrap().expect("a piece");
    (client, said(&first), hold)
}

fn rest(client: &mut Client) -> String {
    let mut text = String::new();
    let mut last = Vec::new();
    while let Some(chunk) = client.chunk().unwrap() {
        text += &said(&chunk);
        last = chunk;
    }
    assert!(last.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&last));
    text
}

#[test]
fn who_leaves_a_stream_or_an_answer_frees_its_seat() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Held::new());
    let up = held(dir.path(), &gate, |config| config.text.sequences = 1);
    let (client, _, hold) = begun(&up, &gate, 1);
    let mut waiting = up.client();
    let body = ask(2, 50).to_string();
    waiting.send(format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes());
    until("one goes on and one waits", || figure(&up, "elastic_serve_text_waiting") == 1);
    drop((client, waiting));
    let left = "nv_inference_request_failure{model=\"text\",version=\"1\",reason=\"CANCELED\"} 2";
    until("both are seen to leave", || up.client().get("/metrics").text().contains(left));
    drop(hold);
    until("nobody is seated", || figure(&up, "elastic_serve_text_running") == 0);
    assert_eq!(figure(&up, "elastic_serve_text_waiting"), 0);
    assert_eq!(figure(&up, "elastic_serve_text_finished_total"), 0);
    assert_eq!(figure(&up, "elastic_serve_text_left_total"), 1);
    let tokens = figure(&up, "elastic_serve_text_tokens_total");
    assert!(tokens < 60, "a text that nobody hears is not said to its end: {tokens}");
    assert_eq!(up.client().post(PATH, &ask(3, 5).to_string()).status, 200);
    assert_eq!(figure(&up, "elastic_serve_text_finished_total"), 1);
    assert!(figure(&up, "elastic_serve_text_first_token_seconds_count") >= 2);
}

#[test]
fn a_full_desk_says_when_to_come_again_and_a_deadline_is_kept() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Held::new());
    let up = held(dir.path(), &gate, |config| (config.text.sequences, config.text.waiting_max) = (1, 1));
    let (mut client, first, hold) = begun(&up, &gate, 1);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| up.client().post(PATH, &ask(2, 5).to_string()));
        until("one waits", || figure(&up, "elastic_serve_text_waiting") == 1);
        for stream in [false, true] {
            let mut ask = ask(3, 5);
            ask["stream"] = json!(stream);
            let full = up.client().post(PATH, &ask.to_string());
            assert_eq!((full.status, full.header("retry-after")), (429, Some("1")));
            assert_eq!(full.json()["error"]["type"], "rate_limit_error");
        }
        let triton = up.client().post("/v2/models/text/generate", "{\"text_input\": \"a\"}");
        assert_eq!((triton.status, triton.header("retry-after")), (429, Some("1")));
        drop(hold);
        assert_eq!(second.join().unwrap().status, 200);
    });
    let text = first + &rest(&mut client);
    let whole = up.client().post(PATH, &ask(1, 60).to_string()).json();
    assert_eq!(whole["choices"][0]["text"], text, "held in the middle, it went on as if nothing had been");
    let hold = gate.hold();
    let late = up.client().ask("POST", PATH, &[("request-timeout-ms", "50")], ask(4, 5).to_string().as_bytes());
    assert_eq!(late.status, 504, "{}", late.text());
    drop(hold);
    until("it left", || figure(&up, "elastic_serve_text_running") == 0);
}

#[test]
fn a_deadline_in_the_middle_of_a_stream_is_told_in_it() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Held::new());
    let up = held(dir.path(), &gate, |config| config.text.timeout = Duration::from_millis(1_000));
    let (mut client, _, hold) = begun(&up, &gate, 1);
    let mut last = Vec::new();
    while let Some(chunk) = client.chunk().unwrap() {
        last = chunk;
    }
    drop(hold);
    let text = String::from_utf8(last).unwrap();
    let error: Value = serde_json::from_str(text.trim_start_matches("data: ").trim_end()).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("the deadline passed"), "{error}");
}

#[test]
fn who_stops_to_read_a_stream_keeps_neither_its_version_nor_the_drain() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("text/1"), &writer(CONTEXT, 0));
    let mut config = Config { poll: Some(Duration::from_millis(20)), ..Config::new(dir.path().to_path_buf()) };
    // The scribe alone would wait for it until the drain is over.
    (config.text.silence, config.text.silence_needed) = (Duration::from_secs(600), Duration::from_secs(600));
    (config.unread, config.drain) = (Duration::from_millis(500), Duration::from_secs(20));
    let up = Up::with(config, bundles());
    // More events, and larger ones, than buffers on the way hold; several, because one may not be enough.
    let ask = json!({
        "model": format!("text:{:0>240}", 1), "prompt": "a", "n": 128, "max_tokens": 96, "logprobs": 5, "stream": true,
    });
    let ask = ask.to_string();
    let mut silent: Vec<Client> = (0..2).map(|_| up.client()).collect();
    for client in &mut silent {
        let request = format!("POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{ask}", ask.len());
        client.send(request.repeat(4).as_bytes());
    }
    let cancelled = "nv_inference_request_failure{model=\"text\",version=\"1\",reason=\"CANCELED\"} 2";
    until("both are given up", || up.client().get("/metrics").text().contains(cancelled));
    until("nobody is seated", || figure(&up, "elastic_serve_text_running") == 0);
    let old = Arc::downgrade(&up.shared.find("text", &Which::Default).unwrap());
    put(&dir.path().join("text/2"), &writer(CONTEXT, 2));
    until("the old version is gone", || old.upgrade().is_none());
    assert!(up.ended(), "nobody is left to wait for");
    drop(silent);
}

#[test]
fn a_version_that_goes_says_its_texts_to_the_end() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Held::new());
    let up = held(dir.path(), &gate, |_| {});
    let (mut client, first, hold) = begun(&up, &gate, 1);
    put(&dir.path().join("text/2"), &writer(CONTEXT, 2));
    let new = || up.client().get("/v2/models/text").json()["versions"] == json!(["2"]);
    until("the new version answers alone", new);
    let of_new = up.client().post(PATH, &ask(1, 60).to_string()).json();
    drop(hold);
    let text = first + &rest(&mut client);
    assert_ne!(of_new["choices"][0]["text"], text);
    let before = tempfile::tempdir().unwrap();
    put(&before.path().join("text/1"), &writer(CONTEXT, 0));
    let of_old = Up::new(before.path()).client().post(PATH, &ask(1, 60).to_string()).json();
    assert_eq!(of_old["choices"][0]["text"], text);
    assert_ne!(of_old["system_fingerprint"], of_new["system_fingerprint"]);
}

#[test]
fn a_drain_says_every_text_to_its_end() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Held::new());
    let mut up = held(dir.path(), &gate, |config| config.text.sequences = 1);
    let (mut client, first, hold) = begun(&up, &gate, 1);
    let expected = std::thread::scope(|scope| {
        let waits = scope.spawn(|| up.client().post(PATH, &ask(1, 60).to_string()));
        until("one waits", || figure(&up, "elastic_serve_text_waiting") == 1);
        drop(hold);
        waits.join().unwrap().json()["choices"][0]["text"].clone()
    });
    let text = first + &rest(&mut client);
    assert_eq!(expected, text);
    let (mut client, first, hold) = begun(&up, &gate, 1);
    up.begin_to_drain();
    std::thread::sleep(Duration::from_millis(50));
    drop(hold);
    assert_eq!(expected, first + &rest(&mut client));
    assert!(up.ended(), "everybody got an answer");
}

#[test]
fn a_panic_ends_the_texts_that_were_under_way_and_no_others() {
    let (dir, gate) = (tempfile::tempdir().unwrap(), Held::new());
    let up = held(dir.path(), &gate, |config| config.text.sequences = 1);
    let expected = up.client().post(PATH, &ask(1, 20).to_string()).json()["choices"].clone();
    let hold = gate.hold();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| up.client().post(PATH, &ask(9, 20).to_string()));
        until("the first goes on", || figure(&up, "elastic_serve_text_running") == 1);
        let second = scope.spawn(|| up.client().post(PATH, &ask(1, 20).to_string()));
        until("the second waits", || figure(&up, "elastic_serve_text_waiting") == 1);
        // The step that is held has looked already: the next one panics.
        gate.panic_once();
        drop(hold);
        let first = waits.join().unwrap();
        assert_eq!((first.status, &first.json()["error"]["type"]), (500, &json!("server_error")));
        let second = second.join().unwrap();
        assert_eq!((second.status, &second.json()["choices"]), (200, &expected));
    });
    assert_eq!(up.client().get("/v2/health/ready").status, 200);
}

#[test]
fn without_memory_for_texts_a_model_answers_other_requests_and_says_why() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("text/1"), &writer(CONTEXT, 0));
    let mut config = Config::new(dir.path().to_path_buf());
    config.text.memory_max = 1 << 20;
    config.text.sequences = 400;
    let up = Up::with(config, bundles());
    let refused = up.client().post(PATH, &ask(1, 5).to_string());
    let why = refused.json()["error"]["message"].as_str().unwrap().to_string();
    assert!(refused.status == 400 && why.contains("sequences of 96 tokens need"), "{why}");
    assert!(why.contains("--text-memory-mib, --sequences"), "{why}");
    let tokens = json!({ "inputs": [{ "name": "tokens", "shape": [1, 1], "datatype": "INT32", "data": [65] }] });
    assert_eq!(up.client().post("/v2/models/text/infer", &tokens.to_string()).status, 200);
}
