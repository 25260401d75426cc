//! Unmodified clients of others get the bundle's bits: `python/clients.py` asks, in an environment that a script beside it
//! makes. Where that cannot be made, the test is skipped and says why.

use crate::models::{CLASSES, expected, mlp, put, rows, writer};
use crate::up::Up;
use elastic_bundle::{Predictor, class_of};
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// The same line as `elastic_tests::skip`, which this crate cannot see.
fn skip(test: &str, reason: &str) {
    let line = format!("{test}: {reason}\n");
    print!("skipped: {line}");
    if let Some(path) = std::env::var_os("ELASTIC_SKIP_FILE") {
        let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("the skip is noted");
    }
}

const CONTEXT: usize = 64;

/// What the whole forward pass goes on with.
fn likeliest(model: &elastic_bundle::Model, prompt: &[u8], count: usize) -> String {
    let mut predictor = Predictor::new(model, 1).unwrap();
    let mut tokens: Vec<i32> = prompt.iter().map(|byte| i32::from(*byte)).collect();
    for _ in 0..count {
        let logits = predictor.sequence_logits(&tokens);
        tokens.push(class_of(&logits[logits.len() - 256..]) as i32);
    }
    let said: Vec<u8> = tokens[prompt.len()..].iter().map(|token| *token as u8).collect();
    String::from_utf8_lossy(&said).into_owned()
}

/// Made and looked at once for all tests: importing the clients to see that they are there takes 7 s.
fn python() -> Result<&'static str, &'static str> {
    static PYTHON: OnceLock<Result<String, String>> = OnceLock::new();
    let made = PYTHON.get_or_init(|| {
        let made = Command::new(folder().join("clients-python")).output().expect("the script starts");
        let said = String::from_utf8_lossy(&made.stderr);
        match made.status.success() {
            true => Ok(String::from_utf8(made.stdout).expect("a path").trim().to_string()),
            false => Err(said.trim().lines().last().unwrap_or("no Python with the clients").to_string()),
        }
    });
    made.as_deref().map_err(String::as_str)
}

fn ask(test: &str, client: &str) {
    let python = match python() {
        Ok(python) => python,
        Err(why) => return skip(test, why),
    };
    let dir = tempfile::tempdir().unwrap();
    let model = mlp(0);
    put(&dir.path().join("registry/digits/1"), &model);
    let rows = rows(5, 0);
    let logits = expected(&model, &rows);
    let classes: Vec<usize> = logits.chunks(CLASSES).map(class_of).collect();
    let case = dir.path().join("case.json");
    let mut asked = json!({ "rows": rows, "logits": logits, "classes": classes });
    if client == "openai" {
        let model = writer(CONTEXT, 0);
        put(&dir.path().join("registry/text/1"), &model);
        asked["text"] = likeliest(&model, b"Once upon", 20).into();
    }
    std::fs::write(&case, asked.to_string()).unwrap();
    let up = Up::new(&dir.path().join("registry"));
    let output = Command::new(python)
        .arg(folder().join("clients.py"))
        .args([client, &up.http.to_string(), &up.grpc.to_string()])
        .arg(&case)
        .output()
        .expect("Python starts");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{client}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn tritons_http_client_gets_the_bundles_bits_as_json_and_as_bytes() {
    ask("tritons_http_client_gets_the_bundles_bits_as_json_and_as_bytes", "triton-http");
}

#[test]
fn tritons_grpc_client_gets_the_bundles_bits_in_calls_and_streams() {
    ask("tritons_grpc_client_gets_the_bundles_bits_in_calls_and_streams", "triton-grpc");
}

#[test]
fn kserves_client_gets_the_bundles_bits_by_all_three_protocols() {
    ask("kserves_client_gets_the_bundles_bits_by_all_three_protocols", "kserve");
}

#[test]
fn the_curl_lines_of_tensorflow_servings_documents_work() {
    ask("the_curl_lines_of_tensorflow_servings_documents_work", "curl");
}

#[test]
fn prometheus_reads_the_metrics() {
    ask("prometheus_reads_the_metrics", "prometheus");
}

#[test]
fn openais_client_gets_texts_whole_and_streamed_and_its_own_errors() {
    ask("openais_client_gets_texts_whole_and_streamed_and_its_own_errors", "openai");
}
