//! TensorFlow Serving's REST, with its words for mistakes, and what KServe's first protocol adds to the same paths.
//!
//! `GET /v1/models` and `GET /v1/models/M` are asked by three kinds of clients. One answer has the keys of all three:
//! `models` for KServe, `object` and `data` for OpenAI's, `model_version_status` for TensorFlow Serving's.

mod read;
mod write;

use super::answer::{self, Answer};
use super::body::{self, Whole};
use super::route::Call;
use super::{Named, timeout};
use crate::batching::crew::Times;
use crate::clock::now_us;
use crate::limits::BODY_BYTES_SMALL;
use crate::model::{Port, Takes};
use crate::outputs::{Wanted, give, order, probabilities};
use crate::refusal::{Refusal, quote};
use crate::serving::{Counted, Entry, Loaded, Table, Which, deadline_us};
use crate::state::Shared;
use hyper::HeaderMap;
use hyper::body::Incoming;
use read::{Ask, Form};
use serde_json::{Value, json};
use std::sync::Arc;

/// The one signature that a model has.
const SIGNATURE: &str = "serving_default";

pub fn models(table: &Table) -> Value {
    let card = |(name, entry): (&String, &Entry)| open_ai_card(name, entry);
    json!({
        "object": "list",
        "data": table.models.iter().map(card).collect::<Vec<_>>(),
        "models": table.models.keys().collect::<Vec<_>>(),
    })
}

fn open_ai_card(name: &str, entry: &Entry) -> Value {
    let created = entry.default_version().map_or(0, |loaded| loaded.face().created_s);
    json!({ "id": name, "object": "model", "created": created, "owned_by": "elastic" })
}

pub fn model(shared: &Shared, name: &str, which: &Which) -> Result<Answer, Refusal> {
    let table = shared.serving.table();
    let entry = table
        .models
        .get(name)
        .ok_or_else(|| Refusal::NotFound(format!("Could not find any versions of model {}", quote(name))))?;
    let mut card = open_ai_card(name, entry);
    let status = |version: &str, state: &str, code: &str, message: &str| json!({ "version": version, "state": state, "status": { "error_code": code, "error_message": message } });
    let one = match which {
        Which::Default => None,
        which => Some(table.find(name, which)?.version),
    };
    let rows = shared.index().into_iter().filter(|row| row.name == name && !row.version.is_empty());
    let states: Vec<Value> = rows
        .filter(|row| one.is_none_or(|version| row.version == version.to_string()))
        .map(|row| match row.state {
            "READY" => status(&row.version, "AVAILABLE", "OK", ""),
            "LOADING" => status(&row.version, "LOADING", "OK", ""),
            _ => status(&row.version, "END", "UNKNOWN", &row.reason),
        })
        .collect();
    card["model_version_status"] = Value::from(states);
    card["name"] = json!(name);
    card["ready"] = json!(entry.default_version().is_some());
    Ok(answer::value(&card))
}

pub fn metadata(shared: &Shared, name: &str, which: &Which) -> Result<Answer, Refusal> {
    let loaded = find(shared, name, which)?;
    let face = loaded.face();
    let info = |port: &Port| {
        let dims: Vec<Value> = port.shape.iter().map(|n| json!({ "size": n.to_string(), "name": "" })).collect();
        let dtype = match port.datatype.name() {
            "FP32" => "DT_FLOAT",
            "INT32" => "DT_INT32",
            "INT64" => "DT_INT64",
            _ => "DT_STRING",
        };
        json!({ "dtype": dtype, "tensor_shape": { "dim": dims, "unknown_rank": false }, "name": port.name })
    };
    let input = face.input();
    let outputs: serde_json::Map<String, Value> =
        face.outputs().iter().map(|port| (port.name.to_string(), info(port))).collect();
    let signature = json!({
        "inputs": { input.name: info(&input) },
        "outputs": outputs,
        "method_name": "tensorflow/serving/predict",
    });
    Ok(answer::value(&json!({
        "model_spec": { "name": name, "signature_name": "", "version": loaded.version.to_string() },
        "metadata": { "signature_def": { "signature_def": { SIGNATURE: signature } } },
    })))
}

/// An unknown model in TensorFlow Serving's words.
fn find(shared: &Shared, name: &str, which: &Which) -> Result<Arc<Loaded>, Refusal> {
    shared.find(name, which).map_err(|refusal| match refusal {
        Refusal::NotFound(_) => {
            let name = quote(name);
            Refusal::NotFound(match which {
                Which::Default => format!("Servable not found for request: Latest({name})"),
                Which::Version(version) => format!("Servable not found for request: Specific({name}, {version})"),
                Which::Label(label) => {
                    let label = quote(label);
                    format!("Unrecognized servable version label: {label} of model {name}")
                }
            })
        }
        other => other,
    })
}

pub async fn call(
    shared: &Arc<Shared>,
    (name, which): Named<'_>,
    call: Call,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Refusal> {
    let start_us = now_us();
    let loaded = find(shared, name, which)?;
    let counted = Counted::new(&loaded, start_us);
    match asked(shared, &loaded, call, headers, body, start_us).await {
        Ok((answer, times)) => {
            counted.answered(&times);
            Ok(answer)
        }
        Err(refusal) => Err(counted.refused(refusal)),
    }
}

async fn asked(
    shared: &Arc<Shared>,
    loaded: &Arc<Loaded>,
    call: Call,
    headers: &HeaderMap,
    body: Incoming,
    start_us: u64,
) -> Result<(Answer, Times), Refusal> {
    let is_features = matches!(loaded.face().takes, Takes::Features { .. });
    match call {
        Call::Regress => return Err(Refusal::invalid("Expected a regression signature; the model classifies")),
        Call::Explain => return Err(Refusal::Unimplemented("the model has no explainer".into())),
        Call::Classify if !is_features => {
            return Err(Refusal::invalid("Expected a classification signature; the model gives logits of tokens"));
        }
        Call::Classify | Call::Predict => {}
    }
    let timeout = timeout(headers)?;
    let body = body::read(body, headers, &shared.bodies).await?;
    let Ask { rows, form } = read_ask(loaded, call, body).await?;
    let deadline_us = deadline_us(start_us, timeout, shared.config.timeout);
    let (count, length) = (rows.count(), rows.length());
    let done = loaded.infer(rows, deadline_us).await?;
    let face = loaded.face();
    let body = match (call, &face.takes) {
        (Call::Classify, Takes::Features { classes, .. }) => {
            let probabilities = probabilities(&done.logits, *classes);
            let rows: Vec<_> = probabilities.chunks_exact(*classes).map(|row| (row, order(row))).collect();
            write::classes(face, &rows)
        }
        _ => {
            let want = |output| Wanted { output, binary: false, largest: None };
            let wanted: Vec<Wanted> = face.kinds().iter().map(|output| want(*output)).collect();
            let given = give(face, &wanted, done.logits, count, length);
            match form {
                Form::Rows => write::predictions(&given, count),
                Form::Columns => write::outputs(&given),
            }
        }
    };
    Ok((answer::json(body), done.times))
}

/// A large request is read on a thread of its own.
async fn read_ask(loaded: &Arc<Loaded>, call: Call, body: Whole) -> Result<Ask, Refusal> {
    if body.bytes.len() <= BODY_BYTES_SMALL {
        return read::read(loaded.face(), call, &body.bytes);
    }
    let loaded = loaded.clone();
    let read = tokio::task::spawn_blocking(move || read::read(loaded.face(), call, &body.bytes));
    read.await.map_err(|error| Refusal::Internal(format!("read a request: {error}")))?
}
