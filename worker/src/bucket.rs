//! Checkpoints in a bucket: the same guarantees as in a folder, without renames.
//!
//! A checkpoint's files lie under `<name>/`, its manifest is written last and only if there is none: from then on it is
//! one. What has no manifest is shown to cleaning under a name of its own and to nobody else. Two writers never work on one
//! name: it holds step, term and gen, and a view has one writer. In removing, the manifest goes first.

use crate::fail;
use elastic_checkpoint::{MANIFEST, Name, Place, PublishError, Revealed, Staged, UNPUBLISHED};
use elastic_objects::blocking::Store;
use elastic_objects::{Address, Error};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The run's event log beside its checkpoints.
const EVENTS: &str = "events.jsonl";
/// Files of all checkpoints of a run: four each.
const OBJECTS_MAX: usize = 100_000;
/// Largest event log that is read to see whether it says more than ours: 100 bytes for each of ten million steps.
const EVENTS_BYTES_MAX: u64 = 1 << 30;

/// Largest of the other objects beside the checkpoints: a tokenizer, or 200 bytes for each of a million views.
const BESIDE_BYTES_MAX: u64 = 256 << 20;

pub struct Bucket {
    store: Store,
    /// The store's own address, which all paths begin with.
    root: PathBuf,
}

/// Whether checkpoints at this text lie in a bucket.
pub fn is_bucket(text: &str) -> bool {
    Address::is_remote(text)
}

impl Bucket {
    /// Opens `s3://bucket/prefix` as the environment describes it, and gives the path by which checkpoints know it.
    pub fn open(address: &str) -> Result<(Bucket, PathBuf), Error> {
        let address = address.trim_end_matches('/');
        let root = PathBuf::from(address);
        Ok((Bucket { store: Store::at(address)?, root: root.clone() }, root))
    }

    /// Makes the log hold these lines, unless it says all this and more.
    pub fn write_events(&self, text: &str, says_more: impl FnOnce(&str) -> bool) -> Result<(), Error> {
        match self.store.get(EVENTS, EVENTS_BYTES_MAX) {
            Ok(there) if std::str::from_utf8(&there).is_ok_and(says_more) => Ok(()),
            Ok(_) | Err(Error::NotFound { .. } | Error::TooLarge { .. }) => self.store.put(EVENTS, text.to_string()),
            Err(error) => Err(error),
        }
    }

    /// A small object beside the checkpoints; None if it is not there.
    pub fn beside(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.store.get(name, BESIDE_BYTES_MAX) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(Error::NotFound { .. } | Error::TooLarge { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn put_beside(&self, name: &str, bytes: Vec<u8>) -> Result<(), Error> {
        self.store.put(name, bytes)
    }

    /// The name of the object at a path, or the prefix of a directory's.
    fn name(&self, path: &Path) -> io::Result<String> {
        let rest = path.strip_prefix(&self.root).map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not in {}", path.display(), self.root.display()))
        })?;
        let parts: Vec<_> = rest.iter().map(|part| part.to_string_lossy()).collect();
        Ok(parts.join("/"))
    }

    /// Names of the objects under a directory, without it.
    fn under(&self, dir: &Path) -> io::Result<Vec<String>> {
        let prefix = self.name(dir)?;
        let skip = if prefix.is_empty() { 0 } else { prefix.len() + 1 };
        let entries = self.store.list(&prefix, OBJECTS_MAX)?;
        Ok(entries.into_iter().filter_map(|entry| Some(entry.name.get(skip..)?.to_string())).collect())
    }

    fn put(&self, path: &Path, parts: &[&[u8]]) -> io::Result<()> {
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        let mut upload = self.store.upload(&self.name(path)?, Some(bytes))?;
        for part in parts {
            upload.write(part)?;
        }
        Ok(upload.finish()?)
    }

    /// All objects of a checkpoint; the manifest first, so that it is none as soon as something is missing.
    fn delete_all(&self, dir: &Path) -> io::Result<()> {
        self.store.delete(&self.name(&dir.join(MANIFEST))?)?;
        for file in self.under(dir)? {
            self.store.delete(&self.name(&dir.join(file))?)?;
        }
        Ok(())
    }
}

impl Place for Bucket {
    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut found: BTreeMap<String, bool> = BTreeMap::new();
        for object in self.under(dir)? {
            let Some((name, file)) = object.split_once('/') else { continue };
            *found.entry(name.to_string()).or_default() |= file == MANIFEST;
        }
        let shown = |(name, is_whole): (String, bool)| match is_whole || Name::parse(&name).is_none() {
            true => name,
            false => format!("{name}{UNPUBLISHED}"),
        };
        Ok(found.into_iter().map(shown).collect())
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        let meta = self.store.head(&self.name(path)?)?;
        meta.map(|meta| meta.bytes).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let name = self.name(path)?;
        match self.store.get(&name, limit) {
            Err(Error::TooLarge { .. }) => Ok(self.store.get_range(&name, 0..limit)?.into()),
            bytes => Ok(bytes?.into()),
        }
    }

