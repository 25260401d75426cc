//! Requests of TensorFlow Serving's REST: rows (`instances`), columns (`inputs`) or examples, with its words for what is
//! wrong. NaN and Infinity are read as it reads them; the model then says what it thinks of them.

use super::SIGNATURE;
use crate::http::route::Call;
use crate::json::{Kind, Read, Scanner};
use crate::model::{Face, Takes};
use crate::refusal::{Refusal, quote};
use crate::tensor::{self, Numbers, Rows};

#[derive(Debug, PartialEq)]
pub struct Ask {
    pub rows: Rows,
    pub form: Form,
}

/// As the request came, so goes the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Rows,
    Columns,
}

pub fn read(face: &Face, call: Call, body: &[u8]) -> Result<Ask, Refusal> {
    let mut scanner = Scanner::lenient(body);
    if scanner.kind()? != Kind::Object {
        return Err(Refusal::invalid("Request has no valid JSON object: it must be an object"));
    }
    // Where the tensors stand: keys may come in any order.
    let (mut instances, mut inputs, mut examples, mut context) = (None, None, None, false);
    scanner.object("the request", |s, key| {
        match key {
            "signature_name" => {
                let name = s.text_value("'signature_name' key")?;
                if !name.is_empty() && name != SIGNATURE {
                    let name = quote(&name);
                    return Err(Refusal::Invalid(format!(
                        "Serving signature name: \"{name}\" not found in signature def; there is \"{SIGNATURE}\""
                    )));
                }
                return Ok(());
            }
            "instances" => instances = Some(s.place()),
            "inputs" => inputs = Some(s.place()),
            "examples" => examples = Some(s.place()),
            "context" => context = true,
            _ => {}
        }
        s.skip().map(drop)
    })?;
    scanner.end()?;
    if call == Call::Classify {
        if context {
            return Err(Refusal::invalid("'context' is not taken: examples are whole"));
        }
        let place = examples
            .ok_or_else(|| Refusal::invalid("When method is classify, key 'examples' is expected and was not found"))?;
        scanner.seek(place);
        let named = |text: &str| text.replace("instances", "examples");
        return by_rows(face, &mut scanner, true).map_err(|refusal| match refusal {
            Refusal::Invalid(text) => Refusal::Invalid(named(&text)),
            other => other,
        });
    }
    match (instances, inputs) {
        (Some(_), Some(_)) => Err(Refusal::invalid(
            "Request has both 'instances' and 'inputs' keys; expecting only one of 'inputs' or 'instances'",
        )),
        (None, None) => Err(Refusal::invalid("Missing 'inputs' or 'instances' key")),
        (Some(place), None) => {
            scanner.seek(place);
            by_rows(face, &mut scanner, false)
        }
        (None, Some(place)) => {
            scanner.seek(place);
            by_columns(face, &mut scanner)
        }
    }
}

/// A list of samples: each the input itself, or an object that names it.
fn by_rows(face: &Face, s: &mut Scanner<'_>, only_objects: bool) -> Result<Ask, Refusal> {
    if s.kind()? != Kind::List {
        return Err(Refusal::invalid("Expecting 'instances' to be an list/array"));
    }
    let name = face.input().name;
    let mut numbers = empty(face);
    let mut shape: Option<Vec<usize>> = None;
    let mut count = 0;
    let mut objects: Option<bool> = only_objects.then_some(true);
    s.list("'instances'", |s, at| {
        let kind = s.kind()?;
        let is_object = kind == Kind::Object;
        if *objects.get_or_insert(is_object) != is_object {
            let (expected, got) = if is_object { ("value/list", "object") } else { ("object", "list") };
            let got = if !is_object && kind != Kind::List { "value" } else { got };
            return Err(Refusal::Invalid(format!("Expecting {expected} but got {got} at item {at} of input list")));
        }
        let this = match is_object {
            false => tensor_of(face, s, &mut numbers)?,
            true => {
                let mut this = None;
                s.object("an instance", |s, key| match key == name {
                    true => tensor_of(face, s, &mut numbers).map(|shape| this = Some(shape)),
                    false => Err(Refusal::Invalid(format!(
                        "Failed to process element: {at} of 'instances' list. JSON object: key '{}'; keys must be equal to: {name}",
                        quote(key)
                    ))),
                })?;
                this.ok_or_else(|| {
                    Refusal::Invalid(format!(
                        "Failed to process element: {at} of 'instances' list. JSON object does not have named input: {name}"
                    ))
                })?
            }
        };
        match &shape {
            Some(first) if *first != this => {
                return Err(Refusal::Invalid(format!(
                    "Expecting tensor size {first:?} but got {this:?} at item {at} of 'instances'"
                )));
            }
            Some(_) => {}
            None => shape = Some(this),
        }
        count += 1;
        Ok(())
    })?;
    let Some(row) = shape else { return Err(Refusal::invalid("No values in 'instances' array")) };
    let whole: Vec<i64> = [count].into_iter().chain(row.iter().map(|n| *n as i64)).collect();
    rows(face, &whole, numbers).map(|rows| Ask { rows, form: Form::Rows })
}

