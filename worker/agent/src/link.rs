//! The stream to the coordinator: whole reports up, whole wants down, dialled again for ever.
//!
//! Only the newest report counts, so a slow or absent coordinator costs no queue. What a want means is
//! `node`'s business; that the coordinator is away stops nothing here.

use crate::backoff::Backoff;
use crate::node::FromAbove;
use elastic_proto::client::Coordinator;
use elastic_proto::{Credentials, Refusal};
use elastic_spec::facts::NodeReport;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{info, warn};

/// Ends when the reports end, after the last was sent.
pub async fn keep(
    urls: Vec<String>,
    credentials: Credentials,
    reports: watch::Receiver<NodeReport>,
    above: mpsc::Sender<FromAbove>,
) {
    let mut backoff = Backoff::default();
    loop {
        let refusal = match attach(&urls, &credentials, &reports, &above, &mut backoff).await {
            Ok(()) => Refusal::Unavailable("the coordinator closed the stream".into()),
            Err(refusal) => refusal,
        };
        if reports.has_changed().is_err() || above.send(FromAbove::Detached).await.is_err() {
            return;
        }
        // Once for each absence; what trying again cannot cure is said again.
        if backoff.is_first() || !refusal.is_passing() {
            warn!(%refusal, "no coordinator; workers go on");
        }
        backoff.wait().await;
    }
}

async fn attach(
    urls: &[String],
    credentials: &Credentials,
    reports: &watch::Receiver<NodeReport>,
    above: &mpsc::Sender<FromAbove>,
    backoff: &mut Backoff,
) -> Result<(), Refusal> {
    let coordinator = Coordinator::connect_leader(urls, credentials).await?;
    let (up, stream) = mpsc::channel(1);
    let pump = tokio::spawn(pump(reports.clone(), up));
    let _pump = AbortOnDrop(pump);
    let mut wants = coordinator.attach(ReceiverStream::new(stream)).await?;
    info!(coordinator = coordinator.url(), "attached");
    let _ = above.send(FromAbove::Attached).await;
    while let Some(want) = wants.next().await {
        backoff.reset();
        if above.send(FromAbove::Want(Box::new(want?))).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

/// Passes on the newest report whenever there is one and the stream has room.
async fn pump(mut reports: watch::Receiver<NodeReport>, up: mpsc::Sender<NodeReport>) {
    reports.mark_changed();
    while reports.changed().await.is_ok() {
        let Ok(room) = up.reserve().await else { return };
        room.send(reports.borrow_and_update().clone());
    }
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
