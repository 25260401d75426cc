//! Requests as clients send them, and anything else: read or refused, never a panic.

use super::*;
use crate::model::Takes;
use proptest::prelude::*;

fn face() -> Face {
    let takes = Takes::Features { shape: vec![2], classes: 3 };
    Face { takes, labels: vec!["a".into(), "b".into(), "c".into()], content: String::new(), created_s: 0 }
}

fn text_face() -> Face {
    let takes = Takes::Tokens { vocab: 10, context: 4 };
    Face { takes, labels: vec![], content: String::new(), created_s: 0 }
}

fn ask(json: &str, binary: &[u8]) -> Result<Ask, String> {
    read(&face(), json.as_bytes(), binary).map_err(|refusal| refusal.to_string())
}

fn features(values: &[f32]) -> Rows {
    Rows::Features { count: values.len() / 2, values: values.to_vec() }
}

#[test]
fn numbers_come_nested_flat_or_as_bytes() {
    for data in ["[[1,2],[3,4]]", "[1,2,3,4]"] {
        let json = format!(r#"{{"inputs":[{{"name":"input","shape":[2,2],"datatype":"FP32","data":{data}}}]}}"#);
        assert_eq!(ask(&json, b"").unwrap().rows, features(&[1.0, 2.0, 3.0, 4.0]));
    }
    let json = r#"{"inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}]}"#;
    assert_eq!(ask(json, &[0, 0, 128, 63, 0, 0, 0, 64]).unwrap().rows, features(&[1.0, 2.0]));
}

#[test]
fn keys_come_in_any_order() {
    let json = r#"{"outputs":[{"name":"class"}],"inputs":[{"data":[5,6],"datatype":"FP32","name":"input","shape":[1,2]}],
        "parameters":{"timeout":5000,"priority":1},"id":"x"}"#;
    let ask = ask(json, b"").unwrap();
    assert_eq!((ask.id.as_deref(), ask.timeout), (Some("x"), Some(Duration::from_millis(5))));
    assert_eq!(ask.rows, features(&[5.0, 6.0]));
    assert_eq!(ask.wanted.iter().map(|w| w.output.name()).collect::<Vec<_>>(), ["class"]);
}

