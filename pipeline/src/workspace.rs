//! A workspace: the lineage, the blobs, and the folders of stages under way. One process at a time owns it.

use crate::artifact::{Artifact, Blob};
use crate::lineage::Lineage;
use anyhow::{Context, Result, bail};
use elastic_objects::blocking::{Blobs, Store};
use elastic_spec::Digest;
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

pub struct Workspace {
    pub dir: PathBuf,
    pub lineage: Lineage,
    blobs: Blobs,
    /// Where blobs are on this machine, so that their bytes are hashed before they are taken for whole.
    is_local: bool,
    /// Held as long as the process lives: the kernel lets go of it, also after a kill.
    _lock: File,
}

/// The file of a workspace's lineage.
pub fn lineage_of(dir: &Path) -> PathBuf {
    dir.join("lineage.db")
}

impl Workspace {
    /// Takes it, or says who has it. `address`: where blobs are kept, if not within.
    pub fn take(dir: &Path, address: Option<&str>) -> Result<Workspace> {
        std::fs::create_dir_all(dir).with_context(|| format!("make the workspace {}", dir.display()))?;
        let path = dir.join("lock");
        let mut options = File::options();
        let lock = options.create(true).truncate(false).read(true).write(true).open(&path);
        let lock = lock.with_context(|| format!("open {}", path.display()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another process runs a pipeline in {}; wait for it, or stop it", dir.display())
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| {
                    format!("lock {}: a workspace needs a file system with locks; see store.workspace", path.display())
                });
            }
        }
        let within = dir.join("store").display().to_string();
        let address = address.unwrap_or(&within);
        let store = Store::at(address).with_context(|| format!("open the store {address}"))?;
        let mut lineage = Lineage::open(&lineage_of(dir))?;
        lineage.bury()?;
        let is_local = !address.starts_with("s3://");
        Ok(Workspace { dir: dir.to_path_buf(), lineage, blobs: store.blobs(), is_local, _lock: lock })
    }

    /// The folder of a stage under way: the same for the same work, so that it can be gone on with.
    pub fn work(&self, stage: &str, key: Digest) -> PathBuf {
        self.dir.join("work").join(format!("{stage}-{}", &key.to_string()[..16]))
    }

    /// Keeps a file as a blob.
    pub fn keep(&self, path: &Path, name: &str, counts: bool) -> Result<Blob> {
        let (sha256, bytes) = self.blobs.put_file(path).with_context(|| format!("keep {}", path.display()))?;
        Ok(Blob { name: name.into(), sha256, bytes, counts })
    }

    /// Writes an artifact's blobs into `dir`, under their names; each is compared with its digest.
    pub fn fetch(&self, artifact: &Artifact, dir: &Path) -> Result<()> {
        artifact.blobs.iter().try_for_each(|blob| self.fetch_one(blob, &dir.join(&blob.name)))
    }

    pub fn fetch_one(&self, blob: &Blob, path: &Path) -> Result<()> {
        let folder = path.parent().context("a file lies in a folder")?;
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        self.blobs.get_file(&blob.sha256, path).with_context(|| format!("fetch {}", blob.name))?;
        Ok(())
    }

    /// Why an artifact is not whole; None: it is.
    pub fn lost(&self, artifact: &Artifact) -> Result<Option<String>> {
        let mut seen = BTreeSet::new();
        for blob in artifact.blobs.iter().filter(|blob| seen.insert(blob.sha256)) {
            let told = |what: &str| Some(format!("{} ({}) {what}", blob.name, self.blobs.place(&blob.sha256)));
            let found = self.blobs.exists(&blob.sha256).with_context(|| format!("look for {}", blob.name))?;
            match found {
                None => return Ok(told("is gone")),
                Some(bytes) if bytes != blob.bytes => return Ok(told("has another length")),
                Some(_) => {}
            }
            if self.is_local && !self.is_whole(blob) {
                // It would be in the way of the whole one.
                self.blobs.delete(&blob.sha256).with_context(|| format!("remove the damaged {}", blob.name))?;
                return Ok(told("is damaged"));
            }
        }
        Ok(None)
    }

    fn is_whole(&self, blob: &Blob) -> bool {
        let Ok(mut reader) = self.blobs.open(&blob.sha256) else { return false };
        std::io::copy(&mut reader, &mut std::io::sink()).is_ok()
    }
}

/// A folder, empty.
pub fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("clear {}", dir.display()))?;
    }
    std::fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))
}

/// A file's digest, read piece by piece.
pub fn digest_of(path: &Path) -> Result<(Digest, u64)> {
    use sha2::Digest as _;
    let reading = || format!("read {}", path.display());
    let mut file = File::open(path).with_context(reading)?;
    let mut hash = Hashing(sha2::Sha256::new());
    let bytes = std::io::copy(&mut file, &mut hash).with_context(reading)?;
    Ok((Digest(hash.0.finalize().into()), bytes))
}

struct Hashing(sha2::Sha256);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        sha2::Digest::update(&mut self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifact::Kind;

    #[test]
    fn a_workspace_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = Workspace::take(dir.path(), None).unwrap();
        let told = format!("{:#}", Workspace::take(dir.path(), None).err().unwrap());
        assert!(told.contains("another process runs a pipeline"), "{told}");
        drop(first);
        assert!(Workspace::take(dir.path(), None).is_ok());
    }

    #[test]
    fn what_is_gone_or_damaged_is_found_and_a_damaged_blob_makes_room() {
        let dir = tempfile::tempdir().unwrap();
        let workspace = Workspace::take(&dir.path().join("w"), None).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "content").unwrap();
        let artifact = |blob: Blob| Artifact::new(Kind::Examples, serde_json::Value::Null, vec![blob]);
        let kept = artifact(workspace.keep(&file, "train.csv", true).unwrap());
        assert_eq!(workspace.lost(&kept).unwrap(), None);
        let digits = kept.blobs[0].sha256.to_string();
        let place = dir.path().join("w/store/blobs/sha256").join(&digits[..2]).join(&digits);
        std::fs::write(&place, "CONTENT").unwrap();
        assert!(workspace.lost(&kept).unwrap().unwrap().contains("train.csv"), "another content");
        assert!(workspace.lost(&kept).unwrap().unwrap().ends_with("is gone"));
        workspace.keep(&file, "train.csv", true).unwrap();
        assert_eq!(workspace.lost(&kept).unwrap(), None);
    }
}
