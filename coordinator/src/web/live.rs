//! The live streams of the page: first the whole, then what changes, as server-sent events.
//!
//! Who comes back after a broken connection begins with the whole again, whatever it had: a change says what is
//! different from the look that this very connection was sent before.

use super::board::{Board, Look};
use crate::logs::{self, Start};
use crate::service::Service;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use elastic_proto::Refusal;
use elastic_proto::server::{Api, Flow};
use elastic_spec::api::{LogPiece, LogsQuery};
use elastic_spec::{JobId, NodeId, Rank};
use elastic_web::axum;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

type Out = mpsc::Sender<Result<Event, Infallible>>;

/// The reader hung up.
struct HungUp;

/// Runs `pump` for as long as somebody reads.
fn stream<F: Future<Output = Result<(), HungUp>> + Send + 'static>(pump: impl FnOnce(Out) -> F) -> Response {
    let (out, events) = mpsc::channel(EVENTS_AHEAD);
    let closed = out.clone();
    let pump = pump(out);
    tokio::spawn(async move {
        tokio::select! {
            _ = pump => {}
            () = closed.closed() => {}
        }
    });
    Sse::new(ReceiverStream::new(events)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

async fn send(out: &Out, kind: &str, id: u64, data: String) -> Result<(), HungUp> {
    let event = Event::default().event(kind).id(id.to_string()).data(data);
    out.send(Ok(event)).await.map_err(|_| HungUp)
}

/// All jobs, in short, and all nodes.
pub(crate) fn cluster(board: &Arc<Board>) -> Response {
    let mut looks = board.looks();
    stream(|out| async move {
        let mut last: Option<Arc<Look>> = None;
        loop {
            let look = looks.borrow_and_update().clone();
            if look.tick > 0 {
                let (kind, data) = match &last {
                    None => ("whole", Some(whole(&look))),
                    Some(last) => ("change", change(last, &look)),
                };
                if let Some(data) = data {
                    send(&out, kind, look.tick, data).await?;
                }
                last = Some(look);
            }
            looks.changed().await.map_err(|_| HungUp)?;
        }
    })
}

fn whole(look: &Look) -> String {
    let jobs = list(look.jobs.values().map(|job| &job.short));
    format!("{{\"health\":{},\"jobs\":{jobs},\"nodes\":{}}}", look.health, list(look.nodes.values()))
}

/// None: there is nothing new.
fn change(last: &Look, look: &Look) -> Option<String> {
    let is_new_job = |(id, job): &(&JobId, &Arc<super::board::Shown>)| {
        last.jobs.get(*id).is_none_or(|old| !Arc::ptr_eq(old, job) && old.short != job.short)
    };
    let is_new_node = |(id, node): &(&NodeId, &Arc<str>)| last.nodes.get(*id) != Some(*node);
    let jobs: Vec<_> = look.jobs.iter().filter(is_new_job).map(|(_, job)| &job.short).collect();
    let nodes: Vec<_> = look.nodes.iter().filter(is_new_node).map(|(_, node)| node).collect();
    let jobs_gone: Vec<&JobId> = last.jobs.keys().filter(|id| !look.jobs.contains_key(*id)).collect();
    let nodes_gone: Vec<&NodeId> = last.nodes.keys().filter(|id| !look.nodes.contains_key(*id)).collect();
    let is_same_health = last.health == look.health;
    if jobs.is_empty() && nodes.is_empty() && jobs_gone.is_empty() && nodes_gone.is_empty() && is_same_health {
        return None;
    }
    Some(format!(
        "{{\"health\":{},\"jobs\":{},\"nodes\":{},\"jobs_gone\":{},\"nodes_gone\":{}}}",
        look.health,
        list(jobs),
        list(nodes),
        json!(jobs_gone),
        json!(nodes_gone),
    ))
}

fn list<'a>(items: impl IntoIterator<Item = &'a Arc<str>>) -> String {
    let items: Vec<&str> = items.into_iter().map(|item| &**item).collect();
    format!("[{}]", items.join(","))
}

