//! The open inference protocol (KServe v2) over REST, with Triton's extensions: binary tensors, statistics, configuration,
//! model repository. Its extension for texts is in `generate`.

mod read;
mod write;

use super::answer::{self, Answer, JSON_LENGTH};
use super::body::{self, Whole};
use super::{Named, timeout};
use crate::batching::crew::Times;
use crate::clock::now_us;
use crate::json::{Kind, Scanner};
use crate::limits::BODY_BYTES_SMALL;
use crate::model::{Face, Port};
use crate::outputs::give;
use crate::refusal::{Reason, Refusal};
use crate::serving::{Counted, Loaded, Table, Which, deadline_us};
use crate::state::Shared;
use crate::stats::Counts;
use hyper::HeaderMap;
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use read::Ask;
use serde_json::{Value, json};
use std::sync::Arc;

pub const EXTENSIONS: [&str; 6] =
    ["binary_tensor_data", "model_repository", "statistics", "parameters", "model_configuration", "generate"];
pub const PLATFORM: &str = "elastic_native";

pub fn server() -> Value {
    json!({ "name": "elastic", "version": env!("CARGO_PKG_VERSION"), "extensions": EXTENSIONS })
}

pub fn models(table: &Table) -> Value {
    json!({ "models": table.models.keys().collect::<Vec<_>>() })
}

pub fn metadata(shared: &Shared, name: &str, which: &Which) -> Result<Answer, Refusal> {
    let table = shared.serving.table();
    let loaded = table.find(name, which)?;
    let versions: Vec<String> = table.models[name].versions.keys().map(u64::to_string).collect();
    let face = loaded.face();
    let port = |port: &Port| json!({ "name": port.name, "datatype": port.datatype.name(), "shape": port.shape });
    Ok(answer::value(&json!({
        "name": name,
        "versions": versions,
        "platform": PLATFORM,
        "inputs": [port(&face.input())],
        "outputs": face.outputs().iter().map(port).collect::<Vec<_>>(),
        "parameters": { "content_sha256": face.content, "version": loaded.version.to_string() },
    })))
}

pub fn model_ready(shared: &Shared, name: &str, which: &Which) -> Result<Answer, Refusal> {
    shared.serving.find(name, which)?;
    Ok(answer::value(&json!({ "name": name, "ready": true })))
}

/// In the words of Triton's model configuration, as far as they mean something here.
pub fn config(shared: &Shared, name: &str, which: &Which) -> Result<Answer, Refusal> {
    let loaded = shared.serving.find(name, which)?;
    let face = loaded.face();
    let port = |port: &Port| {
        // The dimension of rows is left out, as Triton leaves it out of models with batches.
        json!({ "name": port.name, "data_type": format!("TYPE_{}", config_type(port)), "dims": port.shape[1..] })
    };
    Ok(answer::value(&json!({
        "name": name,
        "platform": PLATFORM,
        "backend": "elastic",
        "version_policy": { "latest": { "num_versions": shared.config.keep } },
        "max_batch_size": loaded.policy.rows_max,
        "input": [port(&face.input())],
        "output": face.outputs().iter().map(port).collect::<Vec<_>>(),
        "dynamic_batching": {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": loaded.policy.delay.as_micros() as u64,
            "default_queue_policy": { "max_queue_size": loaded.policy.requests_max },
        },
        "instance_group": [{ "count": shared.config.hands.instances, "kind": "KIND_CPU" }],
        "parameters": {},
    })))
}

fn config_type(port: &Port) -> &'static str {
    match port.datatype.name() {
        "BYTES" => "STRING",
        name => name,
    }
}

/// Of one version, of all of a model, or of all.
pub fn stats(table: &Table, of: Option<(&str, &Which)>) -> Value {
    let wanted = |loaded: &&Arc<Loaded>| match of {
        None => true,
        Some((name, Which::Default)) => loaded.name.as_ref() == name,
        Some((name, which)) => table.find(name, which).is_ok_and(|found| Arc::ptr_eq(found, loaded)),
    };
    let all = table.models.values().flat_map(|entry| entry.versions.values());
    json!({ "model_stats": all.filter(wanted).map(|loaded| model_stats(loaded)).collect::<Vec<_>>() })
}

fn model_stats(loaded: &Loaded) -> Value {
    let Counts { success, failure, fail_us, rows, executions, request_us, times, last_ms, batches, .. } =
        loaded.stats.counts();
    let of = |count: u64, us: u64| json!({ "count": count, "ns": us * 1000 });
    let failed: u64 = failure.iter().sum();
    let canceled = Reason::ALL.iter().position(|reason| *reason == Reason::Canceled).map_or(0, |at| failure[at]);
    let sizes = batches.iter().map(|(size, batch)| {
        json!({
            "batch_size": size,
            "compute_input": of(batch.count, batch.input_us),
            "compute_infer": of(batch.count, batch.infer_us),
            "compute_output": of(batch.count, 0),
        })
    });
    json!({
        "name": loaded.name.as_ref(),
        "version": loaded.version.to_string(),
        "last_inference": last_ms,
        "inference_count": rows,
        "execution_count": executions,
        "inference_stats": {
            "success": of(success, request_us),
            "fail": of(failed, fail_us),
            "queue": of(success, times.queue_us),
            "compute_input": of(success, times.input_us),
            "compute_infer": of(success, times.infer_us),
            "compute_output": of(success, times.output_us),
            "cancel": of(canceled, 0),
        },
        "batch_stats": sizes.collect::<Vec<_>>(),
    })
}

