//! The operations on objects, the same on a folder, on S3 and in memory.

use crate::address::Address;
use crate::blobs::Blobs;
use crate::cause::{Cause, Meaning};
use crate::error::Error;
use crate::patience::{Patience, Tries};
use crate::upload::Upload;
use crate::{PUT_NEW_BYTES_MAX, Result, name, s3};
use bytes::{Bytes, BytesMut};
use elastic_spec::Digest;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::aws::AmazonS3;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, UpdateVersion};
use sha2::Digest as _;
use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::AsyncWriteExt;

/// Larger objects are read in pieces of so many bytes, which are asked for again one by one …
pub(crate) const PIECE_BYTES: u64 = 8 << 20;
/// … and so many at once.
const PIECES_AT_ONCE: usize = 4;

/// Objects under one prefix. A clone is the same store.
#[derive(Clone)]
pub struct Store {
    backend: Backend,
    address: Arc<Address>,
    patience: Patience,
    /// Below the address, for a store made by [`Store::under`].
    prefix: String,
}

#[derive(Clone)]
pub(crate) enum Backend {
    Folder(Arc<LocalFileSystem>),
    S3(Arc<AmazonS3>),
    Memory(Arc<InMemory>),
}

/// What is known of an object without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub bytes: u64,
    /// For persons, and for how long something has been left lying: the store's clock.
    pub modified: SystemTime,
    /// Changes with the bytes.
    pub etag: Option<String>,
}

/// A line of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// As the other calls take it: without the store's own prefix.
    pub name: String,
    pub bytes: u64,
    pub modified: SystemTime,
    /// Changes with the bytes.
    pub etag: Option<String>,
}

impl Store {
    /// Opens `s3://bucket/prefix`, `file:///folder` or `/folder` with the settings of the process's environment.
    ///
    /// A folder is made if it is not there; a bucket is not asked for before the first operation.
    pub fn at(address: &str) -> Result<Store> {
        Store::with(&Address::parse(address)?, &|name| std::env::var(name).ok(), Patience::default())
    }

    /// The same with settings of the caller's.
    pub fn with(address: &Address, env: &dyn Fn(&str) -> Option<String>, patience: Patience) -> Result<Store> {
        let (backend, prefix) = match address {
            Address::Folder(path) => (Backend::Folder(Arc::new(folder(path)?)), String::new()),
            Address::S3 { bucket, prefix } => {
                (Backend::S3(Arc::new(s3::open(bucket, env, &patience)?)), prefix.clone())
            }
            Address::Memory => (Backend::Memory(Arc::new(InMemory::new())), String::new()),
        };
        let address = match address {
            Address::S3 { bucket, .. } => Address::S3 { bucket: bucket.clone(), prefix: String::new() },
            other => other.clone(),
        };
        Ok(Store { backend, address: Arc::new(address), patience, prefix })
    }

    /// Objects of this process alone, gone with it: for tests.
    pub fn memory() -> Store {
        Store::with(&Address::Memory, &|_| None, Patience::default()).expect("memory needs no settings")
    }

    /// The same store, deeper: names are then relative to `prefix`.
    pub fn under(&self, prefix: &str) -> Result<Store> {
        name::check(prefix)?;
        Ok(Store { prefix: name::join(&self.prefix, prefix), ..self.clone() })
    }

    /// Bytes named by their SHA-256, in `blobs/` of this store.
    pub fn blobs(&self) -> Blobs {
        Blobs::new(self.clone())
    }

    /// The whole address of an object: what messages say, and what [`Store::at`] takes for a prefix.
    pub fn place(&self, name: &str) -> String {
        match (&*self.address, name::join(&self.prefix, name)) {
            (address, name) if name.is_empty() => address.to_string(),
            (address, name) => format!("{address}/{name}"),
        }
    }

    /// Writes an object, whole or not at all; one that is there is replaced.
    pub async fn put(&self, name: &str, bytes: impl Into<Bytes>) -> Result<()> {
        let mut upload = self.upload(name, None)?;
        upload.push(bytes.into()).await?;
        upload.finish().await
    }

    /// Writes an object if there is none of this name. True if this call made it: of several that try at once, exactly
    /// one is told so.
    ///
    /// If an answer is lost on the way, the object is read to see whose it is. So two callers that send the very same
    /// bytes may both be told true: whoever takes a name for himself must put his own mark into the bytes.
    pub async fn put_new(&self, name: &str, bytes: impl Into<Bytes>) -> Result<bool> {
        self.put_if(name, bytes.into(), PutMode::Create).await
    }

    /// Replaces the object that has this `etag` (of [`Store::head`]; None: there is none). False: it is another by now.
    ///
    /// If an answer is lost on the way, the object is read to see whose it is, as in [`Store::put_new`]: who must know puts
    /// a mark of his own into the bytes. Not in a folder, whose processes have locks.
    pub async fn put_over(&self, name: &str, bytes: impl Into<Bytes>, etag: Option<String>) -> Result<bool> {
        let mode = match etag {
            None => PutMode::Create,
            etag => PutMode::Update(UpdateVersion { e_tag: etag, version: None }),
        };
        self.put_if(name, bytes.into(), mode).await
    }

