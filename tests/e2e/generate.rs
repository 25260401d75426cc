//! A text on the terminal is the text that the server gives, of a run as of a bundle; what cannot go on says why.

use crate::cluster::{elastic, job_file, submit_local, wait_for};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

fn run(args: &[&str]) -> Output {
    Command::new(elastic()).args(args).stdin(Stdio::null()).output().expect("elastic starts")
}

fn said(args: &[&str]) -> Value {
    let output = run(&[args, &["--json"]].concat());
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

fn refused(args: &[&str]) -> String {
    let output = run(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// `elastic serve`, ended by SIGTERM.
struct Serving {
    process: Child,
    address: String,
}

impl Serving {
    fn start(models: &Path) -> Serving {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let address = free.to_string();
        let process = Command::new(elastic())
            .args(["serve", text(models), "--http", &address, "--grpc", "off"])
            .stderr(Stdio::null())
            .spawn()
            .expect("elastic starts");
        let serving = Serving { process, address };
        wait_for("the server is ready", 30, || {
            serving.get("/v2/health/ready").starts_with("HTTP/1.1 200").then_some(())
        });
        serving
    }

    fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"))
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let body = body.to_string();
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        let answer = self.ask(&(head + &body));
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON")
    }

    /// Empty while nobody listens.
    fn ask(&self, request: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut stream) = TcpStream::connect(&self.address) {
            let asked = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_string(&mut answer));
            asked.expect("a whole answer");
        }
        answer
    }

    fn end(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
        assert_eq!(self.process.wait().expect("it ends").code(), Some(0), "drained");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_text_on_the_terminal_is_the_servers_of_a_run_as_of_a_bundle() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let args = ["--set", "train.epochs=4", "--workers", "1"];
    let (result, _) = submit_local(dir.path(), &job_file("gpt"), &args, &[]);
    let run_dir = result["run_dir"].as_str().expect("run_dir");
    let bundle = dir.path().join("models/sums/1");
    std::fs::create_dir_all(bundle.parent().expect("models/sums")).expect("a directory");
    said(&["export", run_dir, "--out", text(&bundle)]);

    const PROMPT: &str = "seven and five ";
    let greedy = ["--prompt", PROMPT, "--temperature", "0", "--max-tokens", "12"];
    let of = |path: &str, more: &[&str]| said(&[&["generate", path], more].concat());
    let (of_run, of_bundle) = (of(run_dir, &greedy), of(text(&bundle), &greedy));
    assert_eq!(of_run["text"], of_bundle["text"]);
    assert_eq!(of_run["tokens"].as_array().map(Vec::len), Some(12));
    assert_eq!((&of_run["finish_reason"], &of_run["prompt_tokens"]), (&json!("length"), &json!(15)));
    assert_eq!(of_run["weights_sha256"], result["weights_sha256"]);
    let shown = run(&[&["generate", text(&bundle), "--echo"][..], &greedy].concat());
    let whole = format!("{PROMPT}{}\n", of_run["text"].as_str().expect("text"));
    assert_eq!(String::from_utf8_lossy(&shown.stdout), whole, "{}", String::from_utf8_lossy(&shown.stderr));

    let seeded = ["--prompt", PROMPT, "--seed", "7", "--top-p", "0.9", "--temperature", "0.7", "--max-tokens", "14"];
    let one = of(text(&bundle), &[&seeded[..], &["--threads", "1"]].concat());
    assert_eq!(one, of(text(&bundle), &[&seeded[..], &["--threads", "2"]].concat()), "threads change no token");
    let stop: String = one["text"].as_str().expect("text").chars().skip(1).take(1).collect();
    let stopped = of(text(&bundle), &[&seeded[..], &["--stop", &stop]].concat());
    assert_eq!(stopped["text"].as_str(), one["text"].as_str().expect("text").split(&stop).next());
    assert_eq!(stopped["finish_reason"], "stop");
    let long = of(text(&bundle), &["--prompt", PROMPT]);
    assert_eq!((&long["finish_reason"], &long["completion_tokens"]), (&json!("length"), &json!(32 - 15 + 1)));

    let serving = Serving::start(&dir.path().join("models"));
    let ask = json!({ "model": "sums", "prompt": PROMPT, "temperature": 0, "max_tokens": 12 });
    assert_eq!(serving.post("/v1/completions", &ask)["choices"][0]["text"], of_run["text"]);
    let ask =
        json!({ "model": "sums:1", "prompt": PROMPT, "seed": 7, "top_p": 0.9, "temperature": 0.7, "max_tokens": 14 });
    assert_eq!(serving.post("/v1/completions", &ask)["choices"][0]["text"], one["text"]);
    serving.end();

    let refused = |more: &[&str]| refused(&[&["generate", text(&bundle)], more].concat());
    assert!(refused(&["--prompt", "x".repeat(33).as_str()]).contains("33 tokens, and the model's context is 32"));
    assert!(refused(&["--prompt", ""]).contains("the prompt has no tokens"));
    assert!(refused(&["--prompt", "a", "--temperature", "3"]).contains("must be 0 to 2"));
    assert!(refused(&["--prompt-file", "nowhere.txt"]).contains("read nowhere.txt"));
    assert!(refused(&[]).contains("--prompt"));
}

#[test]
fn a_model_of_numbers_goes_on_with_no_text() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (result, _) = submit_local(dir.path(), &job_file("digits"), &["--set", "train.epochs=1"], &[]);
    let run_dir = result["run_dir"].as_str().expect("run_dir");
    assert!(refused(&["generate", run_dir, "--prompt", "a"]).contains("reads numbers, not text"));
}
