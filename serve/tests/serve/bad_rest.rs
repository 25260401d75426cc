//! Bad requests over REST: each is refused with the right status and its cause, and the server answers the next one.

use crate::client::{Answer, Client};
use crate::models::{cnn, gpt, mlp, put, rows};
use crate::up::Up;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

struct Case<'a> {
    name: &'a str,
    path: &'a str,
    headers: Vec<(&'a str, String)>,
    body: Vec<u8>,
    status: u16,
    why: &'a str,
}

fn post<'a>(name: &'a str, path: &'a str, body: impl Into<Vec<u8>>, status: u16, why: &'a str) -> Case<'a> {
    Case { name, path, headers: vec![], body: body.into(), status, why }
}

fn with<'a>(mut case: Case<'a>, header: &'a str, value: impl ToString) -> Case<'a> {
    case.headers.push((header, value.to_string()));
    case
}

fn registry(dir: &Path) -> Up {
    put(&dir.join("digits/1"), &mlp(0));
    put(&dir.join("images/1"), &cnn(0));
    put(&dir.join("text/1"), &gpt(0));
    put(&dir.join("broken/1"), &mlp(1));
    let weights = dir.join("broken/1/weights.safetensors");
    let mut bytes = std::fs::read(&weights).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(weights, bytes).unwrap();
    Up::new(dir)
}

const DIGITS: &str = "/v2/models/digits/infer";
const PREDICT: &str = "/v1/models/digits:predict";

/// A good request for one row, with one input's key changed; null takes it out.
fn input(key: &str, value: Value) -> String {
    let mut input = json!({ "name": "input", "shape": [1, 64], "datatype": "FP32", "data": rows(1, 0)[0] });
    match value {
        Value::Null => drop(input.as_object_mut().unwrap().remove(key)),
        value => input[key] = value,
    }
    json!({ "inputs": [input] }).to_string()
}

fn output(output: Value) -> String {
    let mut ask: Value = serde_json::from_str(&input("name", json!("input"))).unwrap();
    ask["outputs"] = json!([output]);
    ask.to_string()
}

