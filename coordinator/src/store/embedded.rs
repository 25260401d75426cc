//! The default store: one redb file and a folder of blobs, owned by one process.
//!
//! The file's lock is the lease: a second process is told so, and kill -9 frees it. The term is a counter
//! in the file; a commit checks it in its own transaction.

use super::seat::Seat;
use super::{Candidate, Leadership, Store, StoreError, async_trait};
use anyhow::Context;
use bytes::Bytes;
use elastic_control::Record;
use elastic_spec::{Digest, Term};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

#[derive(Debug)]
pub struct Embedded {
    seat: Seat,
    disk: Arc<Disk>,
}

impl Embedded {
    /// Opens the store in `dir`, which is made if need be.
    pub fn open(dir: &Path) -> anyhow::Result<Embedded> {
        let blobs = dir.join("blobs");
        fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
        let path = dir.join("coordinator.redb");
        let database = match Database::create(&path) {
            Ok(database) => database,
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                anyhow::bail!("{} is in use by another coordinator: stop it, or name another folder", path.display())
            }
            Err(e) => return Err(e).with_context(|| format!("open {}", path.display())),
        };
        Ok(Embedded { seat: Seat::default(), disk: Arc::new(Disk { database, blobs, writes: AtomicU64::new(0) }) })
    }

    /// Disk work away from the threads that answer calls.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let disk = self.disk.clone();
        match tokio::task::spawn_blocking(move || work(&disk)).await {
            Ok(done) => done,
            Err(e) => Err(away(e)),
        }
    }
}

#[async_trait]
impl Store for Embedded {
    async fn campaign(&self, candidate: &Candidate) -> Result<Leadership, StoreError> {
        let above = candidate.above;
        loop {
            self.seat.free().await;
            let term = self.on_disk(move |disk| disk.next_term(above)).await?;
            if let Some(leadership) = self.seat.take(term, &candidate.address) {
                return Ok(leadership);
            }
        }
    }

    async fn resign(&self, term: Term) {
        self.seat.leave(term);
    }

    async fn leader(&self) -> Result<Option<String>, StoreError> {
        Ok(self.seat.address())
    }

    async fn load(&self) -> Result<Vec<Record>, StoreError> {
        self.on_disk(Disk::load).await
    }

    async fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError> {
        self.seat.check(term)?;
        let records = records.to_vec();
        self.on_disk(move |disk| disk.commit(term, &records)).await
    }

    async fn put_blob(&self, digest: Digest, bytes: Bytes) -> Result<(), StoreError> {
        self.on_disk(move |disk| disk.put_blob(digest, &bytes).map_err(away)).await
    }

    async fn blob_bytes(&self, digest: Digest) -> Result<Option<u64>, StoreError> {
        self.on_disk(move |disk| Ok(found(fs::metadata(disk.blob(digest)))?.map(|meta| meta.len()))).await
    }

    async fn get_blob(&self, digest: Digest) -> Result<Option<Bytes>, StoreError> {
        self.on_disk(move |disk| Ok(found(fs::read(disk.blob(digest)))?.map(Bytes::from))).await
    }

    async fn sweep_blobs(&self, keep: &BTreeSet<Digest>, age: Duration) -> Result<(), StoreError> {
        let keep = keep.clone();
        self.on_disk(move |disk| disk.sweep(&keep, age).map_err(away)).await
    }
}

#[derive(Debug)]
struct Disk {
    database: Database,
    blobs: PathBuf,
    /// Tells apart the unfinished files of blobs that are written side by side.
    writes: AtomicU64,
}

impl Disk {
    fn next_term(&self, above: Term) -> Result<Term, StoreError> {
        let write = self.database.begin_write().map_err(away)?;
        let next = {
            let mut meta = write.open_table(META).map_err(away)?;
            let last = meta.get(TERM).map_err(away)?.map_or(0, |term| term.value());
            let next = last.max(above.0) + 1;
            meta.insert(TERM, next).map_err(away)?;
            // Made here so that `load` finds it.
            write.open_table(RECORDS).map_err(away)?;
            next
        };
        write.commit().map_err(away)?;
        Ok(Term(next))
    }

    fn load(&self) -> Result<Vec<Record>, StoreError> {
        let read = self.database.begin_read().map_err(away)?;
        let table = match read.open_table(RECORDS) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
            table => table.map_err(away)?,
        };
        let rows = table.iter().map_err(away)?;
        rows.map(|row| {
            let (key, value) = row.map_err(away)?;
            Ok(Record { key: key.value().to_string(), value: Some(value.value().to_vec()) })
        })
        .collect()
    }

    fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError> {
        let write = self.database.begin_write().map_err(away)?;
        {
            let meta = write.open_table(META).map_err(away)?;
            if meta.get(TERM).map_err(away)?.map(|t| t.value()) != Some(term.0) {
                return Err(StoreError::Fenced(term));
            }
            let mut table = write.open_table(RECORDS).map_err(away)?;
            for record in records {
                match &record.value {
                    Some(value) => table.insert(record.key.as_str(), value.as_slice()).map_err(away)?,
                    None => table.remove(record.key.as_str()).map_err(away)?,
                };
            }
        }
        write.commit().map_err(away)
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs.join(digest.to_string())
    }

    fn put_blob(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let unfinished = self.blobs.join(format!("{digest}.{}.part", self.writes.fetch_add(1, Ordering::Relaxed)));
        let mut file = File::create(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, self.blob(digest))?;
        File::open(&self.blobs)?.sync_all()
    }

    fn sweep(&self, keep: &BTreeSet<Digest>, age: Duration) -> io::Result<()> {
        for entry in fs::read_dir(&self.blobs)? {
            let entry = entry?;
            let kept = entry.file_name().to_str().and_then(Digest::parse).is_some_and(|digest| keep.contains(&digest));
            let put = entry.metadata()?.modified()?;
            let is_old = SystemTime::now().duration_since(put).is_ok_and(|since| since >= age);
            if !kept && is_old {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

fn found<T>(read: io::Result<T>) -> Result<Option<T>, StoreError> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(away(e)),
    }
}

/// A disk that is full or torn away may come back, so nothing is given up for it.
fn away(e: impl Display) -> StoreError {
    StoreError::Away(e.to_string())
}

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const RECORDS: TableDefinition<&str, &[u8]> = TableDefinition::new("records");
const TERM: &str = "term";
