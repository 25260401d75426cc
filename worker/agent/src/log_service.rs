//! Serves this node's logs to the coordinator, which shows them to people.

use crate::launch::state_log_dir;
use crate::logs::{self, Shelf};
use bytes::Bytes;
use elastic_proto::Refusal;
use elastic_proto::server::{Flow, NodeLogs, async_trait};
use elastic_spec::JobId;
use elastic_spec::api::{LogFile, LogRead};
use elastic_spec::limits::PIECE_BYTES_MAX;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A log that is followed is looked at again after so long.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);
const PIECES_AHEAD: usize = 4;

#[derive(Debug)]
pub struct LogService {
    pub state_dir: PathBuf,
    pub shelf: Shelf,
}

impl LogService {
    fn dir(&self, job: &JobId) -> PathBuf {
        self.shelf.dir(job).unwrap_or_else(|| state_log_dir(&self.state_dir, job))
    }
}

#[async_trait]
impl NodeLogs for LogService {
    async fn list(&self, job: JobId) -> Result<Vec<LogFile>, Refusal> {
        let dir = self.dir(&job);
        logs::list(&dir, &self.shelf).map_err(|e| Refusal::Internal(format!("list {}: {e}", dir.display())))
    }

    async fn read(&self, asked: LogRead) -> Result<Flow<Bytes>, Refusal> {
        let dir = self.dir(&asked.job);
        let path = logs::path_of(&dir, &asked.name).filter(|path| path.exists());
        let path = path.ok_or_else(|| Refusal::NotFound(format!("job {} has no log {}", asked.job, asked.name)))?;
        let (pieces, flow) = mpsc::channel(PIECES_AHEAD);
        tokio::spawn(pour(path, asked, self.shelf.clone(), pieces));
        Ok(Box::pin(ReceiverStream::new(flow)))
    }
}

/// Sends pieces until the end of the log, or until nobody listens.
async fn pour(path: PathBuf, asked: LogRead, shelf: Shelf, pieces: mpsc::Sender<Result<Bytes, Refusal>>) {
    let mut offset = asked.offset;
    loop {
        // Asked before the read: what is written between the two is then read in the next turn.
        let goes_on = asked.follow && shelf.is_open(&path);
        match read(&path, offset).await {
            Ok(bytes) if bytes.is_empty() && !goes_on => return,
            Ok(bytes) if bytes.is_empty() => {
                tokio::select! {
                    () = tokio::time::sleep(FOLLOW_EVERY) => {}
                    () = pieces.closed() => return,
                }
            }
            Ok(bytes) => {
                offset += bytes.len() as u64;
                if pieces.send(Ok(bytes.into())).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                let refusal = Refusal::NotFound(format!("read {}: {error}", path.display()));
                let _ = pieces.send(Err(refusal)).await;
                return;
            }
        }
    }
}

async fn read(path: &Path, offset: u64) -> std::io::Result<Vec<u8>> {
    let path = path.to_path_buf();
    let read = tokio::task::spawn_blocking(move || logs::read(&path, offset, PIECE_BYTES_MAX as u64));
    read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))
}
