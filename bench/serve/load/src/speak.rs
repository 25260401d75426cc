//! Requests as bytes, and answers read: HTTP/1.1 with lengths, which is what all servers here answer with.

use crate::plan::{Plan, Way};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

pub fn request(plan: &Plan, row: &[f32]) -> Result<Vec<u8>> {
    let shape = [1, row.len()];
    let (json, bytes) = match plan.way {
        Way::Plain => (json!({ "inputs": [row] }), Vec::new()),
        Way::V2 => {
            let input = json!({ "name": "input", "shape": shape, "datatype": "FP32", "data": row });
            (json!({ "inputs": [input], "outputs": [{ "name": "logits" }] }), Vec::new())
        }
        Way::V2Binary => {
            let parameters = json!({ "binary_data_size": row.len() * 4 });
            let input = json!({ "name": "input", "shape": shape, "datatype": "FP32", "parameters": parameters });
            let output = json!({ "name": "logits", "parameters": { "binary_data": true } });
            let bytes = row.iter().flat_map(|x| x.to_le_bytes()).collect();
            (json!({ "inputs": [input], "outputs": [output] }), bytes)
        }
    };
    let json = serde_json::to_vec(&json).context("write a request")?;
    let (kind, length) = match plan.way {
        Way::V2Binary => ("application/octet-stream", format!("Inference-Header-Content-Length: {}\r\n", json.len())),
        _ => ("application/json", String::new()),
    };
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: {kind}\r\n{length}Content-Length: {}\r\n\r\n",
        plan.path,
        plan.address,
        json.len() + bytes.len()
    );
    Ok([head.into_bytes(), json, bytes].concat())
}

/// An answer within a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    pub head: usize,
    /// Of the whole answer.
    pub length: usize,
    pub closes: bool,
}

/// None while its end has not come.
pub fn answer(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4) else { return Ok(None) };
    let text = std::str::from_utf8(&bytes[..head]).context("a head is text")?;
    let status = text.get(9..12).and_then(|code| code.parse().ok()).ok_or_else(|| anyhow!("no status in {text:?}"))?;
    let length: usize = header(text, "content-length").ok_or_else(|| anyhow!("no length in {text:?}"))?.parse()?;
    let closes = header(text, "connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
    let length = head + length;
    Ok((bytes.len() >= length).then_some(Answer { status, head, length, closes }))
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.split("\r\n").filter_map(|line| line.split_once(':'));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// The logits of an answer that is whole.
pub fn logits(way: Way, head: &[u8], body: &[u8]) -> Result<Vec<f32>> {
    let head = std::str::from_utf8(head).context("a head is text")?;
    let split = match header(head, "inference-header-content-length") {
        Some(length) => length.parse()?,
        None => body.len(),
    };
    ensure!(split <= body.len(), "{split} bytes of JSON in {}", body.len());
    let (text, bytes) = body.split_at(split);
    let json: Value = serde_json::from_slice(text).context("read an answer")?;
    let mut numbers = Vec::new();
    match way {
        Way::Plain => flat(&json["outputs"], &mut numbers)?,
        Way::V2 => {
            let outputs = json["outputs"].as_array().context("outputs")?;
            let output = outputs.iter().find(|output| output["name"] == "logits").context("logits")?;
            flat(&output["data"], &mut numbers)?;
        }
        // Nothing else was asked for.
        Way::V2Binary => numbers.extend(
            bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().expect("four bytes are four"))),
        ),
    }
    Ok(numbers)
}

fn flat(value: &Value, out: &mut Vec<f32>) -> Result<()> {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| flat(value, out)),
        Value::Number(number) => {
            out.push(number.as_f64().context("a number")? as f32);
            Ok(())
        }
        other => bail!("{other} among the numbers"),
    }
}

/// Are the numbers those that were expected, up to a share of the largest?
pub fn agree(found: &[f32], expected: &[f32], tolerance: f32) -> bool {
    let largest = expected.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= tolerance * largest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_when_all_of_it_is_there() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 18\r\nConnection: close\r\n\r\n{\"outputs\":[[1,2]]";
        assert_eq!(answer(&text[..30]).unwrap(), None);
        assert_eq!(answer(&text[..text.len() - 1]).unwrap(), None);
        let found = answer(text).unwrap().unwrap();
        assert_eq!((found.status, found.length, found.closes), (200, text.len(), true));
        assert!(answer(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn numbers_are_found_in_every_way_of_writing_them() {
        let plain = logits(Way::Plain, b"", b"{\"outputs\":[[1,2.5]]}").unwrap();
        let v2 = br#"{"outputs":[{"name":"class","data":[7]},{"name":"logits","data":[1.0,2.5]}]}"#;
        assert_eq!(logits(Way::V2, b"", v2).unwrap(), plain);
        let bytes = [b"{}".as_slice(), &1f32.to_le_bytes(), &2.5f32.to_le_bytes()].concat();
        let head = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 2\r\n\r\n";
        assert_eq!(logits(Way::V2Binary, head, &bytes).unwrap(), plain);
        assert!(logits(Way::V2, b"", b"{\"error\":\"x\"}").is_err());
    }

    #[test]
    fn numbers_agree_up_to_a_share_of_the_largest() {
        assert!(agree(&[1.0, 100.0], &[1.005, 100.0], 1e-4));
        assert!(!agree(&[1.0, 100.0], &[1.02, 100.0], 1e-4));
        assert!(!agree(&[1.0], &[1.0, 2.0], 1.0));
        assert!(!agree(&[f32::NAN], &[1.0], 1.0));
    }
}