pub async fn infer(
    shared: &Arc<Shared>,
    (name, which): Named<'_>,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Refusal> {
    let start_us = now_us();
    let loaded = shared.find(name, which)?;
    let counted = Counted::new(&loaded, start_us);
    match asked(shared, &loaded, headers, body, start_us).await {
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
    headers: &HeaderMap,
    body: Incoming,
    start_us: u64,
) -> Result<(Answer, Times), Refusal> {
    let timeout = timeout(headers)?;
    let json_len = json_length(headers)?;
    let body = body::read(body, headers, &shared.bodies).await?;
    let ask = read_ask(loaded, json_len, body).await?;
    let deadline_us = deadline_us(start_us, ask.timeout.or(timeout), shared.config.timeout);
    let (count, length) = (ask.rows.count(), ask.rows.length());
    let done = loaded.infer(ask.rows, deadline_us).await?;
    let given = give(loaded.face(), &ask.wanted, done.logits, count, length);
    let outputs: Vec<_> = given.into_iter().zip(ask.wanted.iter().map(|wanted| wanted.binary)).collect();
    let written = write::write(&loaded.name, loaded.version, ask.id.as_deref(), &outputs);
    let answer = match written.json_len {
        None => answer::json(written.body),
        Some(json_len) => {
            let mut answer = answer::typed("application/octet-stream", written.body);
            answer.headers_mut().insert(&JSON_LENGTH, HeaderValue::from(json_len));
            answer
        }
    };
    Ok((answer, done.times))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(&JSON_LENGTH) else { return Ok(None) };
    let length = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let wrong = || Refusal::invalid("Inference-Header-Content-Length must be a whole number of bytes");
    length.map(Some).ok_or_else(wrong)
}

/// A large request is read on a thread of its own, so that others are not kept waiting.
async fn read_ask(loaded: &Arc<Loaded>, json_len: Option<usize>, body: Whole) -> Result<Ask, Refusal> {
    if body.bytes.len() <= BODY_BYTES_SMALL {
        return split(loaded.face(), json_len, &body.bytes);
    }
    let loaded = loaded.clone();
    let read = tokio::task::spawn_blocking(move || split(loaded.face(), json_len, &body.bytes));
    read.await.map_err(|error| Refusal::Internal(format!("read a request: {error}")))?
}

fn split(face: &Face, json_len: Option<usize>, body: &[u8]) -> Result<Ask, Refusal> {
    match json_len {
        None => read::read(face, body, b""),
        Some(0) => read::read_raw(face, body),
        Some(len) => match body.split_at_checked(len) {
            Some((json, binary)) => read::read(face, json, binary),
            None => Err(Refusal::Invalid(format!(
                "Inference-Header-Content-Length is {len}, but the body has {} bytes",
                body.len()
            ))),
        },
    }
}

/// `{"ready": true}` leaves out what does not answer.
pub async fn index(shared: &Arc<Shared>, headers: &HeaderMap, body: Incoming) -> Result<Answer, Refusal> {
    let body = body::read(body, headers, &shared.bodies).await?;
    let mut only_ready = false;
    if !body.bytes.is_empty() {
        let mut scanner = Scanner::new(&body.bytes);
        scanner.object("the request", |s, key| match key {
            "ready" if s.kind()? == Kind::Bool => s.bool_value("'ready'").map(|ready| only_ready = ready),
            _ => s.skip().map(drop),
        })?;
        scanner.end()?;
    }
    let rows = shared.index();
    let shown = rows.iter().filter(|row| !only_ready || row.state == "READY");
    let row = |row: &crate::state::IndexRow| json!({ "name": row.name, "version": row.version, "state": row.state, "reason": row.reason });
    Ok(answer::value(&Value::from(shown.map(row).collect::<Vec<_>>())))
}

pub async fn load(shared: &Arc<Shared>, name: &str, headers: &HeaderMap, body: Incoming) -> Result<Answer, Refusal> {
    let body = body::read(body, headers, &shared.bodies).await?;
    parameters(&body.bytes, |key| match key {
        "config" => Err(Refusal::Unimplemented("a configuration is not taken over the wire".into())),
        key if key.starts_with("file:") => Err(Refusal::Unimplemented("files are not taken over the wire".into())),
        _ => Ok(()),
    })?;
    shared.load(name).await?;
    Ok(answer::value(&json!({})))
}

pub async fn unload(shared: &Arc<Shared>, name: &str, headers: &HeaderMap, body: Incoming) -> Result<Answer, Refusal> {
    let body = body::read(body, headers, &shared.bodies).await?;
    parameters(&body.bytes, |_| Ok(()))?;
    shared.unload(name).await?;
    Ok(answer::value(&json!({})))
}

/// `{"parameters": {…}}`, or nothing.
fn parameters(body: &[u8], check: impl Fn(&str) -> Result<(), Refusal>) -> Result<(), Refusal> {
    if body.is_empty() {
        return Ok(());
    }
    let mut scanner = Scanner::new(body);
    scanner.object("the request", |s, key| match key {
        "parameters" if s.kind()? == Kind::Object => s.object("'parameters'", |s, key| {
            check(key)?;
            s.skip().map(drop)
        }),
        _ => s.skip().map(drop),
    })?;
    scanner.end()
}