    async fn put_if(&self, name: &str, bytes: Bytes, mode: PutMode) -> Result<bool> {
        let key = self.key(name)?;
        if bytes.len() as u64 > PUT_NEW_BYTES_MAX {
            let (bytes, limit) = (bytes.len() as u64, PUT_NEW_BYTES_MAX);
            return Err(Error::TooLarge { place: self.place(name), bytes, limit });
        }
        let (mut tries, mut is_doubtful) = (self.tries(), false);
        loop {
            let options = PutOptions::from(mode.clone());
            match tries.once(self.backend.get().put_opts(&key, bytes.clone().into(), options)).await {
                Ok(_) => return Ok(true),
                // One that is gone is another, too.
                Err(Meaning::Exists | Meaning::Replaced | Meaning::NotFound) if !is_doubtful => return Ok(false),
                Err(Meaning::Exists | Meaning::Replaced | Meaning::NotFound) => {
                    let there = self.get(name, PUT_NEW_BYTES_MAX).await;
                    return match there {
                        Err(Error::TooLarge { .. } | Error::NotFound { .. }) => Ok(false),
                        there => Ok(there? == bytes),
                    };
                }
                Err(meaning) => {
                    is_doubtful = true;
                    self.again(&mut tries, "write", name, meaning).await?;
                }
            }
        }
    }

    /// Copies a local file into the store. Gives its length.
    pub async fn put_file(&self, name: &str, path: &Path) -> Result<u64> {
        self.upload_file(name, path, |_| {}).await
    }

    /// An object written piece by piece; it appears when it is finished. `bytes`: as far as the length is known.
    pub fn upload(&self, name: &str, bytes: Option<u64>) -> Result<Upload> {
        Ok(Upload::new(self.clone(), name.to_string(), self.key(name)?, bytes))
    }

