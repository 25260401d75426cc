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
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&blobs);
        made.with_context(|| format!("make {}", blobs.display()))?;
        let path = dir.join("coordinator.redb");
        own(&path).with_context(|| format!("close {} to others", path.display()))?;
        let at = path.clone();
        let open = move || Database::create(&at);
        let database = match open() {
            Ok(database) => Mutex::new(Some(database)),
            Err(redb::DatabaseError::DatabaseAlreadyOpen) => {
                anyhow::bail!("{} is in use by another coordinator: stop it, or name another folder", path.display())
            }
            Err(e) => return Err(e).with_context(|| format!("open {}", path.display())),
        };
        let disk = Disk { open: Box::new(open), database, blobs, writes: AtomicU64::new(0) };
        Ok(Embedded { seat: Seat::default(), disk: Arc::new(disk) })
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

/// Opens the database, again if need be.
type Open = dyn Fn() -> Result<Database, redb::DatabaseError> + Send + Sync;

struct Disk {
    open: Box<Open>,
    /// None after an error, until it is needed.
    database: Mutex<Option<Database>>,
    blobs: PathBuf,
    /// Tells apart the unfinished files of blobs that are written side by side.
    writes: AtomicU64,
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

impl Disk {
    /// After one error (a full disk, say) the database refuses everything until it is opened anew.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut slot = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = match slot.take() {
            Some(database) => database,
            None => (self.open)().map_err(away)?,
        };
        let done = work(&database);
        if !matches!(done, Err(StoreError::Away(_))) {
            *slot = Some(database);
        }
        done
    }

    fn next_term(&self, above: Term) -> Result<Term, StoreError> {
        self.with(|database| Disk::raise_term(database, above))
    }

    fn load(&self) -> Result<Vec<Record>, StoreError> {
        self.with(Disk::read_records)
    }

    fn commit(&self, term: Term, records: &[Record]) -> Result<(), StoreError> {
        self.with(|database| Disk::write_records(database, term, records))
    }

    fn raise_term(database: &Database, above: Term) -> Result<Term, StoreError> {
        let write = database.begin_write().map_err(away)?;
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

    fn read_records(database: &Database) -> Result<Vec<Record>, StoreError> {
        let read = database.begin_read().map_err(away)?;
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

    fn write_records(database: &Database, term: Term, records: &[Record]) -> Result<(), StoreError> {
        let write = database.begin_write().map_err(away)?;
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
        let written = File::create(&unfinished).and_then(|mut file| {
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&unfinished, self.blob(digest))
        });
        if written.is_err() {
            // A full disk is not filled further by what is of no use.
            let _ = fs::remove_file(&unfinished);
        }
        written?;
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

/// Makes sure that there is a file which only this user can read: records hold the jobs' secrets.
fn own(path: &Path) -> io::Result<()> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
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

#[cfg(test)]
mod tests {
    use super::*;
    use redb::StorageBackend;
    use std::sync::atomic::AtomicBool;

    /// A file in memory, over several openings, on a disk that may be full.
    #[derive(Clone, Debug, Default)]
    struct Paper {
        bytes: Arc<Mutex<Vec<u8>>>,
        full: Arc<AtomicBool>,
    }

    impl Paper {
        fn room(&self) -> io::Result<()> {
            match self.full.load(Ordering::SeqCst) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => Ok(()),
            }
        }
    }

    impl StorageBackend for Paper {
        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().unwrap().len() as u64)
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            out.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..out.len()]);
            Ok(())
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.room()?;
            self.bytes.lock().unwrap().resize(len as usize, 0);
            Ok(())
        }
        fn sync_data(&self) -> io::Result<()> {
            self.room()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.room()?;
            self.bytes.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_was_full_takes_records_again() {
        let paper = Paper::default();
        let theirs = paper.clone();
        let open = move || Database::builder().create_with_backend(theirs.clone());
        let disk =
            Disk { database: Mutex::new(None), open: Box::new(open), blobs: PathBuf::new(), writes: AtomicU64::new(0) };
        let term = disk.next_term(Term(0)).unwrap();
        let record = |value: &str| Record { key: "job/a".into(), value: Some(value.into()) };
        disk.commit(term, &[record("1")]).unwrap();
        paper.full.store(true, Ordering::SeqCst);
        for _ in 0..2 {
            assert!(matches!(disk.commit(term, &[record("2")]), Err(StoreError::Away(_))));
        }
        paper.full.store(false, Ordering::SeqCst);
        disk.commit(term, &[record("3")]).unwrap();
        assert_eq!(disk.load().unwrap(), [record("3")]);
    }

    #[test]
    fn records_are_for_this_users_eyes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("coordinator.redb");
        for _ in 0..2 {
            drop(Embedded::open(dir.path()).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            // As an earlier version left it.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        }
    }
}
