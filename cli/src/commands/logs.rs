//! `elastic logs JOB`: what the workers print, from all nodes.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::{reach, signals};
use anyhow::{Context, Result};
use elastic_spec::api::{LogPiece, LogsQuery};
use elastic_spec::{Gen, JobId, NodeId, Rank};
use std::collections::BTreeMap;
use std::io::Write;
use tokio_stream::StreamExt;

pub async fn run(args: args::Logs) -> Outcome {
    let job = JobId::parse(&args.job).map_err(mistake)?;
    let query = LogsQuery { job, rank: args.rank.map(Rank), gen_: args.gen_.map(Gen), follow: args.follow };
    let mut pieces = reach::connect(&args.reach).await?.logs(query).await.context("ask for the logs")?;
    let mut printer = Printer { json: args.json, open: BTreeMap::new() };
    let interrupted = signals::interrupted();
    tokio::pin!(interrupted);
    loop {
        let piece = tokio::select! {
            piece = pieces.next() => piece,
            () = &mut interrupted => return Ok(Exit::Interrupted),
        };
        match piece {
            Some(piece) => printer.take(piece.context("read the logs")?)?,
            None => break,
        }
    }
    printer.finish()?;
    Ok(Exit::Ok)
}

/// Puts whole lines together: pieces of several logs come mixed.
struct Printer {
    json: bool,
    open: BTreeMap<(NodeId, u16), (Option<Rank>, Vec<u8>)>,
}

impl Printer {
    fn take(&mut self, piece: LogPiece) -> Result<()> {
        match piece {
            LogPiece::Missing { node, why } => {
                eprintln!("logs of {node} are missing: {why}");
                Ok(())
            }
            LogPiece::Text { node, rank, slot, text } => {
                let (open_rank, open) = self.open.entry((node.clone(), slot)).or_insert((rank, Vec::new()));
                *open_rank = rank;
                open.extend_from_slice(&text);
                let whole = open.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                let lines: Vec<u8> = open.drain(..whole).collect();
                lines.split_inclusive(|b| *b == b'\n').try_for_each(|line| print(self.json, &node, rank, slot, line))
            }
        }
    }

    fn finish(self) -> Result<()> {
        let rest = self.open.into_iter().filter(|(_, (_, text))| !text.is_empty());
        rest.into_iter().try_for_each(|((node, slot), (rank, text))| print(self.json, &node, rank, slot, &text))
    }
}

fn print(json: bool, node: &NodeId, rank: Option<Rank>, slot: u16, line: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\n');
    let line = match (json, rank) {
        (true, _) => serde_json::json!({ "node": node, "slot": slot, "rank": rank, "text": text }).to_string(),
        (false, Some(rank)) => format!("[rank {rank} {node}/{slot}] {text}"),
        (false, None) => format!("[{node}/{slot}] {text}"),
    };
    match writeln!(std::io::stdout(), "{line}") {
        // `elastic logs … | head` has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.context("print"),
    }
}
