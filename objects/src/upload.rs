//! An object written piece by piece. It appears, whole, when it is finished, and not before.
//!
//! Small ones are one request. Larger ones are S3's multipart uploads, a few parts under way at a time, each tried
//! again by itself; in a folder they are a file beside, renamed. What a killed process leaves of either is no object:
//! nobody sees it, and `docs/storage.md` says how a bucket gets rid of it.

use crate::Result;
use crate::cause::Meaning;
use crate::error::Error;
use crate::store::{Backend, Store};
use bytes::{Bytes, BytesMut};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStoreExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

/// S3 wants 5 MiB at least, and all parts but the last of one size.
const PART_BYTES: u64 = 8 << 20;
/// S3 takes 10 000.
const PARTS_MAX: u64 = 9_000;
const PARTS_AT_ONCE: usize = 4;
const READ_BYTES: usize = 1 << 20;

pub struct Upload {
    store: Store,
    name: String,
    key: Key,
    part_bytes: usize,
    buffer: BytesMut,
    bytes: u64,
    begun: Begun,
}

enum Begun {
    Not,
    /// In a lock because it is not `Sync`; nobody waits for it.
    File(Mutex<Box<dyn MultipartUpload>>),
    Parts {
        id: String,
        sent: u64,
        done: Vec<(usize, PartId)>,
        running: JoinSet<Result<(usize, PartId)>>,
    },
}

impl Upload {
    pub(crate) fn new(store: Store, name: String, key: Key, bytes: Option<u64>) -> Upload {
        let needed = bytes.unwrap_or(0).div_ceil(PARTS_MAX);
        let part_bytes = PART_BYTES.max(needed.next_multiple_of(1 << 20)) as usize;
        Upload { store, name, key, part_bytes, buffer: BytesMut::new(), bytes: 0, begun: Begun::Not }
    }