    fn is_away(&self, error: &io::Error) -> bool {
        of_store(error).is_some_and(|error| !matches!(error, Error::NotFound { .. } | Error::Short { .. }))
    }

    fn is_far(&self) -> bool {
        true
    }

    fn make(&self, _dir: &Path) -> Result<(), PublishError> {
        Ok(())
    }

    fn stage(&self, dir: &Path, name: Name, files: &Staged<'_>) -> Result<PathBuf, PublishError> {
        let staged = dir.join(name.to_string());
        for (file, parts) in &files.files {
            let path = staged.join(file);
            self.put(&path, parts).map_err(at("write", &path))?;
        }
        Ok(staged)
    }

    fn reveal(&self, _dir: &Path, staged: &Path, _name: Name, files: &Staged<'_>) -> Result<Revealed, PublishError> {
        let path = staged.join(MANIFEST);
        let publish = || -> io::Result<bool> { Ok(self.store.put_new(&self.name(&path)?, files.manifest.clone())?) };
        fail::point("publish-before-rename");
        let is_new = publish().map_err(at("publish", &path))?;
        fail::point("publish-after-rename");
        Ok(if is_new { Revealed::Published } else { Revealed::Taken })
    }

    /// Of a name that has a manifest by now, what was staged are its files.
    fn discard(&self, staged: &Path) -> Result<(), PublishError> {
        let discard = || match self.len(&staged.join(MANIFEST)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.delete_all(staged),
            other => other.map(|_| ()),
        };
        discard().map_err(at("remove", staged))
    }

    /// Its files were just staged anew: without its manifest it is what was staged.
    fn set_aside(&self, dir: &Path, name: Name) -> Result<(), PublishError> {
        let path = dir.join(name.to_string()).join(MANIFEST);
        let delete = || Ok(self.store.delete(&self.name(&path)?)?);
        delete().map_err(at("move aside", &path))
    }

    fn remove(&self, dir: &Path, text: &str) -> io::Result<()> {
        self.delete_all(&dir.join(text.strip_suffix(UNPUBLISHED).unwrap_or(text)))
    }
}

/// Whether the way to the store is at fault, so that a restart may help.
pub fn is_passing(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref::<io::Error>() {
        Some(io) => of_store(io).is_some_and(Error::is_passing),
        None => cause.downcast_ref::<Error>().is_some_and(Error::is_passing),
    })
}