/// The input as one tensor, or an object that names it.
fn by_columns(face: &Face, s: &mut Scanner<'_>) -> Result<Ask, Refusal> {
    let name = face.input().name;
    let mut numbers = empty(face);
    let mut shape = None;
    match s.kind()? {
        Kind::Object => s.object("'inputs'", |s, key| match key == name {
            true => tensor_of(face, s, &mut numbers).map(|found| shape = Some(found)),
            false => Err(Refusal::Invalid(format!("Unexpected input '{}': keys must be equal to: {name}", quote(key)))),
        })?,
        _ => shape = Some(tensor_of(face, s, &mut numbers)?),
    }
    let shape = shape.ok_or_else(|| Refusal::Invalid(format!("Missing named input: {name} in 'inputs' object.")))?;
    let whole: Vec<i64> = shape.iter().map(|n| *n as i64).collect();
    rows(face, &whole, numbers).map(|rows| Ask { rows, form: Form::Columns })
}

fn rows(face: &Face, shape: &[i64], numbers: Numbers) -> Result<Rows, Refusal> {
    let dims = tensor::check_shape(face, shape)?;
    tensor::rows(face, dims, numbers)
}

fn empty(face: &Face) -> Numbers {
    match face.takes {
        Takes::Features { .. } => Numbers::F32(Vec::new()),
        Takes::Tokens { .. } => Numbers::I32(Vec::new()),
    }
}

/// Appends a tensor's numbers and gives its shape.
fn tensor_of(face: &Face, s: &mut Scanner<'_>, numbers: &mut Numbers) -> Read<Vec<usize>> {
    let name = face.input().name;
    let refused =
        |kind: Kind| Err(Refusal::Invalid(format!("JSON Value: {} is not of the type of input: {name}", kind.word())));
    s.tensor(&format!("Input: {name}"), |s| {
        match s.kind()? {
            Kind::Number => {}
            kind => return refused(kind),
        }
        match numbers {
            Numbers::F32(values) => values.push(s.f32()?),
            Numbers::I32(ids) => {
                let id = s.i64("a token")?;
                let outside = |_| Refusal::Invalid(format!("{id} does not fit into INT32"));
                ids.push(i32::try_from(id).map_err(outside)?);
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn face() -> Face {
        let takes = Takes::Features { shape: vec![2], classes: 3 };
        Face { takes, labels: vec![], content: String::new(), created_s: 0 }
    }

    fn ask(call: Call, json: &str) -> Result<Ask, String> {
        read(&face(), call, json.as_bytes()).map_err(|refusal| refusal.to_string())
    }

    fn features(values: &[f32]) -> Rows {
        Rows::Features { count: values.len() / 2, values: values.to_vec() }
    }

    #[test]
    fn rows_and_columns_come_bare_or_named() {
        for (json, form) in [
            (r#"{"instances":[[1,2],[3,4]]}"#, Form::Rows),
            (r#"{"signature_name":"serving_default","instances":[{"input":[1,2]},{"input":[3,4]}]}"#, Form::Rows),
            (r#"{"inputs":[[1,2],[3,4]]}"#, Form::Columns),
            (r#"{"inputs":{"input":[[1,2],[3,4]]}}"#, Form::Columns),
        ] {
            assert_eq!(ask(Call::Predict, json), Ok(Ask { rows: features(&[1.0, 2.0, 3.0, 4.0]), form }), "{json}");
        }
        let classified = ask(Call::Classify, r#"{"examples":[{"input":[1,2]}]}"#).unwrap();
        assert_eq!(classified.rows, features(&[1.0, 2.0]));
    }

    #[test]
    fn what_is_wrong_is_said_in_tensorflow_servings_words() {
        for (json, why) in [
            ("[]", "Request has no valid JSON object"),
            ("{}", "Missing 'inputs' or 'instances' key"),
            (r#"{"instances":[1],"inputs":[1]}"#, "expecting only one of"),
            (r#"{"instances":{"input":1}}"#, "Expecting 'instances' to be an list/array"),
            (r#"{"instances":[]}"#, "No values in 'instances' array"),
            (r#"{"instances":[{"input":[1,2]},[1,2]]}"#, "Expecting object but got list at item 1"),
            (r#"{"instances":[[1,2],{"input":[1,2]}]}"#, "Expecting value/list but got object at item 1"),
            (r#"{"instances":[{"x":[1,2]}]}"#, "keys must be equal to: input"),
            (r#"{"instances":[{}]}"#, "does not have named input: input"),
            (r#"{"instances":[[1,2],[1,2,3]]}"#, "Expecting tensor size [2] but got [3]"),
            (r#"{"instances":[[1,2,3]]}"#, "the model takes [-1, 2]"),
            (r#"{"instances":[["a",2]]}"#, "is not of the type of input"),
            (r#"{"signature_name":"x","instances":[[1,2]]}"#, "Serving signature name: \"x\" not found"),
            (r#"{"inputs":{"y":[[1,2]]}}"#, "keys must be equal to: input"),
        ] {
            let error = ask(Call::Predict, json).unwrap_err();
            assert!(error.contains(why), "{json}: {error}");
        }
        assert!(ask(Call::Classify, r#"{"instances":[[1,2]]}"#).unwrap_err().contains("'examples'"));
    }

    proptest! {
        #[test]
        fn any_request_is_read_or_refused(json in "(\\{|\\}|\\[|\\]|,|:|\"instances\"|\"inputs\"|\"input\"|\"b64\"|1|-|NaN|null){0,20}") {
            for call in [Call::Predict, Call::Classify] {
                let _ = ask(call, &json);
            }
        }
    }
}
