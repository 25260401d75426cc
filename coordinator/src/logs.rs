//! Gathers a job's logs from the agents that keep them.
//!
//! Without `follow` each node's logs come one after the other in the order of views and ranks. With it,
//! every log is read as it grows and new ones are looked for until the job is over and all are read.

use crate::links::LogPlace;
use crate::service::Service;
use elastic_proto::client::NodeLogs;
use elastic_proto::server::{Api, Flow};
use elastic_proto::{Credentials, Refusal};
use elastic_spec::api::{JobStatus, LogFile, LogPiece, LogRead, LogsQuery};
use elastic_spec::{JobId, NodeId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

type Out = mpsc::Sender<Result<LogPiece, Refusal>>;

/// The caller hung up, so nothing more has to be read.
struct HungUp;

/// Where reading begins in what is there when it begins.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Start {
    Beginning,
    /// So many bytes before the end of each worker's newest log; older ones are left out.
    Last(u64),
}

pub(crate) async fn gather(
    service: Service,
    query: LogsQuery,
    job: JobStatus,
    start: Start,
) -> Result<Flow<LogPiece>, Refusal> {
    let (out, flow) = mpsc::channel(PIECES_MAX);
    // Ends with its caller, or with the coordinator.
    tokio::spawn(async move {
        let stopped = service.stopped.clone();
        let work = async {
            match query.follow {
                false => read_once(&service, &query, &job, &out).await,
                true => follow(&service, &query, start, &out).await,
            }
        };
        tokio::select! {
            _ = work => {}
            () = out.closed() => {}
            () = crate::until(stopped) => {}
        }
    });
    Ok(Box::pin(ReceiverStream::new(flow)))
}

async fn read_once(service: &Service, query: &LogsQuery, job: &JobStatus, out: &Out) -> Result<(), HungUp> {
    let attached = match service.log_places().await {
        Ok(attached) => attached,
        Err(e) => return out.send(Err(e)).await.map_err(|_| HungUp),
    };
    for node in job.members.iter().map(|m| &m.node).filter(|n| !attached.contains_key(n)).collect::<BTreeSet<_>>() {
        missing(out, node, "its agent is not attached").await?;
    }
    let mut found = Vec::new();
    for (node, place) in attached {
        match list(service, query, &place).await {
            Ok((logs, files)) => found.extend(files.into_iter().map(|file| (file, node.clone(), logs.clone()))),
            Err(e) => missing(out, &node, &e.to_string()).await?,
        }
    }
    // In the order of views, then ranks; what was written before the first view stands first.
    found.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    for (file, node, logs) in found {
        let part = Part { file, offset: 0, mode: Mode::AsItIs };
        read(&logs, &query.job, &node, part, out).await?;
    }
    Ok(())
}

async fn follow(service: &Service, query: &LogsQuery, start: Start, out: &Out) -> Result<(), HungUp> {
    let mut begun = BTreeSet::new();
    // Nodes whose logs were listed: what appears on them later is read from its beginning.
    let mut listed = BTreeSet::new();
    let mut told = BTreeSet::new();
    let mut readers = JoinSet::new();
    loop {
        // Asked before the logs are listed: once it is over, no new one appears.
        let over = service.status(query.job.clone()).await.is_ok_and(|job| job.state.is_over());
        for (node, place) in service.log_places().await.unwrap_or_default() {
            let (logs, files) = match list(service, query, &place).await {
                Ok(found) => found,
                Err(e) => {
                    if told.insert(node.clone()) {
                        missing(out, &node, &e.to_string()).await?;
                    }
                    continue;
                }
            };
            let newest = newest_of_slots(&files);
            let start = if listed.insert(node.clone()) { start } else { Start::Beginning };
            for file in files {
                if begun.insert((node.clone(), file.name.clone())) {
                    let offset = match start {
                        Start::Beginning => 0,
                        Start::Last(_) if !newest.contains(&file.name) => continue,
                        Start::Last(bytes) => file.bytes.saturating_sub(bytes),
                    };
                    let (logs, job, node, out) = (logs.clone(), query.job.clone(), node.clone(), out.clone());
                    let mode = if over { Mode::AsItIs } else { Mode::AsItGrows };
                    readers.spawn(async move { read(&logs, &job, &node, Part { file, offset, mode }, &out).await });
                }
            }
        }
        if over {
            // Logs that nobody seals any more (their agent died) must not hold the caller for ever.
            let all = async { while readers.join_next().await.is_some() {} };
            let _ = tokio::time::timeout(LAST_WORDS_TIME, all).await;
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_PERIOD) => {}
            () = out.closed() => return Err(HungUp),
        }
        while readers.try_join_next().is_some() {}
    }
}

/// The logs of a node that the query asks for.
async fn list(service: &Service, query: &LogsQuery, place: &LogPlace) -> Result<(NodeLogs, Vec<LogFile>), Refusal> {
    let shown = Credentials { token: Some(place.token.clone()), ..service.credentials.clone() };
    let logs = NodeLogs::connect(&place.address, &shown).await?;
    let mut files = logs.list(&query.job).await?;
    files.retain(|file| {
        let rank = query.rank.is_none_or(|rank| file.rank == Some(rank));
        rank && query.gen_.is_none_or(|g| file.epoch.is_some_and(|epoch| epoch.gen_ == g))
    });
    Ok((logs, files))
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    AsItIs,
    AsItGrows,
}

/// What is read of a log.
struct Part {
    file: LogFile,
    offset: u64,
    mode: Mode,
}

/// The newest log of each slot: they are listed in the order of printing.
fn newest_of_slots(files: &[LogFile]) -> BTreeSet<String> {
    let by_slot: BTreeMap<u16, &LogFile> = files.iter().map(|file| (file.slot, file)).collect();
    by_slot.into_values().map(|file| file.name.clone()).collect()
}

async fn read(logs: &NodeLogs, job: &JobId, node: &NodeId, part: Part, out: &Out) -> Result<(), HungUp> {
    let Part { file, offset, mode } = part;
    let follow = mode == Mode::AsItGrows && !file.sealed;
    let wanted = LogRead { job: job.clone(), name: file.name.clone(), offset, follow };
    let mut pieces = match logs.read(wanted).await {
        Ok(pieces) => pieces,
        Err(e) => return missing(out, node, &format!("{}: {e}", file.name)).await,
    };
    while let Some(piece) = pieces.next().await {
        match piece {
            Ok(text) => {
                let piece = LogPiece::Text { node: node.clone(), rank: file.rank, slot: file.slot, text };
                out.send(Ok(piece)).await.map_err(|_| HungUp)?;
            }
            Err(e) => return missing(out, node, &format!("{}: {e}", file.name)).await,
        }
    }
    Ok(())
}

async fn missing(out: &Out, node: &NodeId, why: &str) -> Result<(), HungUp> {
    out.send(Ok(LogPiece::Missing { node: node.clone(), why: why.to_string() })).await.map_err(|_| HungUp)
}

/// Pieces that wait for a slow caller.
const PIECES_MAX: usize = 16;
const LOOK_PERIOD: Duration = Duration::from_millis(500);
const LAST_WORDS_TIME: Duration = Duration::from_secs(5);
