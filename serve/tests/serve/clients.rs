//! Unmodified clients of others get the bundle's bits: `python/clients.py` asks, in an environment that a script beside it
//! makes. Where that cannot be made, the test is skipped and says why.

use crate::models::{CLASSES, expected, mlp, put, rows};
use crate::up::Up;
use elastic_bundle::class_of;
use serde_json::json;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

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

fn ask(test: &str, client: &str) {
    let made = Command::new(folder().join("clients-python")).output().expect("the script starts");
    if !made.status.success() {
        let said = String::from_utf8_lossy(&made.stderr);
        return skip(test, said.trim().lines().last().unwrap_or("no Python with the clients"));
    }
    let python = String::from_utf8(made.stdout).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let model = mlp(0);
    put(&dir.path().join("registry/digits/1"), &model);
    let up = Up::new(&dir.path().join("registry"));
    let rows = rows(5, 0);
    let logits = expected(&model, &rows);
    let classes: Vec<usize> = logits.chunks(CLASSES).map(class_of).collect();
    let case = dir.path().join("case.json");
    std::fs::write(&case, json!({ "rows": rows, "logits": logits, "classes": classes }).to_string()).unwrap();
    let output = Command::new(python.trim())
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
