//! An answer of the open inference protocol: JSON, with tensors as bytes behind it where that was asked for.

use crate::json::{write_float, write_int, write_text};
use crate::outputs::{Given, Values};

/// An answer's body; `json_len` where bytes stand behind the JSON.
#[derive(Debug)]
pub struct Written {
    pub body: Vec<u8>,
    pub json_len: Option<usize>,
}

/// Each output with whether it goes as bytes.
pub fn write(name: &str, version: u64, id: Option<&str>, outputs: &[(Given, bool)]) -> Written {
    let size = |(given, binary): &(Given, bool)| given.byte_len() * if *binary { 1 } else { 3 } + 128;
    let mut out = Vec::with_capacity(128 + outputs.iter().map(size).sum::<usize>());
    out.push(b'{');
    if let Some(id) = id {
        out.extend_from_slice(b"\"id\":");
        write_text(&mut out, id);
        out.push(b',');
    }
    out.extend_from_slice(b"\"model_name\":");
    write_text(&mut out, name);
    out.extend_from_slice(b",\"model_version\":\"");
    write_int(&mut out, version as i64);
    out.extend_from_slice(b"\",\"outputs\":[");
    for (at, (given, binary)) in outputs.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        output(&mut out, given, *binary);
    }
    out.extend_from_slice(b"]}");
    let any_binary = outputs.iter().any(|(_, binary)| *binary);
    let json_len = any_binary.then_some(out.len());
    outputs.iter().filter(|(_, binary)| *binary).for_each(|(given, _)| given.bytes(&mut out));
    Written { body: out, json_len }
}

fn output(out: &mut Vec<u8>, given: &Given, binary: bool) {
    out.extend_from_slice(b"{\"name\":\"");
    out.extend_from_slice(given.name.as_bytes());
    out.extend_from_slice(b"\",\"datatype\":\"");
    out.extend_from_slice(given.datatype.name().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    list(out, &given.shape, |out, n| write_int(out, *n as i64));
    if binary {
        out.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        write_int(out, given.byte_len() as i64);
        out.extend_from_slice(b"}}");
        return;
    }
    out.extend_from_slice(b"],\"data\":[");
    match &given.values {
        Values::F32(values) => list(out, values, |out, v| write_float(out, *v)),
        Values::I64(values) => list(out, values, |out, v| write_int(out, *v)),
        Values::Text(texts) => list(out, texts, |out, text| write_text(out, text)),
    }
    out.extend_from_slice(b"]}");
}

pub fn list<T>(out: &mut Vec<u8>, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    for (at, value) in values.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write(out, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Datatype;

    #[test]
    fn numbers_stand_in_the_json_or_as_bytes_behind_it() {
        let given = |values: Values, datatype| Given { name: "logits", datatype, shape: vec![1, 2], values };
        let floats = given(Values::F32(vec![1.0, 0.1]), Datatype::Fp32);
        let texts = given(Values::Text(vec!["a\"".into(), "b".into()]), Datatype::Bytes);
        let json = write("m", 3, Some("42"), &[(floats.clone(), false), (texts.clone(), false)]);
        assert_eq!(
            std::str::from_utf8(&json.body).unwrap(),
            r#"{"id":"42","model_name":"m","model_version":"3","outputs":[{"name":"logits","datatype":"FP32","shape":[1,2],"data":[1.0,0.1]},{"name":"logits","datatype":"BYTES","shape":[1,2],"data":["a\"","b"]}]}"#
        );
        assert_eq!(json.json_len, None);
        let binary = write("m", 3, None, &[(floats, true), (texts, true)]);
        let (json, bytes) = binary.body.split_at(binary.json_len.unwrap());
        assert!(std::str::from_utf8(json).unwrap().contains(r#""parameters":{"binary_data_size":8}"#));
        assert_eq!(bytes, b"\x00\x00\x80\x3f\xcd\xcc\xcc\x3d\x02\x00\x00\x00a\"\x01\x00\x00\x00b");
    }
}
