//! Bytes named by their SHA-256: `blobs/sha256/<first two digits>/<all digits>`.
//!
//! The same bytes are kept once, however often they are put. Nothing is believed because it is there: what is read is
//! hashed, and bytes that are not those of their name are an error, never handed on as whole.

use crate::Result;
use crate::error::Error;
use crate::store::{Entry, PIECE_BYTES, Store};
use bytes::Bytes;
use elastic_spec::Digest;
use sha2::Digest as _;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[derive(Clone, Debug)]
pub struct Blobs {
    store: Store,
}

impl Blobs {
    pub(crate) fn new(store: Store) -> Blobs {
        Blobs { store }
    }

    /// Where a blob lies in its store.
    pub fn name(digest: &Digest) -> String {
        let digits = digest.to_string();
        format!("blobs/sha256/{}/{digits}", &digits[..2])
    }

    pub fn place(&self, digest: &Digest) -> String {
        self.store.place(&Blobs::name(digest))
    }

    /// Keeps bytes. Those that are there already are not sent again.
    pub async fn put(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        if self.exists(&digest).await? != Some(bytes.len() as u64) {
            self.store.put(&Blobs::name(&digest), bytes).await?;
        }
        Ok(digest)
    }

    /// Keeps a file's bytes. Gives their digest and length.
    pub async fn put_file(&self, path: &Path) -> Result<(Digest, u64)> {
        let (digest, bytes) = hash_file(path).await?;
        if self.exists(&digest).await? == Some(bytes) {
            return Ok((digest, bytes));
        }
        let name = Blobs::name(&digest);
        let mut hash = sha2::Sha256::new();
        let mut upload = self.store.upload(&name, Some(bytes))?;
        let sent = crate::upload::each_piece(path, &mut upload, |piece| hash.update(piece)).await;
        match sent {
            Ok(_) if Digest(hash.finalize().into()) == digest => upload.finish().await.map(|()| (digest, bytes)),
            Ok(_) => {
                upload.abort().await;
                Err(Error::Changed { path: path.to_path_buf(), place: self.store.place(&name) })
            }
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    /// The length of a blob that is there; it was not read.
    pub async fn exists(&self, digest: &Digest) -> Result<Option<u64>> {
        Ok(self.store.head(&Blobs::name(digest)).await?.map(|meta| meta.bytes))
    }

    /// The bytes, verified.
    pub async fn get(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        let bytes = self.store.get(&Blobs::name(digest), limit).await?;
        match Digest::of(&bytes) {
            found if found == *digest => Ok(bytes),
            found => Err(Error::Damaged { place: self.place(digest), found }),
        }
    }

    /// Reads it from its beginning to its end; see [`BlobReader::next`].
    pub async fn open(&self, digest: &Digest) -> Result<BlobReader> {
        let name = Blobs::name(digest);
        match self.store.head(&name).await? {
            None => Err(Error::NotFound { place: self.store.place(&name) }),
            Some(meta) => Ok(BlobReader {
                store: self.store.clone(),
                name,
                digest: *digest,
                bytes: meta.bytes,
                etag: meta.etag,
                at: 0,
                hash: sha2::Sha256::new(),
            }),
        }
    }

    /// Writes it into a file beside `path` and renames that when the bytes have proved whole.
    pub async fn get_file(&self, digest: &Digest, path: &Path) -> Result<u64> {
        let bad = |error| Error::File { path: path.to_path_buf(), error };
        let mut reader = self.open(digest).await?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(format!(".part-{}", std::process::id()));
        let beside = Path::new(&beside);
        let written = async {
            let mut file = tokio::fs::File::create(beside).await.map_err(bad)?;
            while let Some(piece) = reader.next().await? {
                file.write_all(&piece).await.map_err(bad)?;
            }
            file.sync_all().await.map_err(bad)?;
            tokio::fs::rename(beside, path).await.map_err(bad)
        }
        .await;
        if written.is_err() {
            let _ = tokio::fs::remove_file(beside).await;
        }
        written.map(|()| reader.bytes)
    }

    pub async fn delete(&self, digest: &Digest) -> Result<()> {
        self.store.delete(&Blobs::name(digest)).await
    }

    /// Every blob, by digest, with the entry that it lies at.
    pub async fn list(&self, limit: usize) -> Result<Vec<(Digest, Entry)>> {
        let entries = self.store.list("blobs/sha256", limit).await?;
        let digest = |entry: &Entry| Digest::parse(entry.name.rsplit('/').next()?);
        Ok(entries.into_iter().filter_map(|entry| Some((digest(&entry)?, entry))).collect())
    }
}

/// A blob on its way, piece by piece.
#[derive(Debug)]
pub struct BlobReader {
    store: Store,
    name: String,
    digest: Digest,
    bytes: u64,
    etag: Option<String>,
    at: u64,
    hash: sha2::Sha256,
}

impl BlobReader {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next piece; none at the end, where the digest was right. A wrong one is an error instead of the last piece,
    /// so that whoever reads to the end has read the right bytes.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.at == self.bytes {
            // An empty blob has no piece to be refused with.
            return self.check_end().map(|()| None);
        }
        let end = (self.at + PIECE_BYTES).min(self.bytes);
        let piece = self.store.get_range_of(&self.name, self.at..end, self.etag.clone()).await?;
        self.hash.update(&piece);
        self.at = end;
        if self.at == self.bytes {
            self.check_end()?;
        }
        Ok(Some(piece))
    }

    fn check_end(&self) -> Result<()> {
        match Digest(self.hash.clone().finalize().into()) {
            found if found == self.digest => Ok(()),
            found => Err(Error::Damaged { place: self.store.place(&self.name), found }),
        }
    }
}

async fn hash_file(path: &Path) -> Result<(Digest, u64)> {
    let bad = |error| Error::File { path: path.to_path_buf(), error };
    let mut file = tokio::fs::File::open(path).await.map_err(bad)?;
    let (mut hash, mut piece, mut bytes) = (sha2::Sha256::new(), vec![0; 1 << 20], 0);
    loop {
        let read = file.read(&mut piece).await.map_err(bad)?;
        if read == 0 {
            return Ok((Digest(hash.finalize().into()), bytes));
        }
        hash.update(&piece[..read]);
        bytes += read as u64;
    }
}
