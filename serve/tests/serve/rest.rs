//! The open inference protocol over REST: the answers are the bundle's bits, as JSON and as bytes.

use crate::models::{CLASSES, CONTEXT, cnn, expected, gpt, mlp, put, rows};
use crate::up::Up;
use elastic_bundle::{Predictor, class_of};
use serde_json::{Value, json};

pub fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|n| n.as_f64().unwrap() as f32).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn json_answers_are_the_bundles_bits_at_every_batch_size() {
    let dir = tempfile::tempdir().unwrap();
    let (model, bundle) = (mlp(0), dir.path().join("b"));
    put(&bundle, &model);
    let up = Up::new(&bundle);
    let mut client = up.client();
    for count in [1, 2, 5, 63, 64, 65, 200] {
        let rows = rows(count, count);
        let ask = json!({ "id": "7", "inputs": [{ "name": "input", "shape": [count, 64], "datatype": "FP32", "data": rows }] });
        let answer = client.post("/v2/models/digits/infer", &ask.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        let answer = answer.json();
        let logits = expected(&model, &rows);
        assert_eq!(answer["id"], "7");
        assert_eq!((&answer["model_name"], &answer["model_version"]), (&json!("digits"), &json!("1")));
        assert_eq!(answer["outputs"][0]["shape"], json!([count, CLASSES]));
        assert_eq!(bits(&floats(&answer["outputs"][0]["data"])), bits(&logits), "{count} rows");
        let classes: Vec<usize> = logits.chunks(CLASSES).map(class_of).collect();
        assert_eq!(answer["outputs"][2]["data"], json!(classes));
        let labels: Vec<String> = classes.iter().map(|class| format!("digit {class}")).collect();
        assert_eq!(answer["outputs"][3]["data"], json!(labels));
    }
}

#[test]
fn tensors_go_as_bytes_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let (model, bundle) = (cnn(0), dir.path().join("b"));
    put(&bundle, &model);
    let up = Up::new(&bundle);
    let rows = rows(3, 1);
    let bytes: Vec<u8> = rows.concat().iter().flat_map(|v| v.to_le_bytes()).collect();
    let ask = json!({
        "inputs": [{ "name": "input", "shape": [3, 1, 8, 8], "datatype": "FP32", "parameters": { "binary_data_size": bytes.len() } }],
        "outputs": [{ "name": "class" }, { "name": "logits", "parameters": { "binary_data": true } }],
    })
    .to_string();
    let length = ask.len().to_string();
    let body = [ask.as_bytes(), &bytes].concat();
    let headers = [("inference-header-content-length", length.as_str())];
    let answer = up.client().ask("POST", "/v2/models/images/infer", &headers, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let json_len: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (json, binary) = answer.body.split_at(json_len);
    let json: Value = serde_json::from_slice(json).unwrap();
    assert_eq!(json["outputs"][1]["parameters"]["binary_data_size"], 3 * CLASSES * 4);
    assert!(json["outputs"][0]["data"].is_array());
    let logits: Vec<u8> = expected(&model, &rows).iter().flat_map(|v| v.to_le_bytes()).collect();
    assert_eq!(binary, logits);

    let raw = up.client().ask("POST", "/v2/models/images/infer", &[("inference-header-content-length", "0")], &bytes);
    assert_eq!(raw.status, 200, "{}", raw.text());
    let json_len: usize = raw.header("inference-header-content-length").unwrap().parse().unwrap();
    assert_eq!(&raw.body[json_len..json_len + logits.len()], logits);
}

#[test]
fn tokens_have_logits_at_each_place_whatever_the_length() {
    let dir = tempfile::tempdir().unwrap();
    let (model, bundle) = (gpt(0), dir.path().join("b"));
    put(&bundle, &model);
    let up = Up::new(&bundle);
    let mut predictor = Predictor::new(&model, 1).unwrap();
    for length in [1, 5, CONTEXT] {
        let tokens: Vec<i32> = (0..length as i32).map(|i| i * 17 % 256).collect();
        let ask =
            json!({ "inputs": [{ "name": "tokens", "shape": [1, length], "datatype": "INT64", "data": tokens }] });
        let answer = up.client().post("/v2/models/text/infer", &ask.to_string());
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.json()["outputs"][0]["shape"], json!([1, length, 256]));
        let logits = predictor.sequence_logits(&tokens);
        assert_eq!(bits(&floats(&answer.json()["outputs"][0]["data"])), bits(&logits));
    }
}

#[test]
fn metadata_health_configuration_statistics_and_index_are_told() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("digits/3"), &mlp(0));
    let up = Up::new(dir.path());
    let mut client = up.client();
    assert_eq!(client.get("/v2/health/live").json(), json!({ "live": true }));
    assert_eq!(client.get("/v2/health/ready").json(), json!({ "live": true, "ready": true }));
    assert_eq!(client.get("/v2").json()["name"], "elastic");
    assert_eq!(client.get("/v2/models").json(), json!({ "models": ["digits"] }));
    let meta = client.get("/v2/models/digits/versions/3").json();
    assert_eq!(meta["versions"], json!(["3"]));
    assert_eq!(meta["inputs"], json!([{ "name": "input", "datatype": "FP32", "shape": [-1, 64] }]));
    assert_eq!(meta["outputs"][3], json!({ "name": "label", "datatype": "BYTES", "shape": [-1] }));
    assert_eq!(client.get("/v2/models/digits/ready").json(), json!({ "name": "digits", "ready": true }));
    assert_eq!(client.get("/v2/models/digits/config").json()["max_batch_size"], 64);
    let ask = json!({ "inputs": [{ "name": "input", "shape": [2, 64], "datatype": "FP32", "data": rows(2, 0) }] });
    assert_eq!(client.post("/v2/models/digits/infer", &ask.to_string()).status, 200);
    let stats = client.get("/v2/models/digits/stats").json();
    let stats = &stats["model_stats"][0];
    assert_eq!((&stats["inference_count"], &stats["execution_count"]), (&json!(2), &json!(1)));
    assert_eq!(stats["inference_stats"]["success"]["count"], 1);
    assert_eq!(stats["batch_stats"][0]["batch_size"], 2);
    let index = client.post("/v2/repository/index", r#"{"ready":true}"#).json();
    assert_eq!(index, json!([{ "name": "digits", "version": "3", "state": "READY", "reason": "" }]));
    let metrics = client.get("/metrics").text();
    assert!(metrics.contains(r#"nv_inference_request_success{model="digits",version="3"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"nv_inference_count{model="digits",version="3"} 2"#), "{metrics}");
    assert!(up.ended());
}

#[test]
fn a_model_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    put(&dir.path().join("b"), &mlp(0));
    let up = Up::new(&dir.path().join("b"));
    assert!(up.shared.index().iter().all(|row| row.name == "digits"));
    assert_ne!(up.http, up.grpc);
    let answer = up.client().post("/v2/models/letters/infer", "{}");
    assert_eq!((answer.status, answer.error().as_str()), (404, "unknown model 'letters'"));
}