    /// After an error the upload is over and nothing of it will appear.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = self.part_bytes - self.buffer.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
            if self.buffer.len() == self.part_bytes && !bytes.is_empty() {
                let part = self.buffer.split().freeze();
                self.part(part).await?;
            }
        }
        Ok(())
    }

    /// Bytes that need not be copied.
    pub async fn push(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            match self.buffer.is_empty() && bytes.len() > self.part_bytes {
                true => self.part_of(&mut bytes).await?,
                false => {
                    let now = bytes.split_to((self.part_bytes - self.buffer.len()).min(bytes.len()));
                    self.write(&now).await?;
                    if self.buffer.len() == self.part_bytes && !bytes.is_empty() {
                        let part = self.buffer.split().freeze();
                        self.part(part).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn part_of(&mut self, bytes: &mut Bytes) -> Result<()> {
        let part = bytes.split_to(self.part_bytes);
        self.part(part).await
    }

    /// The object is there when this returns.
    pub async fn finish(mut self) -> Result<()> {
        let last = self.buffer.split().freeze();
        if let Begun::Not = self.begun {
            let (store, key) = (self.store.backend(), &self.key);
            return self
                .store
                .patiently("write", &self.name, || async {
                    store.get().put(key, last.clone().into()).await.map(|_| ())
                })
                .await;
        }
        if !last.is_empty() {
            self.part(last).await?;
        }
        let finished = self.complete().await;
        if finished.is_err() {
            self.abort().await;
        }
        finished
    }

    /// Gives it up; nothing of it appears.
    pub async fn abort(&mut self) {
        match std::mem::replace(&mut self.begun, Begun::Not) {
            Begun::Not => {}
            Begun::File(file) => {
                let _ = file.into_inner().unwrap_or_else(PoisonError::into_inner).abort().await;
            }
            Begun::Parts { id, mut running, .. } => {
                running.shutdown().await;
                if let Some(store) = self.parts_store() {
                    // Best effort, tried once: what is left lying is invisible.
                    let _ = store.abort_multipart(&self.key, &id).await;
                }
            }
        }
    }

    async fn part(&mut self, part: Bytes) -> Result<()> {
        let sent = self.send(part).await;
        if sent.is_err() {
            self.abort().await;
        }
        sent
    }

    async fn send(&mut self, part: Bytes) -> Result<()> {
        if let Begun::Not = self.begun {
            self.begun = self.begin().await?;
        }
        self.bytes += part.len() as u64;
        match &mut self.begun {
            Begun::Not => Ok(()),
            Begun::File(file) => {
                let put = file.get_mut().unwrap_or_else(PoisonError::into_inner).put_part(part.into());
                // Not tried again: written on, it might have a hole.
                let put = self.store.tries().once(put).await;
                put.map_err(|meaning| self.store.error("write", &self.name, meaning))
            }
            Begun::Parts { id, sent, done, running } => {
                while running.len() >= PARTS_AT_ONCE {
                    done.extend(joined(running).await.transpose()?);
                }
                let (number, id) = (*sent as usize, id.clone());
                *sent += 1;
                let (store, name, key) = (self.store.clone(), self.name.clone(), self.key.clone());
                running.spawn(async move {
                    let parts = parts_of(store.backend()).expect("only such a store has parts");
                    let put = || parts.put_part(&key, &id, number, part.clone().into());
                    store.patiently("write", &name, put).await.map(|part| (number, part))
                });
                Ok(())
            }
        }
    }

    async fn begin(&self) -> Result<Begun> {
        let (store, key) = (&self.store, &self.key);
        match parts_of(store.backend()) {
            None => {
                let begin = || store.backend().get().put_multipart(key);
                Ok(Begun::File(Mutex::new(store.patiently("write", &self.name, begin).await?)))
            }
            Some(parts) => {
                let id = store.patiently("write", &self.name, || parts.create_multipart(key)).await?;
                Ok(Begun::Parts { id, sent: 0, done: Vec::new(), running: JoinSet::new() })
            }
        }
    }

    async fn complete(&mut self) -> Result<()> {
        match &mut self.begun {
            Begun::Not => Ok(()),
            Begun::File(file) => {
                let complete = file.get_mut().unwrap_or_else(PoisonError::into_inner).complete();
                let completed = self.store.tries().once(complete).await;
                completed.map(|_| ()).map_err(|meaning| self.store.error("write", &self.name, meaning))
            }
            Begun::Parts { id, done, running, .. } => {
                while !running.is_empty() {
                    done.extend(joined(running).await.transpose()?);
                }
                done.sort_by_key(|(number, _)| *number);
                let parts: Vec<PartId> = done.drain(..).map(|(_, part)| part).collect();
                let id = id.clone();
                self.complete_parts(&id, parts).await
            }
        }
    }

    async fn complete_parts(&self, id: &String, parts: Vec<PartId>) -> Result<()> {
        let store = self.parts_store().expect("only such a store has parts");
        let (mut tries, mut is_doubtful) = (self.store.tries(), false);
        loop {
            match tries.once(store.complete_multipart(&self.key, id, parts.clone())).await {
                Ok(_) => return Ok(()),
                // The answer to an earlier try was lost: the upload is over, and its object is there.
                Err(Meaning::NotFound) if is_doubtful => {
                    return match self.store.head(&self.name).await? {
                        Some(meta) if meta.bytes == self.bytes => Ok(()),
                        _ => Err(Error::NotFound { place: self.store.place(&self.name) }),
                    };
                }
                Err(meaning) => {
                    is_doubtful = true;
                    self.store.again(&mut tries, "write", &self.name, meaning).await?;
                }
            }
        }
    }

    fn parts_store(&self) -> Option<&dyn MultipartStore> {
        parts_of(self.store.backend())
    }
}

fn parts_of(backend: &Backend) -> Option<&dyn MultipartStore> {
    match backend {
        Backend::Folder(_) => None,
        Backend::S3(store) => Some(&**store),
        Backend::Memory(store) => Some(&**store),
    }
}

async fn joined(running: &mut JoinSet<Result<(usize, PartId)>>) -> Option<Result<(usize, PartId)>> {
    running.join_next().await.map(|ended| ended.expect("sending a part does not panic"))
}

impl Store {
    /// Sends a file; `look` sees every piece on its way.
    pub(crate) async fn upload_file(&self, name: &str, path: &Path, look: impl FnMut(&[u8])) -> Result<u64> {
        let mut upload = self.upload(name, Some(length(path).await?))?;
        let read = each_piece(path, &mut upload, look).await;
        match read {
            Ok(bytes) => upload.finish().await.map(|()| bytes),
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }
}

async fn length(path: &Path) -> Result<u64> {
    let meta = tokio::fs::metadata(path).await;
    Ok(meta.map_err(|error| Error::File { path: path.to_path_buf(), error })?.len())
}

pub(crate) async fn each_piece(path: &Path, upload: &mut Upload, mut look: impl FnMut(&[u8])) -> Result<u64> {
    let bad = |error| Error::File { path: path.to_path_buf(), error };
    let mut file = tokio::fs::File::open(path).await.map_err(bad)?;
    let (mut piece, mut bytes) = (vec![0; READ_BYTES], 0);
    loop {
        let read = file.read(&mut piece).await.map_err(bad)?;
        if read == 0 {
            return Ok(bytes);
        }
        look(&piece[..read]);
        upload.write(&piece[..read]).await?;
        bytes += read as u64;
    }
}
