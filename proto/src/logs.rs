//! Logs on the wire: what an agent keeps, and pieces of it.

use crate::convert::{Wire, WireError, at_most, job, list, maybe, message, node, rank, small, text, word};
use crate::pb;
use elastic_spec::Gen;
use elastic_spec::api::{LogFile, LogPiece, LogRead, LogsQuery};
use elastic_spec::limits::PIECE_BYTES_MAX;

message!(LogRead, "read");
message!(LogsQuery, "logs");
message!(LogPiece, "piece");

impl Wire for LogFile {
    type Pb = pb::LogFile;

    fn read(pb: pb::LogFile) -> Result<LogFile, WireError> {
        Ok(LogFile {
            epoch: maybe("epoch", pb.epoch)?,
            rank: pb.rank.map(|r| rank("rank", r)).transpose()?,
            slot: small("slot", pb.slot)?,
            attempt: pb.attempt,
            name: word("name", pb.name)?,
            bytes: pb.bytes,
            sealed: pb.sealed,
        })
    }

    fn write(self) -> pb::LogFile {
        pb::LogFile {
            name: self.name,
            slot: self.slot.into(),
            attempt: self.attempt,
            rank: self.rank.map(|r| r.0.into()),
            epoch: self.epoch.map(Wire::write),
            bytes: self.bytes,
            sealed: self.sealed,
        }
    }
}

impl Wire for Vec<LogFile> {
    type Pb = pb::LogList;

    fn read(pb: pb::LogList) -> Result<Vec<LogFile>, WireError> {
        list("files", pb.files, LOG_FILES_MAX)
    }

    fn write(mut self) -> pb::LogList {
        self.truncate(LOG_FILES_MAX);
        pb::LogList { files: self.into_iter().map(Wire::write).collect() }
    }
}

impl Wire for LogRead {
    type Pb = pb::LogRead;

    fn read(pb: pb::LogRead) -> Result<LogRead, WireError> {
        let name = word("name", pb.name)?;
        Ok(LogRead { job: job("job", pb.job)?, name, offset: pb.offset, follow: pb.follow })
    }

    fn write(self) -> pb::LogRead {
        pb::LogRead { job: self.job.to_string(), name: self.name, offset: self.offset, follow: self.follow }
    }
}

impl Wire for LogsQuery {
    type Pb = pb::LogsRequest;

    fn read(pb: pb::LogsRequest) -> Result<LogsQuery, WireError> {
        let rank = pb.rank.map(|r| rank("rank", r)).transpose()?;
        Ok(LogsQuery { job: job("job", pb.job)?, rank, gen_: pb.r#gen.map(Gen), follow: pb.follow })
    }

    fn write(self) -> pb::LogsRequest {
        pb::LogsRequest {
            job: self.job.to_string(),
            rank: self.rank.map(|r| r.0.into()),
            r#gen: self.gen_.map(|g| g.0),
            follow: self.follow,
        }
    }
}

impl Wire for LogPiece {
    type Pb = pb::LogPiece;

    fn read(pb: pb::LogPiece) -> Result<LogPiece, WireError> {
        let node = node("node", pb.node)?;
        match pb.body {
            None => Err(WireError::new("body", "is missing")),
            Some(pb::log_piece::Body::Missing(why)) => Ok(LogPiece::Missing { node, why: text("missing", why)? }),
            Some(pb::log_piece::Body::Text(piece)) => {
                at_most("text.text", "bytes", piece.text.len(), PIECE_BYTES_MAX)?;
                let rank = piece.rank.map(|r| rank("text.rank", r)).transpose()?;
                Ok(LogPiece::Text { node, rank, slot: small("text.slot", piece.slot)?, text: piece.text })
            }
        }
    }

    fn write(self) -> pb::LogPiece {
        let (node, body) = match self {
            LogPiece::Missing { node, why } => (node, pb::log_piece::Body::Missing(crate::convert::cut(why))),
            LogPiece::Text { node, rank, slot, text } => {
                let rank = rank.map(|r| r.0.into());
                (node, pb::log_piece::Body::Text(pb::LogText { rank, slot: slot.into(), text }))
            }
        };
        pb::LogPiece { node: node.to_string(), body: Some(body) }
    }
}

/// Most logs that one node lists for one job; the newest are listed.
const LOG_FILES_MAX: usize = 64 << 10;
