//! The same for threads that may wait: each call runs on a small runtime of this process and returns when it is done.
//!
//! May be called from any thread, also from one that runs async code (which it then blocks).

use crate::store::{Entry, Meta};
use crate::{Result, blobs};
use bytes::Bytes;
use elastic_spec::Digest;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::mpsc::sync_channel;
use tokio::runtime::{Builder, Runtime};

/// [`crate::Store`], blocking.
#[derive(Clone, Debug)]
pub struct Store(crate::Store);

/// [`crate::Blobs`], blocking.
#[derive(Clone, Debug)]
pub struct Blobs(crate::Blobs);

/// A blob, read to its end. The read that would give the last bytes fails if the digest is wrong.
#[derive(Debug)]
pub struct BlobReader {
    reader: Option<blobs::BlobReader>,
    piece: Bytes,
}

/// [`crate::Upload`], blocking. Dropped before it is finished, it is given up.
pub struct Upload(Option<crate::Upload>);

impl Store {
    pub fn at(address: &str) -> Result<Store> {
        crate::Store::at(address).map(Store)
    }

    pub fn under(&self, prefix: &str) -> Result<Store> {
        self.0.under(prefix).map(Store)
    }

    pub fn blobs(&self) -> Blobs {
        Blobs(self.0.blobs())
    }

    pub fn place(&self, name: &str) -> String {
        self.0.place(name)
    }

    pub fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let (store, name, bytes) = (self.0.clone(), name.to_string(), bytes.into());
        wait(async move { store.put(&name, bytes).await })
    }

    pub fn put_new(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool> {
        let (store, name, bytes) = (self.0.clone(), name.to_string(), bytes.into());
        wait(async move { store.put_new(&name, bytes).await })
    }

    pub fn put_over(&self, name: &str, bytes: impl Into<Bytes>, etag: Option<String>) -> Result<bool> {
        let (store, name, bytes) = (self.0.clone(), name.to_string(), bytes.into());
        wait(async move { store.put_over(&name, bytes, etag).await })
    }

    pub fn put_file(&self, name: &str, path: &Path) -> Result<u64> {
        let (store, name, path) = (self.0.clone(), name.to_string(), path.to_path_buf());
        wait(async move { store.put_file(&name, &path).await })
    }

    pub fn upload(&self, name: &str, bytes: Option<u64>) -> Result<Upload> {
        self.0.upload(name, bytes).map(|upload| Upload(Some(upload)))
    }

    pub fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        let (store, name) = (self.0.clone(), name.to_string());
        wait(async move { store.get(&name, limit).await })
    }

    pub fn get_file(&self, name: &str, path: &Path, limit: u64) -> Result<(u64, Digest)> {
        let (store, name, path) = (self.0.clone(), name.to_string(), path.to_path_buf());
        wait(async move { store.get_file(&name, &path, limit).await })
    }

    pub fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        let (store, name) = (self.0.clone(), name.to_string());
        wait(async move { store.get_range(&name, range).await })
    }

    pub fn head(&self, name: &str) -> Result<Option<Meta>> {
        let (store, name) = (self.0.clone(), name.to_string());
        wait(async move { store.head(&name).await })
    }

    pub fn list(&self, prefix: &str, limit: usize) -> Result<Vec<Entry>> {
        let (store, prefix) = (self.0.clone(), prefix.to_string());
        wait(async move { store.list(&prefix, limit).await })
    }

    pub fn delete(&self, name: &str) -> Result<()> {
        let (store, name) = (self.0.clone(), name.to_string());
        wait(async move { store.delete(&name).await })
    }

    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        let (store, from, to) = (self.0.clone(), from.to_string(), to.to_string());
        wait(async move { store.copy(&from, &to).await })
    }
}

impl From<crate::Store> for Store {
    fn from(store: crate::Store) -> Store {
        Store(store)
    }
}

impl std::fmt::Display for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Blobs {
    pub fn place(&self, digest: &Digest) -> String {
        self.0.place(digest)
    }

    pub fn put(&self, bytes: impl Into<Bytes>) -> Result<Digest> {
        let (blobs, bytes) = (self.0.clone(), bytes.into());
        wait(async move { blobs.put(bytes).await })
    }

    pub fn put_file(&self, path: &Path) -> Result<(Digest, u64)> {
        let (blobs, path) = (self.0.clone(), path.to_path_buf());
        wait(async move { blobs.put_file(&path).await })
    }

    pub fn exists(&self, digest: &Digest) -> Result<Option<u64>> {
        let (blobs, digest) = (self.0.clone(), *digest);
        wait(async move { blobs.exists(&digest).await })
    }

    pub fn get(&self, digest: &Digest, limit: u64) -> Result<Bytes> {
        let (blobs, digest) = (self.0.clone(), *digest);
        wait(async move { blobs.get(&digest, limit).await })
    }

    pub fn get_file(&self, digest: &Digest, path: &Path) -> Result<u64> {
        let (blobs, digest, path) = (self.0.clone(), *digest, path.to_path_buf());
        wait(async move { blobs.get_file(&digest, &path).await })
    }

    pub fn open(&self, digest: &Digest) -> Result<BlobReader> {
        let (blobs, digest) = (self.0.clone(), *digest);
        let reader = wait(async move { blobs.open(&digest).await })?;
        Ok(BlobReader { reader: Some(reader), piece: Bytes::new() })
    }

    pub fn delete(&self, digest: &Digest) -> Result<()> {
        let (blobs, digest) = (self.0.clone(), *digest);
        wait(async move { blobs.delete(&digest).await })
    }

    pub fn list(&self, limit: usize) -> Result<Vec<(Digest, Entry)>> {
        let blobs = self.0.clone();
        wait(async move { blobs.list(limit).await })
    }
}

impl io::Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !out.is_empty() {
            let Some(mut reader) = self.reader.take() else { return Ok(0) };
            let (reader, piece) = wait(async move {
                let piece = reader.next().await;
                (reader, piece)
            });
            // Kept also after an error: whoever reads on gets an error again, never a seeming end.
            self.reader = Some(reader);
            match piece.map_err(io::Error::from)? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = out.len().min(self.piece.len());
        out[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

impl Upload {
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // Copied once: the pieces of callers are small beside a part.
        let bytes = Bytes::copy_from_slice(bytes);
        let mut upload = self.0.take().expect("an upload is used until it is finished");
        let (upload, written) = wait(async move {
            let written = upload.write(&bytes).await;
            (upload, written)
        });
        self.0 = Some(upload);
        written
    }

    pub fn finish(mut self) -> Result<()> {
        let upload = self.0.take().expect("an upload is used until it is finished");
        wait(upload.finish())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(mut upload) = self.0.take() {
            wait(async move { upload.abort().await });
        }
    }
}

fn wait<T: Send + 'static>(call: impl Future<Output = T> + Send + 'static) -> T {
    let (tell, told) = sync_channel(1);
    runtime().spawn(async move { drop(tell.send(call.await)) });
    told.recv().expect("a call of a store ends with its result")
}

/// Of the whole process and as long as it: dropping one within async code would panic.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(2).max_blocking_threads(8).thread_name("objects").enable_all();
        builder.build().expect("a process may start four threads")
    })
}