#[test]
fn who_names_no_output_gets_all_and_binary_may_be_said_once() {
    let input = r#""inputs":[{"name":"input","shape":[1,2],"datatype":"FP32","data":[5,6]}]"#;
    let all = ask(&format!(r#"{{{input},"parameters":{{"binary_data_output":true}}}}"#), b"").unwrap();
    assert_eq!(all.wanted.len(), 4);
    assert!(all.wanted.iter().all(|w| w.binary));
    let one = r#""outputs":[{"name":"logits","parameters":{"binary_data":false,"classification":2}}]"#;
    let ask = ask(&format!(r#"{{{input},"parameters":{{"binary_data_output":true}},{one}}}"#), b"").unwrap();
    assert!(!ask.wanted[0].binary && ask.wanted[0].largest == Some(2));
}

#[test]
fn a_raw_request_is_the_bytes_of_the_one_input() {
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    let ask = read_raw(&face(), &bytes).unwrap();
    assert_eq!(ask.rows, features(&[1.0, 2.0, 3.0, 4.0]));
    assert!(ask.wanted.iter().all(|w| w.binary));
    assert!(read_raw(&face(), &bytes[..15]).is_err());
    assert!(read_raw(&face(), b"").is_err());
}

#[test]
fn tokens_come_as_32_or_64_bits() {
    for datatype in ["INT32", "INT64"] {
        let json =
            format!(r#"{{"inputs":[{{"name":"tokens","shape":[1,3],"datatype":"{datatype}","data":[[1,2,3]]}}]}}"#);
        let ask = read(&text_face(), json.as_bytes(), b"").unwrap();
        assert_eq!(ask.rows, Rows::Tokens { count: 1, length: 3, ids: vec![1, 2, 3] });
    }
}

#[test]
fn what_is_wrong_is_said() {
    let input = |rest: &str| format!(r#"{{"inputs":[{{"name":"input",{rest}}}]}}"#);
    for (json, why) in [
        ("".to_string(), "expected a value"),
        ("[]".into(), "the request must be an object, not a list"),
        ("{}".into(), "the request has 0"),
        (r#"{"inputs":{}}"#.into(), "'inputs' must be a list, not an object"),
        (r#"{"inputs":[{"shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#.into(), "has no 'name'"),
        (r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#.into(), "unknown input 'x'"),
        (input(r#""shape":[1,2],"data":[1,2]"#), "no 'datatype'"),
        (input(r#""datatype":"FP32","data":[1,2]"#), "no 'shape'"),
        (input(r#""datatype":"FP32","shape":[1,2]"#), "no 'data'"),
        (input(r#""datatype":"FP33","shape":[1,2],"data":[1,2]"#), "no datatype 'FP33'"),
        (input(r#""datatype":"FP64","shape":[1,2],"data":[1,2]"#), "has datatype FP64, the model takes FP32"),
        (input(r#""datatype":"FP32","shape":[1,3],"data":[1,2,3]"#), "the model takes [-1, 2]"),
        (input(r#""datatype":"FP32","shape":[2,2],"data":[1,2,3]"#), "has 3 numbers, its shape has 4"),
        (input(r#""datatype":"FP32","shape":[2,2],"data":[[1,2,3,4]]"#), "data of shape [1, 4]"),
        (input(r#""datatype":"FP32","shape":[1,2],"data":["1",2]"#), "must be a number, not a string"),
        (input(r#""datatype":"FP32","shape":[1,2],"data":[1,1e40]"#), "1e40 does not fit into FP32"),
        (input(r#""datatype":"FP32","shape":[1,2],"data":[1,2],"parameters":{"binary_data_size":8}"#), "both"),
        (input(r#""datatype":"FP32","shape":[1,2],"parameters":{"binary_data_size":8}"#), "0 bytes stand behind"),
        (input(r#""datatype":"FP32","shape":[1,2.5],"data":[1,2]"#), "a dimension must be a whole number"),
        (input(r#""datatype":"FP32","shape":[1,2],"parameters":{"shared_memory_region":"x"}"#), "shared memory"),
    ] {
        let error = ask(&json, b"").unwrap_err();
        assert!(error.contains(why), "{json}: {error}");
    }
    let good = input(r#""datatype":"FP32","shape":[1,2],"data":[1,2]"#);
    assert!(ask(&good, b"spare").unwrap_err().contains("5 bytes behind the JSON"));
    let output = good.replace("}]}", r#"}],"outputs":[{"name":"y"}]}"#);
    assert!(ask(&output, b"").unwrap_err().contains("the model has no output 'y'"));
}

/// Pieces of requests, put together at random: most are wrong in one place or another.
fn near_request() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"inputs\"",
        "\"outputs\"",
        "\"name\"",
        "\"input\"",
        "\"shape\"",
        "\"datatype\"",
        "\"FP32\"",
        "\"data\"",
        "\"parameters\"",
        "\"binary_data_size\"",
        "1",
        "2",
        "-1",
        "1e9",
        "null",
        "true",
        "[1,2]",
        "\"id\"",
        "9223372036854775807",
        "{\"inputs\":[{\"name\":\"input\",",
    ]);
    prop::collection::vec(piece, 0..30).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn any_request_is_read_or_refused(json in near_request(), binary in prop::collection::vec(any::<u8>(), 0..20)) {
        let _ = read(&face(), json.as_bytes(), &binary);
        let _ = read(&text_face(), json.as_bytes(), &binary);
        let _ = read_raw(&face(), &binary);
        let _ = read_raw(&text_face(), &binary);
    }

    #[test]
    fn a_request_of_any_rows_is_read_with_their_bits(rows in prop::collection::vec(any::<(f32, f32)>(), 1..20), nested: bool) {
        let finite = |f: f32| if f.is_finite() { f } else { 0.5 };
        let rows: Vec<[f32; 2]> = rows.into_iter().map(|(a, b)| [finite(a), finite(b)]).collect();
        let flat: Vec<f32> = rows.concat();
        let data = if nested { serde_json::to_string(&rows) } else { serde_json::to_string(&flat) }.unwrap();
        let count = rows.len();
        let json = format!(r#"{{"inputs":[{{"name":"input","shape":[{count},2],"datatype":"FP32","data":{data}}}]}}"#);
        prop_assert_eq!(ask(&json, b"").unwrap().rows, features(&flat));
    }
}
