//! Blobs in etcd: pieces first, then the head that makes them a blob.
//!
//! A reader that finds the head finds all pieces; a writer that died in between left pieces that the
//! same blob's next writer puts again.

use super::wire::Keys;
use super::{Etcd, beyond};
use crate::store::StoreError;
use bytes::{Bytes, BytesMut};
use elastic_spec::Digest;
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Of a blob that is there whole.
#[derive(Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Head {
    bytes: u64,
    pieces: usize,
    put_unix_s: u64,
}

pub(super) async fn put(etcd: &Etcd, digest: Digest, bytes: &Bytes) -> Result<(), StoreError> {
    let pieces = bytes.len().div_ceil(PIECE_BYTES);
    for i in 0..pieces {
        let piece = bytes.slice(i * PIECE_BYTES..((i + 1) * PIECE_BYTES).min(bytes.len()));
        etcd.client.put(&piece_key(etcd, digest, i), piece).await?;
    }
    let head = Head { bytes: bytes.len() as u64, pieces, put_unix_s: unix_s() };
    let head = serde_json::to_vec(&head).expect("a head is plain data");
    etcd.client.put(&etcd.key(&format!("{HEADS}{digest}")), head.into()).await
}

async fn head(etcd: &Etcd, digest: Digest) -> Result<Option<Head>, StoreError> {
    let found = etcd.client.get(&etcd.key(&format!("{HEADS}{digest}"))).await?;
    Ok(found.and_then(|json| serde_json::from_slice(&json).ok()))
}

pub(super) async fn length(etcd: &Etcd, digest: Digest) -> Result<Option<u64>, StoreError> {
    Ok(head(etcd, digest).await?.map(|head| head.bytes))
}

pub(super) async fn get(etcd: &Etcd, digest: Digest) -> Result<Option<Bytes>, StoreError> {
    let Some(head) = head(etcd, digest).await? else { return Ok(None) };
    let mut bytes = BytesMut::new();
    for i in 0..head.pieces {
        // Swept between the head and here: gone is gone.
        let Some(piece) = etcd.client.get(&piece_key(etcd, digest, i)).await? else { return Ok(None) };
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.freeze()))
}

pub(super) async fn sweep(etcd: &Etcd, keep: &BTreeSet<Digest>, age: Duration) -> Result<(), StoreError> {
    for (name, json) in etcd.list(HEADS).await? {
        let (Some(digest), Ok(head)) = (Digest::parse(&name), serde_json::from_slice::<Head>(&json)) else { continue };
        if keep.contains(&digest) || unix_s().saturating_sub(head.put_unix_s) < age.as_secs() {
            continue;
        }
        etcd.client.delete(Keys { from: etcd.key(&format!("{HEADS}{digest}")), end: String::new() }).await?;
        let pieces = etcd.key(&format!("{PIECES}{digest}/"));
        etcd.client.delete(Keys { end: beyond(&pieces), from: pieces }).await?;
    }
    Ok(())
}

fn piece_key(etcd: &Etcd, digest: Digest, i: usize) -> String {
    etcd.key(&format!("{PIECES}{digest}/{i:05}"))
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Well below etcd's bound on a request, and quick to write even on a slow disk.
const PIECE_BYTES: usize = 512 << 10;
const HEADS: &str = "blobs/";
const PIECES: &str = "pieces/";
