//! Answers of TensorFlow Serving's REST. What is not finite goes as its tokens NaN and Infinity.

use crate::json::{write_float_or_token, write_int, write_text};
use crate::model::Face;
use crate::outputs::{Given, Values};

/// A list of samples, each an object of outputs; bare where there is one output only.
pub fn predictions(given: &[Given], count: usize) -> Vec<u8> {
    let mut out = b"{\"predictions\":[".to_vec();
    for row in 0..count {
        if row > 0 {
            out.push(b',');
        }
        match given {
            [one] => slice(&mut out, one, row),
            all => {
                object(&mut out, all, |out, given| slice(out, given, row));
            }
        }
    }
    out.extend_from_slice(b"]}");
    out
}

/// Whole tensors by name; bare where there is one output only.
pub fn outputs(given: &[Given]) -> Vec<u8> {
    let mut out = b"{\"outputs\":".to_vec();
    match given {
        [one] => nested(&mut out, one, &one.shape, 0),
        all => object(&mut out, all, |out, given| nested(out, given, &given.shape, 0)),
    }
    out.push(b'}');
    out
}

/// Per sample its labels with their probabilities, the likeliest first.
pub fn classes(face: &Face, rows: &[(&[f32], Vec<usize>)]) -> Vec<u8> {
    let mut out = b"{\"results\":[".to_vec();
    for (at, (row, order)) in rows.iter().enumerate() {
        out.extend_from_slice(if at > 0 { b",[" } else { b"[" });
        for (at, class) in order.iter().enumerate() {
            out.extend_from_slice(if at > 0 { b",[" } else { b"[" });
            match face.labels.get(*class) {
                Some(label) => write_text(&mut out, label),
                None => write_text(&mut out, &class.to_string()),
            }
            out.push(b',');
            write_float_or_token(&mut out, row[*class]);
            out.push(b']');
        }
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    out
}

fn object(out: &mut Vec<u8>, given: &[Given], write: impl Fn(&mut Vec<u8>, &Given)) {
    out.push(b'{');
    for (at, given) in given.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_text(out, given.name);
        out.push(b':');
        write(out, given);
    }
    out.push(b'}');
}

/// One sample of an output.
fn slice(out: &mut Vec<u8>, given: &Given, row: usize) {
    let rest = &given.shape[1..];
    let width: usize = rest.iter().product();
    nested(out, given, rest, row * width);
}

/// Lists in lists by the shape, from a place on.
fn nested(out: &mut Vec<u8>, given: &Given, shape: &[usize], from: usize) {
    let Some((length, rest)) = shape.split_first() else {
        return match &given.values {
            Values::F32(values) => write_float_or_token(out, values[from]),
            Values::I64(values) => write_int(out, values[from]),
            Values::Text(texts) => write_text(out, &texts[from]),
        };
    };
    let width: usize = rest.iter().product();
    out.push(b'[');
    for at in 0..*length {
        if at > 0 {
            out.push(b',');
        }
        nested(out, given, rest, from + at * width);
    }
    out.push(b']');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Datatype;

    fn given(name: &'static str, shape: &[usize], values: Values) -> Given {
        Given { name, datatype: Datatype::Fp32, shape: shape.to_vec(), values }
    }

    #[test]
    fn samples_and_tensors_are_nested_as_their_shapes() {
        let logits = given("logits", &[2, 2], Values::F32(vec![1.0, f32::NAN, 3.0, f32::NEG_INFINITY]));
        let label = given("label", &[2], Values::Text(vec!["a".into(), "b".into()]));
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let both = [logits.clone(), label];
        assert_eq!(
            text(predictions(&both, 2)),
            r#"{"predictions":[{"logits":[1.0,NaN],"label":"a"},{"logits":[3.0,-Infinity],"label":"b"}]}"#
        );
        assert_eq!(text(outputs(&both)), r#"{"outputs":{"logits":[[1.0,NaN],[3.0,-Infinity]],"label":["a","b"]}}"#);
        let one = [logits];
        assert_eq!(text(predictions(&one, 2)), r#"{"predictions":[[1.0,NaN],[3.0,-Infinity]]}"#);
        assert_eq!(text(outputs(&one)), r#"{"outputs":[[1.0,NaN],[3.0,-Infinity]]}"#);
    }
}