fn binary(size: usize, bytes: usize) -> (String, Vec<u8>) {
    let ask = json!({ "inputs": [{ "name": "input", "shape": [1, 64], "datatype": "FP32", "parameters": { "binary_data_size": size } }] });
    let ask = ask.to_string();
    let body = [ask.as_bytes(), &vec![0; bytes]].concat();
    (ask.len().to_string(), body)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn malformed() -> Vec<Case<'static>> {
    let deep = |n: usize| format!("{{\"x\":{}{}}}", "[".repeat(n), "]".repeat(n));
    let good = input("name", json!("input"));
    vec![
        post("nothing at all", DIGITS, "", 400, "expected a value"),
        post("no JSON", DIGITS, "hello", 400, "line 1, column 1"),
        post("half of it", DIGITS, &good.as_bytes()[..good.len() / 2], 400, "malformed JSON"),
        post("text behind it", DIGITS, format!("{good}x"), 400, "expected the end"),
        post("a comma too many", DIGITS, r#"{"inputs":[],}"#, 400, "after ','"),
        post("no quotes", DIGITS, "{inputs:[]}", 400, "a key in double quotes"),
        post(
            "NaN in v2",
            DIGITS,
            good.replacen("[0.0", "[NaN", 1).replacen("\"data\":[", "\"data\":[NaN,", 1),
            400,
            "malformed JSON",
        ),
        post("half a surrogate pair", DIGITS, r#"{"id":"\ud800"}"#, 400, "surrogate"),
        post("no UTF-8", DIGITS, b"{\"id\":\"\xff\"}".to_vec(), 400, "UTF-8"),
        post("a control character", DIGITS, b"{\"id\":\"\x01\"}".to_vec(), 400, "control character"),
        post("a key twice", DIGITS, r#"{"id":"1","id":"2"}"#, 400, "stands twice"),
        post("101 deep", DIGITS, deep(100), 400, "more than 100"),
        post("a million lists deep", DIGITS, deep(1_000_000), 400, "more than 100"),
        post("a list", DIGITS, "[]", 400, "must be an object, not a list"),
        post("a huge id", DIGITS, json!({ "id": "x".repeat(10_000) }).to_string(), 400, "longer than 256"),
        post("many inputs", DIGITS, json!({ "inputs": vec![json!({}); 100] }).to_string(), 400, "more than 64"),
    ]
}

fn wrong_tensors() -> Vec<Case<'static>> {
    vec![
        post("no inputs", DIGITS, "{}", 400, "the model takes one input, 'input'; the request has 0"),
        post("two inputs", DIGITS, r#"{"inputs":[{},{}]}"#, 400, "the request has 2"),
        post("an input's name", DIGITS, input("name", json!("x")), 400, "unknown input 'x'"),
        post("no name", DIGITS, input("name", Value::Null), 400, "no 'name'"),
        post("no shape", DIGITS, input("shape", Value::Null), 400, "no 'shape'"),
        post("no datatype", DIGITS, input("datatype", Value::Null), 400, "no 'datatype'"),
        post("no data", DIGITS, input("data", Value::Null), 400, "no 'data'"),
        post("an unknown type", DIGITS, input("datatype", json!("FLOAT")), 400, "no datatype 'FLOAT'"),
        post("another type", DIGITS, input("datatype", json!("INT64")), 400, "the model takes FP32"),
        post("too many features", DIGITS, input("shape", json!([1, 65])), 400, "the model takes [-1, 64]"),
        post("no rows", DIGITS, input("shape", json!([0, 64])), 400, "1 to 1048576 rows"),
        post("a negative shape", DIGITS, input("shape", json!([-1, 64])), 400, "below 0"),
        post("a shape that overflows", DIGITS, input("shape", json!([i64::MAX, 64])), 400, "rows are taken"),
        post("a shape of text", DIGITS, input("shape", json!(["1", 64])), 400, "must be a number"),
        post(
            "a shape of ten sides",
            DIGITS,
            input("shape", json!([1, 1, 1, 1, 1, 1, 1, 1, 1, 64])),
            400,
            "more than 8",
        ),
        post("too few numbers", DIGITS, input("data", json!([1, 2])), 400, "has 2 numbers, its shape has 64"),
        post("ragged lists", DIGITS, input("data", json!([[1, 2], [3]])), 400, "ragged"),
        post("numbers beside lists", DIGITS, input("data", json!([1, [2]])), 400, "side by side"),
        post("texts for numbers", DIGITS, input("data", json!(["1"])), 400, "not a string"),
        post("null for a number", DIGITS, input("data", json!([null])), 400, "not null"),
        post("too large a number", DIGITS, input("data", json!([1e300])), 400, "does not fit into FP32"),
        post("an unknown output", DIGITS, output(json!({ "name": "y" })), 400, "the model has no output 'y'"),
        post("no output's name", DIGITS, output(json!({})), 400, "no 'name'"),
        post(
            "classes of a class",
            DIGITS,
            output(json!({ "name": "class", "parameters": { "classification": 2 } })),
            400,
            "cannot be classified",
        ),
        post(
            "shared memory",
            DIGITS,
            output(json!({ "name": "class", "parameters": { "shared_memory_region": "x" } })),
            501,
            "shared memory",
        ),
        post(
            "a token that is not there",
            "/v2/models/text/infer",
            r#"{"inputs":[{"name":"tokens","shape":[1,2],"datatype":"INT32","data":[1,256]}]}"#,
            400,
            "token 256 in row 0, place 1",
        ),
        post(
            "too many tokens",
            "/v2/models/text/infer",
            r#"{"inputs":[{"name":"tokens","shape":[1,13],"datatype":"INT32","data":[1]}]}"#,
            400,
            "1 to 12 tokens",
        ),
        post(
            "half a token",
            "/v2/models/text/infer",
            r#"{"inputs":[{"name":"tokens","shape":[1,1],"datatype":"INT32","data":[1.5]}]}"#,
            400,
            "whole number",
        ),
        post(
            "not an image",
            "/v2/models/images/infer",
            r#"{"inputs":[{"name":"input","shape":[1,3,8,8],"datatype":"FP32","data":[1]}]}"#,
            400,
            "[-1, 1, 8, 8]",
        ),
    ]
}

fn wrong_bytes() -> Vec<Case<'static>> {
    let json_len = "inference-header-content-length";
    let case = |name, size, bytes, why| {
        let (len, body) = binary(size, bytes);
        with(post(name, DIGITS, body, 400, why), json_len, len)
    };
    let raw = |name, bytes: usize, why| with(post(name, DIGITS, vec![0; bytes], 400, why), json_len, "0");
    vec![
        case("a truncated tensor", 256, 255, "255 bytes stand behind the JSON"),
        case("a tensor of another size", 252, 252, "has 252 bytes, its shape and datatype FP32 need 256"),
        case("bytes to spare", 256, 260, "4 bytes behind the JSON belong to no tensor"),
        raw("raw bytes that are no rows", 255, "no whole number of rows"),
        raw("no raw bytes", 0, "no whole number of rows"),
        with(post("a JSON longer than the body", DIGITS, "{}", 400, "but the body has 2 bytes"), json_len, "3"),
        with(post("a length that is none", DIGITS, "{}", 400, "whole number of bytes"), json_len, "-1"),
    ]
}

fn wrong_places() -> Vec<Case<'static>> {
    let good = input("name", json!("input"));
    vec![
        post("an unknown model", "/v2/models/x/infer", good.clone(), 404, "unknown model 'x'"),
        post("an unknown version", "/v2/models/digits/versions/9/infer", good.clone(), 404, "unknown version 9"),
        post(
            "a version that is no number",
            "/v2/models/digits/versions/new/infer",
            good.clone(),
            400,
            "not a whole number",
        ),
        post("a model that is damaged", "/v2/models/broken/infer", good.clone(), 503, "is damaged"),
        post("an unknown path", "/v2/models/digits/dance", good.clone(), 404, "nothing is served at"),
        post("a path that is no text", "/v2/models/%ff/infer", good.clone(), 400, "percent-encoded"),
        post("an unknown model to load", "/v2/repository/models/x/load", "", 404, "no model 'x'"),
        post("a model that cannot be loaded", "/v2/repository/models/broken/load", "", 400, "is damaged"),
        post(
            "a configuration to load",
            "/v2/repository/models/digits/load",
            r#"{"parameters":{"config":"{}"}}"#,
            501,
            "over the wire",
        ),
        post(
            "an unknown model of v1",
            "/v1/models/half:predict",
            "{}",
            404,
            "Servable not found for request: Latest(half)",
        ),
        post(
            "an unknown label",
            "/v1/models/digits/labels/x:predict",
            "{}",
            404,
            "Unrecognized servable version label: x",
        ),
    ]
}

fn wrong_v1() -> Vec<Case<'static>> {
    let case = |name, body: &str, why| post(name, PREDICT, body, 400, why);
    vec![
        case("neither key", "{}", "Missing 'inputs' or 'instances' key"),
        case("both keys", r#"{"instances":[],"inputs":[]}"#, "expecting only one of"),
        case("an object of instances", r#"{"instances":{}}"#, "Expecting 'instances' to be an list/array"),
        case("no instances", r#"{"instances":[]}"#, "No values in 'instances' array"),
        case("objects and lists", r#"{"instances":[{"input":[1]},[1]]}"#, "Expecting object but got list at item 1"),
        case("another key", r#"{"instances":[{"x":[1]}]}"#, "keys must be equal to: input"),
        case("ragged instances", r#"{"instances":[[1],[1,2]]}"#, "Expecting tensor size"),
        case("another signature", r#"{"signature_name":"x","instances":[[1]]}"#, "signature name"),
        case("bytes in base64", r#"{"instances":[{"b64":"AA=="}]}"#, "keys must be equal to: input"),
        case("NaN as a feature", &format!("{{\"instances\":[[NaN{}]]}}", ",0".repeat(63)), "is not finite"),
        post("regression", "/v1/models/digits:regress", "{}", 400, "regression signature"),
        post("an explanation", "/v1/models/digits:explain", "{}", 501, "no explainer"),
        post("classes of tokens", "/v1/models/text:classify", "{}", 400, "classification signature"),
        post("classes without examples", "/v1/models/digits:classify", "{}", 400, "'examples' is expected"),
    ]
}

fn wrong_bodies() -> Vec<Case<'static>> {
    let good = input("name", json!("input"));
    let packed =
        |name, body: Vec<u8>, status, why| with(post(name, DIGITS, body, status, why), "content-encoding", "gzip");
    vec![
        packed("a gzip bomb", gzip(&vec![b' '; (64 << 20) + 1]), 413, "that was unpacked"),
        packed("no gzip", b"hello".to_vec(), 400, "cannot be unpacked"),
        packed("half a gzip", gzip(good.as_bytes())[..40].to_vec(), 400, "cannot be unpacked"),
        with(post("another packing", DIGITS, "x", 415, "gzip, deflate or none"), "content-encoding", "br"),
        with(
            post("a deadline that is none", DIGITS, good.clone(), 400, "Request-Timeout-Ms"),
            "request-timeout-ms",
            "soon",
        ),
        with(post("65 MiB announced", DIGITS, "", 413, "is more than 67108864"), "content-length", 65 << 20),
    ]
}

#[test]
fn eighty_bad_requests_are_refused_each_with_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let cases: Vec<Case> = [malformed(), wrong_tensors(), wrong_bytes(), wrong_places(), wrong_v1(), wrong_bodies()]
        .into_iter()
        .flatten()
        .collect();
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for Case { name, path, headers, body, status, why } in &cases {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = up.client().ask("POST", path, &headers, body);
        if answer.status != *status || !answer.error().contains(why) {
            wrong.push(format!("{name}: expected {status} \"{why}\", got {} {}", answer.status, answer.text()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let good = up.client().post(DIGITS, &input("name", json!("input")));
    assert_eq!(good.status, 200, "{}", good.text());
}

#[test]
fn a_body_without_a_length_is_read_up_to_the_bound() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let mut client = up.client();
    client.send(format!("POST {DIGITS} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes());
    let chunk = [b"100000\r\n", vec![b' '; 1 << 20].as_slice(), b"\r\n"].concat();
    (0..64).for_each(|_| client.send(&chunk));
    client.send(b"1\r\n \r\n");
    let answer = client.read().unwrap();
    assert_eq!(answer.status, 413, "{}", answer.text());
    assert!(answer.error().contains("without a length is more than 67108864 bytes"), "{}", answer.text());
    let good = up.client().post(DIGITS, &input("name", json!("input")));
    assert_eq!(good.status, 200, "{}", good.text());
}

#[test]
fn a_wrong_method_is_told_which_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let answer = up.client().get(DIGITS);
    assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")));
    assert_eq!(up.client().ask("DELETE", "/v2/models/digits", &[], b"").status, 405);
}

/// What is no HTTP, or too much of it, ends its own connection alone.
#[test]
fn what_is_no_http_ends_its_own_connection() {
    let dir = tempfile::tempdir().unwrap();
    let up = registry(dir.path());
    let send = |bytes: &[u8]| -> Option<Answer> {
        let mut client: Client = up.client();
        client.send(bytes);
        client.read().ok()
    };
    let status = |answer: Option<Answer>| answer.map(|answer| answer.status);
    assert_eq!(status(send(b"\x16\x03\x01\x00\xa5 no HTTP\r\n\r\n")), Some(400));
    assert_eq!(status(send(b"GET /v2 HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n")), Some(400));
    let huge = format!("GET /v2 HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    assert_eq!(status(send(huge.as_bytes())), Some(431));
    let many: String = (0..100).map(|i| format!("x{i}: y\r\n")).collect();
    assert_eq!(status(send(format!("GET /v2 HTTP/1.1\r\nhost: x\r\n{many}\r\n").as_bytes())), Some(431));
    // A body that ends before its length: the client is gone, nobody is answered.
    up.client().send(b"POST /v2/models/digits/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n{");
    assert_eq!(up.client().get("/v2/health/live").status, 200);
}
