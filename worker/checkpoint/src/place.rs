//! Where checkpoints lie, as publishing, reading and cleaning see it.
//!
//! A folder publishes by one rename. A store of objects has no rename: there the manifest is written last, and only if
//! nobody has written one of that name. In both, what is staged is no checkpoint to any reader until it is revealed.

use crate::disk::Disk;
use crate::manifest::{MANIFEST, Name};
use crate::write::{PublishError, at};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How a place without renames calls the files of a checkpoint that has no manifest: `<name>.tmp-unpublished`.
pub const UNPUBLISHED: &str = ".tmp-unpublished";

pub trait Place: Send + Sync {
    /// The names in a directory, sorted: checkpoints, and what is half written or half removed. Empty if there is no
    /// such directory.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// The first `limit` bytes of a file, or all if it is shorter.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// Whether it is not the bytes that are at fault but the way to them: then nothing is known of a checkpoint.
    fn is_away(&self, _error: &io::Error) -> bool {
        false
    }
    /// Whether reading all bytes again, only to know which checkpoints may go, costs too much: then those count as whole
    /// whose manifest is, and whose files have their lengths.
    fn is_far(&self) -> bool {
        false
    }

    /// Makes a directory, and what is missing above it.
    fn make(&self, dir: &Path) -> Result<(), PublishError>;
    /// Writes all files of a checkpoint where no reader takes them for one. What it gives is for the next two calls.
    fn stage(&self, dir: &Path, name: Name, files: &Staged<'_>) -> Result<PathBuf, PublishError>;
    /// Makes what was staged the checkpoint of that name, at once, and never instead of another.
    fn reveal(&self, dir: &Path, staged: &Path, name: Name, files: &Staged<'_>) -> Result<Revealed, PublishError>;
    /// Removes what was staged.
    fn discard(&self, staged: &Path) -> Result<(), PublishError>;
    /// Takes its name from a damaged checkpoint.
    fn set_aside(&self, dir: &Path, name: Name) -> Result<(), PublishError>;
    /// Removes what [`Place::names`] calls so; a checkpoint goes out of sight first.
    fn remove(&self, dir: &Path, text: &str) -> io::Result<()>;
}

/// The files of a checkpoint. Each is its parts, one behind the other.
pub struct Staged<'a> {
    pub files: Vec<(&'static str, Vec<&'a [u8]>)>,
    pub manifest: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revealed {
    Published,
    /// The name is another's.
    Taken,
}

/// A folder: all files in a directory beside, synced, then one rename.
pub(crate) struct ByRename(pub Arc<dyn Disk>);

impl Place for ByRename {
    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.0.names(dir)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        self.0.len(path)
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        self.0.read(path, limit)
    }

    fn make(&self, dir: &Path) -> Result<(), PublishError> {
        self.0.create_dir_all(dir).map_err(at("create", dir))
    }

    fn stage(&self, dir: &Path, name: Name, files: &Staged<'_>) -> Result<PathBuf, PublishError> {
        let temporary = dir.join(self.free_name(dir, name, "tmp")?);
        let written = self.write_all(&temporary, files);
        if written.is_err() {
            // What is left is not a checkpoint's name, and cleaning finds it.
            let _ = self.0.remove_dir_all(&temporary);
        }
        written.map(|()| temporary)
    }

    fn reveal(&self, dir: &Path, staged: &Path, name: Name, _files: &Staged<'_>) -> Result<Revealed, PublishError> {
        let path = dir.join(name.to_string());
        match self.0.rename_new(staged, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Revealed::Taken),
            renamed => {
                renamed.map_err(at("publish", &path))?;
                self.0.sync_dir(dir).map_err(at("sync", dir))?;
                Ok(Revealed::Published)
            }
        }
    }

    fn discard(&self, staged: &Path) -> Result<(), PublishError> {
        self.0.remove_dir_all(staged).map_err(at("remove", staged))
    }

    fn set_aside(&self, dir: &Path, name: Name) -> Result<(), PublishError> {
        let path = dir.join(name.to_string());
        let aside = dir.join(self.free_name(dir, name, "damaged")?);
        match self.0.rename_new(&path, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed.map_err(at("move aside", &path)),
        }
    }

    /// In one rename, so that a crash leaves no half of a checkpoint under its name.
    fn remove(&self, dir: &Path, text: &str) -> io::Result<()> {
        let path = dir.join(text);
        if Name::parse(text).is_none() {
            return self.0.remove_dir_all(&path);
        }
        let taken = self.0.names(dir)?;
        let mut aside = (0u64..).map(|n| format!("{text}.removed-{}-{n}", std::process::id()));
        let aside = dir.join(aside.find(|a| !taken.contains(a)).expect("a directory does not hold 2^64 names"));
        self.0.rename_new(&path, &aside)?;
        self.0.sync_dir(dir)?;
        self.0.remove_dir_all(&aside)
    }
}

impl ByRename {
    fn write_all(&self, dir: &Path, files: &Staged<'_>) -> Result<(), PublishError> {
        self.0.create_dir(dir).map_err(at("create", dir))?;
        for (name, parts) in &files.files {
            self.write_file(&dir.join(name), parts)?;
        }
        self.write_file(&dir.join(MANIFEST), &[&files.manifest])?;
        self.0.sync_dir(dir).map_err(at("sync", dir))
    }

    fn write_file(&self, path: &Path, parts: &[&[u8]]) -> Result<(), PublishError> {
        let mut file = self.0.create(path).map_err(at("create", path))?;
        for part in parts.iter().filter(|part| !part.is_empty()) {
            file.write(part).map_err(at("write", path))?;
        }
        file.sync().map_err(at("sync", path))
    }

    /// `<name>.<why>-<n>` with the first n that nobody has.
    fn free_name(&self, dir: &Path, name: Name, why: &str) -> Result<String, PublishError> {
        let taken = self.0.names(dir).map_err(at("list", dir))?;
        let mut candidates = (0u64..).map(|n| format!("{name}.{why}-{}-{n}", std::process::id()));
        Ok(candidates.find(|candidate| !taken.contains(candidate)).expect("a directory does not hold 2^64 names"))
    }
}
