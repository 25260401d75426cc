//! A blob in pieces: cut for the wire, put together with its digest proved.

use crate::convert::{WireError, digest};
use crate::{Refusal, pb};
use bytes::{Bytes, BytesMut};
use elastic_spec::Digest;
use elastic_spec::limits::{BLOB_BYTES_MAX, PIECE_BYTES_MAX};
use tokio_stream::{Stream, StreamExt};
use tonic::Status;

/// The pieces of a blob; an empty one has one piece, which carries the digest.
pub(crate) fn pieces(digest: Digest, bytes: Bytes) -> Vec<pb::BlobPiece> {
    let count = bytes.len().div_ceil(PIECE_BYTES_MAX).max(1);
    (0..count)
        .map(|i| {
            let range = i * PIECE_BYTES_MAX..((i + 1) * PIECE_BYTES_MAX).min(bytes.len());
            let named = (i == 0).then(|| crate::facts::digest_bytes(digest));
            pb::BlobPiece { digest: named, bytes: bytes.slice(range) }
        })
        .collect()
}

/// Takes a whole blob off a stream.
pub(crate) async fn collect(
    mut stream: impl Stream<Item = Result<pb::BlobPiece, Status>> + Unpin,
) -> Result<(Digest, Bytes), Refusal> {
    let mut named = None;
    let mut bytes = BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece?;
        match (&named, &piece.digest) {
            (None, None) => return Err(WireError::new("blob[0].digest", "is missing").into()),
            (None, Some(raw)) => named = Some(digest("blob[0].digest", raw)?),
            (Some(_), None) => {}
            (Some(_), Some(_)) => return Err(WireError::new("blob.digest", "is named twice").into()),
        }
        if bytes.len() + piece.bytes.len() > BLOB_BYTES_MAX {
            let words =
                format!("blob: has more than {BLOB_BYTES_MAX} bytes; put it where every worker sees it instead");
            return Err(Refusal::TooMuch(words));
        }
        bytes.extend_from_slice(&piece.bytes);
    }
    let Some(named) = named else { return Err(WireError::new("blob", "has no piece").into()) };
    let is = Digest::of(&bytes);
    match is == named {
        true => Ok((named, bytes.freeze())),
        false => Err(WireError::new("blob", format_args!("has digest {is}, was announced as {named}")).into()),
    }
}