    /// A whole object of at most `limit` bytes.
    pub async fn get(&self, name: &str, limit: u64) -> Result<Bytes> {
        let key = self.key(name)?;
        let (meta, small) = self
            .patiently("read", name, || async {
                let result = self.backend.get().get_opts(&key, GetOptions::default()).await?;
                let meta = result.meta.clone();
                let small = match meta.size <= limit.min(PIECE_BYTES) {
                    true => Some(result.bytes().await?),
                    false => None,
                };
                Ok((meta, small))
            })
            .await?;
        let bytes = meta.size;
        if bytes > limit {
            return Err(Error::TooLarge { place: self.place(name), bytes, limit });
        }
        if let Some(small) = small {
            return Ok(small);
        }
        let ranges = (0..bytes).step_by(PIECE_BYTES as usize).map(|at| at..(at + PIECE_BYTES).min(bytes));
        let pieces = ranges.map(|range| self.piece(name, &key, range, meta.e_tag.clone()));
        let mut pieces = stream::iter(pieces).buffered(PIECES_AT_ONCE);
        let mut whole = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            whole.extend_from_slice(&piece?);
        }
        Ok(whole.freeze())
    }

    /// Copies an object of at most `limit` bytes into a new local file, with a few pieces in memory. Gives its length and
    /// the SHA-256 of what was written. After an error the file holds the beginning.
    pub async fn get_file(&self, name: &str, path: &Path, limit: u64) -> Result<(u64, Digest)> {
        let key = self.key(name)?;
        let meta = self.head(name).await?.ok_or_else(|| Error::NotFound { place: self.place(name) })?;
        let bytes = meta.bytes;
        if bytes > limit {
            return Err(Error::TooLarge { place: self.place(name), bytes, limit });
        }
        let bad = |error| Error::File { path: path.to_path_buf(), error };
        let mut file = tokio::fs::File::create(path).await.map_err(bad)?;
        let ranges = (0..bytes).step_by(PIECE_BYTES as usize).map(|at| at..(at + PIECE_BYTES).min(bytes));
        let pieces = ranges.map(|range| self.piece(name, &key, range, meta.etag.clone()));
        let mut pieces = stream::iter(pieces).buffered(PIECES_AT_ONCE);
        let mut hash = sha2::Sha256::new();
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            hash.update(&piece);
            file.write_all(&piece).await.map_err(bad)?;
        }
        // Without it a last write may still be under way, and its error lost.
        file.flush().await.map_err(bad)?;
        Ok((bytes, Digest(hash.finalize().into())))
    }

    /// Some bytes of an object, which must have them all.
    pub async fn get_range(&self, name: &str, range: Range<u64>) -> Result<Bytes> {
        self.piece(name, &self.key(name)?, range, None).await
    }

    /// Some bytes of the very object that has this `etag` (of [`Store::head`]).
    pub async fn get_range_of(&self, name: &str, range: Range<u64>, etag: Option<String>) -> Result<Bytes> {
        self.piece(name, &self.key(name)?, range, etag).await
    }

    async fn piece(&self, name: &str, key: &Key, range: Range<u64>, etag: Option<String>) -> Result<Bytes> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let options = GetOptions::new().with_range(Some(GetRange::Bounded(range.clone()))).with_if_match(etag);
        let bytes = self
            .patiently("read", name, || async {
                self.backend.get().get_opts(key, options.clone()).await?.bytes().await
            })
            .await?;
        match bytes.len() as u64 == range.end - range.start {
            true => Ok(bytes),
            false => {
                let bytes = range.start + bytes.len() as u64;
                Err(Error::Short { place: self.place(name), bytes, end: range.end })
            }
        }
    }

    /// None if there is no such object.
    pub async fn head(&self, name: &str) -> Result<Option<Meta>> {
        let key = self.key(name)?;
        let found = self.patiently("look at", name, || self.backend.get().head(&key)).await;
        match found {
            Err(Error::NotFound { .. }) => Ok(None),
            found => {
                let found = found?;
                Ok(Some(Meta { bytes: found.size, modified: found.last_modified.into(), etag: found.e_tag }))
            }
        }
    }

    /// All objects under `prefix`, which is whole parts of names (`a/b` lists `a/b/c` and not `a/bc`), or empty for
    /// all. Sorted by name; an error if there are more than `limit`.
    pub async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<Entry>> {
        if !prefix.is_empty() {
            name::check(prefix)?;
        }
        let whole = name::join(&self.prefix, prefix);
        let key = (!whole.is_empty()).then(|| Key::from(whole.as_str()));
        let found = self
            .patiently("list", prefix, || self.backend.get().list(key.as_ref()).take(limit + 1).try_collect::<Vec<_>>())
            .await?;
        if found.len() > limit {
            return Err(Error::TooMany { place: self.place(prefix), limit });
        }
        let strip = match self.prefix.as_str() {
            "" => 0,
            prefix => prefix.len() + 1,
        };
        let entry = |meta: object_store::ObjectMeta| {
            let name = meta.location.as_ref().get(strip..)?.to_string();
            // What others have put there under names of their own is not ours to touch.
            name::check(&name).ok()?;
            Some(Entry { name, bytes: meta.size, modified: meta.last_modified.into(), etag: meta.e_tag })
        };
        let mut entries: Vec<Entry> = found.into_iter().filter_map(entry).collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    /// One that is not there is no error.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let key = self.key(name)?;
        match self.patiently("delete", name, || self.backend.get().delete(&key)).await {
            Err(Error::NotFound { .. }) => Ok(()),
            done => done,
        }
    }

    /// Within the store, without the bytes passing through here. At most 5 GiB on S3.
    pub async fn copy(&self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (self.key(from)?, self.key(to)?);
        self.patiently("copy", from, || self.backend.get().copy(&source, &target)).await
    }

    fn key(&self, name: &str) -> Result<Key> {
        name::check(name)?;
        Ok(Key::from(name::join(&self.prefix, name)))
    }

    pub(crate) fn backend(&self) -> &Backend {
        &self.backend
    }

    pub(crate) fn tries(&self) -> Tries {
        self.patience.begin()
    }

    /// Waits before the next try, or says what is wrong.
    pub(crate) async fn again(
        &self,
        tries: &mut Tries,
        doing: &'static str,
        name: &str,
        meaning: Meaning,
    ) -> Result<()> {
        match tries.again(&meaning, &self.place(name)).await {
            true => Ok(()),
            false => Err(self.error(doing, name, meaning)),
        }
    }

    pub(crate) fn error(&self, doing: &'static str, name: &str, meaning: Meaning) -> Error {
        let place = self.place(name);
        match meaning {
            Meaning::NotFound => Error::NotFound { place },
            Meaning::Replaced => Error::Replaced { place },
            Meaning::Exists => {
                Error::Failed { doing, place, cause: Cause::Other, detail: "it is there already".into() }
            }
            Meaning::Failed(cause, detail) => Error::Failed { doing, place, cause, detail },
        }
    }

    pub(crate) async fn patiently<T, F>(&self, doing: &'static str, name: &str, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<T, object_store::Error>>,
    {
        let mut tries = self.tries();
        loop {
            match tries.once(call()).await {
                Ok(done) => return Ok(done),
                Err(meaning) => self.again(&mut tries, doing, name, meaning).await?,
            }
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place(""))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({self})")
    }
}

impl Backend {
    pub fn get(&self) -> &dyn ObjectStore {
        match self {
            Backend::Folder(store) => &**store,
            Backend::S3(store) => &**store,
            Backend::Memory(store) => &**store,
        }
    }
}

/// Bytes, names and the folders above them are on the disk when a call returns.
fn folder(path: &Path) -> Result<LocalFileSystem> {
    let bad = |error| Error::File { path: path.to_path_buf(), error };
    std::fs::create_dir_all(path).map_err(bad)?;
    let settings =
        |error: object_store::Error| Error::Settings { address: path.display().to_string(), why: error.to_string() };
    Ok(LocalFileSystem::new_with_prefix(path).map_err(settings)?.with_fsync(true))
}
