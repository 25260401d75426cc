//! The agents that are attached: one link a node, over which wants go down and reports come up.
//!
//! A want is whole, so a link holds at most the newest one: a slow agent costs no memory.

use crate::ask::Ask;
use elastic_proto::Refusal;
use elastic_proto::server::Flow;
use elastic_spec::NodeId;
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::limits::{NODES_MAX, SUSPECT_MS};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// Tells apart the links of one node, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkId(pub u64);

/// The driver's end of a link. Dropping it ends the link.
pub(crate) type Wants = watch::Sender<Option<NodeWant>>;

#[derive(Default)]
pub(crate) struct Links {
    by_node: BTreeMap<NodeId, Link>,
}

struct Link {
    id: LinkId,
    wants: Wants,
    incarnation: u64,
    log: LogPlace,
    heard: Instant,
}

/// Where a node's logs are read, and what must be shown there.
#[derive(Clone)]
pub(crate) struct LogPlace {
    pub address: String,
    pub token: String,
}

impl LogPlace {
    fn of(report: &NodeReport) -> LogPlace {
        LogPlace { address: report.log_address.clone(), token: report.log_token.clone() }
    }
}

impl Links {
    /// Takes the place of the node's former link, unless another living agent goes by that name.
    pub fn attach(&mut self, id: LinkId, first: &NodeReport, wants: Wants) -> Result<(), Refusal> {
        match self.by_node.get(&first.node) {
            Some(link) if link.incarnation != first.incarnation && link.heard.elapsed() < SUSPECT => {
                let words = format!("another agent is node {} and alive: give this one another --name", first.node);
                return Err(Refusal::NotNow(words));
            }
            None if self.by_node.len() >= NODES_MAX => {
                return Err(Refusal::TooMuch(format!("{NODES_MAX} nodes are attached, which is the most")));
            }
            _ => {}
        }
        let link = Link { id, wants, incarnation: first.incarnation, log: LogPlace::of(first), heard: Instant::now() };
        self.by_node.insert(first.node.clone(), link);
        Ok(())
    }

    /// Whether this is the node's present link, and so to be believed.
    pub fn hear(&mut self, id: LinkId, report: &NodeReport) -> bool {
        let Some(link) = self.by_node.get_mut(&report.node).filter(|link| link.id == id) else { return false };
        link.heard = Instant::now();
        if (&link.log.address, &link.log.token) != (&report.log_address, &report.log_token) {
            link.log = LogPlace::of(report);
        }
        true
    }

    /// The incarnation of the agent that was lost, if this was the node's present link.
    pub fn detach(&mut self, id: LinkId, node: &NodeId) -> Option<u64> {
        self.by_node.get(node).filter(|link| link.id == id)?;
        self.by_node.remove(node).map(|link| link.incarnation)
    }

    pub fn send(&self, node: &NodeId, want: NodeWant) {
        if let Some(link) = self.by_node.get(node) {
            link.wants.send_replace(Some(want));
        }
    }

    pub fn nodes(&self) -> impl Iterator<Item = &NodeId> {
        self.by_node.keys()
    }

    pub fn log_places(&self) -> BTreeMap<NodeId, LogPlace> {
        self.by_node.iter().map(|(node, link)| (node.clone(), link.log.clone())).collect()
    }
}

/// Attaches an agent and pumps both ways until either side ends.
pub(crate) async fn attach(
    id: LinkId,
    mut reports: Flow<NodeReport>,
    asks: mpsc::Sender<Ask>,
) -> Result<Flow<NodeWant>, Refusal> {
    let first = match tokio::time::timeout(FIRST_REPORT_TIME, reports.next()).await {
        Ok(Some(first)) => Box::new(first?),
        Ok(None) => return Err(Refusal::Invalid("report: the stream ended before the first one".into())),
        Err(_) => return Err(Refusal::Invalid("report: none came within 5 s".into())),
    };
    let node = first.node.clone();
    let (wants, newest) = watch::channel(None);
    let (answer, attached) = oneshot::channel();
    let standby = || Refusal::Standby { leader: None };
    asks.send(Ask::Attach { link: id, first, wants, answer }).await.map_err(|_| standby())?;
    attached.await.map_err(|_| standby())??;
    let (out, flow) = mpsc::channel(1);
    // Lives as long as its connection.
    tokio::spawn(async move {
        pump(id, &node, reports, newest, &asks, out).await;
        // If the driver is gone, there is nobody to tell.
        let _ = asks.send(Ask::Detach { link: id, node }).await;
    });
    Ok(Box::pin(ReceiverStream::new(flow)))
}

async fn pump(
    id: LinkId,
    node: &NodeId,
    mut reports: Flow<NodeReport>,
    mut newest: watch::Receiver<Option<NodeWant>>,
    asks: &mpsc::Sender<Ask>,
    out: mpsc::Sender<Result<NodeWant, Refusal>>,
) {
    loop {
        tokio::select! {
            report = reports.next() => {
                let wrong = match report {
                    None => return,
                    Some(Err(wrong)) => wrong,
                    Some(Ok(report)) if report.node == *node => {
                        match asks.send(Ask::Report { link: id, report: Box::new(report) }).await {
                            Ok(()) => continue,
                            Err(_) => return,
                        }
                    }
                    Some(Ok(report)) => {
                        Refusal::Invalid(format!("report.node: is {} now, this stream is {node}'s", report.node))
                    }
                };
                let _ = out.send(Err(wrong)).await;
                return;
            }
            changed = newest.changed() => {
                // The driver dropped the link: it leads no more, or the node attached again.
                if changed.is_err() {
                    return;
                }
                let want = newest.borrow_and_update().clone();
                if let Some(want) = want && out.send(Ok(want)).await.is_err() {
                    return;
                }
            }
            () = out.closed() => return,
        }
    }
}

const SUSPECT: Duration = Duration::from_millis(SUSPECT_MS);
const FIRST_REPORT_TIME: Duration = Duration::from_secs(5);