fn of_store(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublishError {
    let path = path.to_path_buf();
    move |error| PublishError::Disk { doing, path, error }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_checkpoint::{Checkpoints, Contents, Keep, Origin, TensorBytes};
    use elastic_spec::weights::Dtype;
    use elastic_spec::{Digest, Epoch, JobId, Round, Step};
    use std::sync::Arc;

    const ROOT: &str = "s3://models/run";

    fn bucket() -> (Arc<Bucket>, Checkpoints) {
        let bucket = Arc::new(Bucket { store: elastic_objects::Store::memory().into(), root: ROOT.into() });
        (bucket.clone(), Checkpoints::in_place(bucket, ROOT))
    }

    fn contents(step: u64) -> Contents {
        let bytes = (0..3000u32).flat_map(|i| (i + step as u32).to_le_bytes()).collect();
        let tensor = TensorBytes { name: "w".into(), dtype: Dtype::F32, shape: vec![3000], bytes };
        let meta = [("cursor".to_string(), step.to_string())].into();
        let (step, round) = (Step(step), Round(step));
        Contents { step, round, meta, weights: vec![tensor], optimizer: Vec::new(), rows: "rows".into() }
    }

    fn origin(term: u64) -> Origin {
        let (cluster, job) = ("c".to_string(), JobId::parse("j").unwrap());
        Origin { cluster, job, config: Digest::of(b"config"), epoch: Epoch::new(term, 1) }
    }

    fn objects(bucket: &Bucket) -> Vec<String> {
        bucket.under(Path::new(ROOT)).unwrap()
    }

    fn keep(newest: usize) -> Keep {
        Keep { newest, in_use: Vec::new() }
    }

    #[test]
    fn what_is_published_in_a_bucket_is_restored_and_not_written_twice() {
        let (bucket, checkpoints) = bucket();
        assert!(checkpoints.newest_verified().unwrap().newest.is_none());
        let published = checkpoints.publish(&origin(1), &contents(10)).unwrap();
        assert_eq!(published.path.display().to_string(), format!("{ROOT}/step-00000010.t1.g1"));
        assert_eq!(checkpoints.newest_verified().unwrap().newest.unwrap().contents, contents(10));
        assert!(!checkpoints.publish(&origin(1), &contents(10)).unwrap().fresh);
        assert_eq!(objects(&bucket).len(), 4);
        assert_eq!(checkpoints.list().unwrap()[0].path, published.path);
    }

    #[test]
    fn a_newer_leader_in_a_bucket_fences_an_older_one() {
        let (bucket, checkpoints) = bucket();
        checkpoints.publish(&origin(2), &contents(20)).unwrap();
        let before = objects(&bucket);
        let refused = checkpoints.publish(&origin(1), &contents(10)).unwrap_err();
        assert!(matches!(refused, PublishError::Fenced { .. }), "{refused}");
        assert_eq!(objects(&bucket), before, "it has written nothing");
    }

    #[test]
    fn what_has_no_manifest_in_a_bucket_is_no_checkpoint_and_is_cleaned() {
        let (bucket, checkpoints) = bucket();
        checkpoints.publish(&origin(1), &contents(10)).unwrap();
        for half in ["step-00000020.t1.g1", "step-00000030.t2.g1"] {
            bucket.store.put(&format!("{half}/weights.safetensors"), "half").unwrap();
        }
        let found = checkpoints.newest_verified().unwrap();
        assert_eq!((found.newest.unwrap().contents.step, found.refused.len()), (Step(10), 0));
        assert_eq!(checkpoints.list().unwrap().len(), 1);
        checkpoints.clean(&origin(1), &keep(3)).unwrap();
        assert!(!objects(&bucket).iter().any(|name| name.starts_with("step-00000020")), "{:?}", objects(&bucket));
        assert!(
            objects(&bucket).iter().any(|name| name.starts_with("step-00000030")),
            "of a newer leader: it may go on"
        );
    }

    #[test]
    fn damage_in_a_bucket_is_refused_the_one_before_is_taken_and_its_name_can_be_written_again() {
        let (bucket, checkpoints) = bucket();
        checkpoints.publish(&origin(1), &contents(10)).unwrap();
        checkpoints.publish(&origin(1), &contents(20)).unwrap();
        for file in ["weights.safetensors", "manifest.json"] {
            let name = format!("step-00000020.t1.g1/{file}");
            let mut bytes = bucket.store.get(&name, 1 << 20).unwrap().to_vec();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bucket.store.put(&name, bytes).unwrap();
            let found = checkpoints.newest_verified().unwrap();
            assert_eq!((found.newest.unwrap().contents.step, found.refused.len()), (Step(10), 1), "{file}");
            checkpoints.publish(&origin(1), &contents(20)).unwrap();
            assert_eq!(checkpoints.newest_verified().unwrap().newest.unwrap().contents, contents(20), "{file}");
        }
    }

    #[test]
    fn old_checkpoints_in_a_bucket_are_removed_whole() {
        let (bucket, checkpoints) = bucket();
        for step in [10, 20, 30, 40] {
            checkpoints.publish(&origin(1), &contents(step)).unwrap();
            checkpoints.clean(&origin(1), &keep(2)).unwrap();
        }
        let steps: Vec<u64> = checkpoints.list().unwrap().iter().map(|one| one.step.0).collect();
        assert_eq!((steps, objects(&bucket).len()), (vec![40, 30], 8));
    }

    #[test]
    fn a_log_in_a_bucket_is_never_made_shorter() {
        let (bucket, _) = bucket();
        bucket.write_events("one\n", |_| false).unwrap();
        bucket.write_events("other\n", |there| there == "one\n").unwrap();
        assert_eq!(bucket.store.get(EVENTS, 100).unwrap(), "one\n");
        bucket.write_events("one\ntwo\n", |_| false).unwrap();
        assert_eq!(bucket.store.get(EVENTS, 100).unwrap(), "one\ntwo\n");
    }
}
