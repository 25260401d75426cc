//! Who names neither a version nor a label: the version labelled `live` answers, by every protocol, and says so alike.

use crate::bad_grpc::{client as client_of, good, on};
use crate::models::{CONTEXT, expected, mlp, put, rows, writer};
use crate::rest::floats;
use crate::up::{Up, until};
use elastic_serve::Config;
use elastic_serve::repository::bundles;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

const LIVE: &str = "/v1/models/digits/labels/live";

fn up(dir: &Path) -> Up {
    Up::with(Config { poll: Some(Duration::from_millis(20)), ..Config::new(dir.to_path_buf()) }, bundles())
}

/// Whole at once, as the product writes it.
fn label(dir: &Path, labels: &Value) {
    let aside = dir.join("digits/.labels");
    std::fs::write(&aside, labels.to_string()).unwrap();
    std::fs::rename(aside, dir.join("digits/labels.json")).unwrap();
}

fn ask() -> String {
    let input = json!({ "name": "input", "shape": [1, 64], "datatype": "FP32", "data": rows(1, 0) });
    json!({ "inputs": [input], "outputs": [{ "name": "logits" }] }).to_string()
}

/// The version that answers who names none, as each protocol tells it.
fn told(up: &Up) -> Vec<u64> {
    let mut client = up.client();
    let number = |value: &Value| value.as_str().expect("a version").parse::<u64>().expect("a number");
    let infer = client.post("/v2/models/digits/infer", &ask()).json();
    let metadata = client.get("/v2/models/digits").json();
    let v1_metadata = client.get("/v1/models/digits/metadata").json();
    let predicted = client.post("/v1/models/digits:predict", &json!({ "instances": rows(1, 0) }).to_string()).json();
    let logits: Vec<f32> = floats(&predicted["predictions"][0]["logits"]);
    let by_bits = (1..9).find(|seed| expected(&mlp(*seed as usize), &rows(1, 0)) == logits).expect("a version's bits");
    let answer = on(async { client_of(up).await.model_infer(good()).await }).unwrap().into_inner();
    let of_grpc = answer.model_version.parse::<u64>().unwrap();
    let all = [&infer["model_version"], &metadata["parameters"]["version"], &v1_metadata["model_spec"]["version"]];
    all.into_iter().map(number).chain([by_bits, of_grpc]).collect()
}

#[test]
fn the_version_labelled_live_answers_who_names_none_by_every_protocol() {
    let dir = tempfile::tempdir().unwrap();
    (1..3).for_each(|seed| put(&dir.path().join(format!("digits/{seed}")), &mlp(seed)));
    let up = up(dir.path());
    assert_eq!(told(&up), [2; 5], "without a label the newest");
    label(dir.path(), &json!({ "live": 1, "canary": 2 }));
    until("version 1 answers", || told(&up) == [1; 5]);
    assert_eq!(up.client().get("/v2/models/digits").json()["versions"], json!(["1", "2"]));
    // A version that nobody labelled answers who names it, and nobody else.
    put(&dir.path().join("digits/3"), &mlp(3));
    until("version 3 is loaded", || up.client().get("/v2/models/digits/versions/3/ready").status == 200);
    assert_eq!(told(&up), [1; 5]);
    std::fs::remove_file(dir.path().join("digits/labels.json")).unwrap();
    until("the newest answers again", || told(&up) == [3; 5]);
}

#[test]
fn openais_model_is_the_version_labelled_live() {
    let dir = tempfile::tempdir().unwrap();
    (1..3).for_each(|seed| put(&dir.path().join(format!("text/{seed}")), &writer(CONTEXT, seed)));
    std::fs::write(dir.path().join("text/labels.json"), r#"{"live": 1}"#).unwrap();
    let up = up(dir.path());
    let said = |model: &str| {
        let ask = json!({ "model": model, "prompt": "Once", "max_tokens": 4, "temperature": 0 });
        let answer = up.client().post("/v1/completions", &ask.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        (answer["system_fingerprint"].clone(), answer["choices"][0]["text"].clone())
    };
    assert_eq!(said("text"), said("text:1"));
    assert_ne!(said("text").0, said("text:2").0, "the fingerprint names the weights");
}

#[test]
fn a_label_that_moves_under_load_costs_no_request_and_one_that_leads_nowhere_is_told() {
    let dir = tempfile::tempdir().unwrap();
    (1..3).for_each(|seed| put(&dir.path().join(format!("digits/{seed}")), &mlp(seed)));
    label(dir.path(), &json!({ "live": 2 }));
    let up = up(dir.path());
    let bits: Vec<Vec<f32>> = (1..3).map(|seed| expected(&mlp(seed), &rows(1, 0))).collect();
    let (over, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut client = up.client();
                while !over.load(SeqCst) {
                    let answer = client.post("/v2/models/digits/infer", &ask());
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let answer = answer.json();
                    let version: usize = answer["model_version"].as_str().unwrap().parse().unwrap();
                    assert_eq!(floats(&answer["outputs"][0]["data"]), bits[version - 1], "version {version}");
                    answered.fetch_add(1, SeqCst);
                }
            });
        }
        for live in [1, 2, 1] {
            let before = answered.load(SeqCst);
            until("requests are answered", || answered.load(SeqCst) > before + 20);
            label(dir.path(), &json!({ "live": live }));
            until("the default has moved", || told(&up) == [live; 5]);
        }
        over.store(true, SeqCst);
    });
    label(dir.path(), &json!({ "live": 7 }));
    let reasons = || {
        let index = up.client().post("/v2/repository/index", "").json();
        let rows = index.as_array().unwrap().iter().filter_map(|row| row["reason"].as_str().map(str::to_string));
        rows.filter(|reason| !reason.is_empty()).collect::<Vec<_>>()
    };
    let says = "label 'live' names version 7, which is not there; version 1 goes on answering";
    until("it is told", || reasons() == [says]);
    assert_eq!((told(&up), up.client().get(LIVE).status), (vec![1; 5], 200));
    assert_eq!(up.client().get("/v2/health/ready").status, 200);
}
