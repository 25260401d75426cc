//! Logs come from the agents that keep them, through the coordinator, in the order of views and ranks.

use crate::cluster::{Agent, leader, report, start, submission};
use bytes::Bytes;
use elastic_coordinator::store::Memory;
use elastic_proto::server::{Flow, NodeLogs, async_trait};
use elastic_proto::{Access, Refusal};
use elastic_spec::api::{LogFile, LogPiece, LogRead, LogsQuery};
use elastic_spec::{Epoch, Gen, JobId, Rank};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// An agent's shelf of logs; `sealed` says when the newest one gets its last word.
struct Shelf {
    files: Vec<LogFile>,
    sealed: watch::Receiver<bool>,
}

#[async_trait]
impl NodeLogs for Shelf {
    async fn list(&self, _: JobId) -> Result<Vec<LogFile>, Refusal> {
        Ok(self.files.clone())
    }

    async fn read(&self, read: LogRead) -> Result<Flow<Bytes>, Refusal> {
        let (out, flow) = mpsc::channel(1);
        let mut sealed = self.sealed.clone();
        tokio::spawn(async move {
            let _ = out.send(Ok(Bytes::from(format!("{} begins\n", read.name)))).await;
            if read.follow {
                let _ = sealed.wait_for(|sealed| *sealed).await;
                let _ = out.send(Ok(Bytes::from(format!("{} ends\n", read.name)))).await;
            }
        });
        Ok(Box::pin(ReceiverStream::new(flow)))
    }
}

fn file(gen_: u64, rank: u16) -> LogFile {
    LogFile {
        epoch: Some(Epoch::new(1, gen_)),
        rank: Some(Rank(rank)),
        slot: rank,
        attempt: 1,
        name: format!("gen{gen_}-rank{rank}"),
        bytes: 10,
        sealed: gen_ < 2,
    }
}

/// Serves a shelf; its address.
async fn serve(files: Vec<LogFile>, sealed: watch::Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let shelf = Arc::new(Shelf { files, sealed });
        elastic_proto::server::serve_logs(listener, shelf, &Access::default(), std::future::pending()).await
    });
    address
}

async fn texts(flow: Flow<LogPiece>) -> Vec<String> {
    let all = flow.map(|piece| match piece.unwrap() {
        LogPiece::Text { node, text, .. } => format!("{node}: {}", String::from_utf8_lossy(&text).trim()),
        LogPiece::Missing { node, .. } => format!("{node}: missing"),
    });
    tokio::time::timeout(Duration::from_secs(20), all.collect()).await.expect("the flow ends")
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_all_nodes_come_in_the_order_of_views_and_ranks() {
    let (seal, sealed) = watch::channel(false);
    let running = start(Arc::new(Memory::new()));
    let coordinator = leader(&running.address).await;
    let job = coordinator.submit(submission("digits")).await.unwrap();
    let mut agents = Vec::new();
    for (node, files) in [("n1", vec![file(1, 1), file(2, 0)]), ("n2", vec![file(1, 0), file(2, 1)])] {
        let mut first = report(node);
        first.log_address = serve(files, sealed.clone()).await;
        agents.push(Agent::attach(&coordinator, first).await.unwrap());
    }
    // Nobody serves there.
    agents.push(Agent::attach(&coordinator, report("n3")).await.unwrap());

    let query = LogsQuery { job: job.clone(), rank: None, gen_: None, follow: false };
    let all = ["n3: missing", "n2: gen1-rank0 begins", "n1: gen1-rank1 begins", "n1: gen2-rank0 begins"];
    let found = texts(coordinator.logs(query.clone()).await.unwrap()).await;
    assert_eq!(found[..4], all.map(String::from));
    let one = LogsQuery { rank: Some(Rank(0)), gen_: Some(Gen(2)), ..query.clone() };
    let found = texts(coordinator.logs(one).await.unwrap()).await;
    assert_eq!(found, ["n3: missing", "n1: gen2-rank0 begins"].map(String::from));

    let follow = LogsQuery { rank: Some(Rank(1)), follow: true, ..query.clone() };
    let flow = coordinator.logs(follow).await.unwrap();
    let reader = tokio::spawn(texts(flow));
    coordinator.cancel(&job).await.unwrap();
    seal.send_replace(true);
    let mut found = reader.await.unwrap();
    found.sort();
    assert!(found.contains(&"n2: gen2-rank1 begins".to_string()), "{found:?}");
    assert!(found.contains(&"n1: gen1-rank1 begins".to_string()), "{found:?}");

    let unknown = LogsQuery { job: JobId::parse("unknown").unwrap(), ..query };
    assert!(matches!(coordinator.logs(unknown).await.err(), Some(Refusal::NotFound(_))));
    running.stop();
}