/// One job: its whole status, the points of its curve and what happened to it.
pub(crate) fn job(board: &Arc<Board>, id: JobId) -> Response {
    let (board, mut looks) = (board.clone(), board.looks());
    stream(|out| async move {
        let mut last: Option<Arc<Look>> = None;
        let mut read = 0;
        loop {
            let look = looks.borrow_and_update().clone();
            if look.tick > 0 {
                let since = last.as_ref().map_or(0, |last| last.tick);
                let (entries, newest) = board.diary.since(&id, read);
                read = newest;
                let job = look.jobs.get(&id).map(|job| job.whole.clone());
                let old = last.as_ref().and_then(|last| last.jobs.get(&id)).map(|job| job.whole.clone());
                let is_same_health = last.as_ref().is_some_and(|last| last.health == look.health);
                if last.is_none() || job != old || !entries.is_empty() || !is_same_health {
                    let kind = if last.is_none() { "whole" } else { "change" };
                    let data = format!(
                        "{{\"health\":{},\"job\":{},\"points\":{},\"diary\":{}}}",
                        look.health,
                        job.as_deref().unwrap_or("null"),
                        Value::from(board.points(&id, since)),
                        Value::from(entries),
                    );
                    send(&out, kind, look.tick, data).await?;
                }
                last = Some(look);
            }
            looks.changed().await.map_err(|_| HungUp)?;
        }
    })
}

/// What a job's workers print: the end of what is there, and then each line as it comes, until the job is over.
pub(crate) async fn log_lines(service: &Service, id: JobId, rank: Option<Rank>) -> Result<Response, Refusal> {
    let status = service.status(id.clone()).await?;
    let query = LogsQuery { job: id.clone(), rank, gen_: None, follow: true };
    let pieces = logs::gather(service.clone(), query, status, Start::Last(LOG_TAIL_BYTES)).await?;
    let service = service.clone();
    Ok(stream(|out| async move {
        let last = pass_on(pieces, &out).await?;
        // Logs also end when this coordinator does: then there is no end, and the reader comes back.
        match service.status(id).await.is_ok_and(|job| job.state.is_over()) {
            true => send(&out, "end", last + 1, "{}".into()).await,
            false => Ok(()),
        }
    }))
}

/// Gives the number of the last event.
async fn pass_on(mut pieces: Flow<LogPiece>, out: &Out) -> Result<u64, HungUp> {
    // Whole lines: those of several workers would else run into each other.
    let mut begun: BTreeMap<(NodeId, u16, Option<Rank>), Vec<u8>> = BTreeMap::new();
    let mut id = 0;
    while let Some(piece) = pieces.next().await {
        id += 1;
        match piece {
            Ok(LogPiece::Text { node, rank, slot, text }) => {
                let rest = begun.entry((node.clone(), slot, rank)).or_default();
                rest.extend_from_slice(&text);
                let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { continue };
                let whole: Vec<u8> = rest.drain(..=end).collect();
                let text = String::from_utf8_lossy(&whole);
                let lines: Vec<&str> = text.lines().collect();
                let data = json!({ "node": node, "slot": slot, "rank": rank, "lines": lines });
                send(out, "lines", id, data.to_string()).await?;
            }
            Ok(LogPiece::Missing { node, why }) => {
                send(out, "missing", id, json!({ "node": node, "why": why }).to_string()).await?;
            }
            Err(refusal) => send(out, "missing", id, json!({ "why": refusal.to_string() }).to_string()).await?,
        }
    }
    Ok(id)
}

/// Events that wait for a slow reader.
const EVENTS_AHEAD: usize = 2;
/// So that nobody between takes a quiet stream for a dead one.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Of each worker that printed before the reader came.
const LOG_TAIL_BYTES: u64 = 32 << 10;
