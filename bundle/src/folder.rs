//! A directory that appears whole by one rename, or not at all, and never replaces anything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why there is no such directory now.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("{} is there already; name another directory, or remove it first", .0.display())]
    There(PathBuf),
    #[error("write {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Makes `dir` of the files, written in this order. All of it is on the disk when this returns.
pub fn publish(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), FolderError> {
    let taken = fs::symlink_metadata(dir).is_ok();
    if taken && !is_empty_dir(dir) {
        return Err(FolderError::There(dir.into()));
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io_at(parent))?;
    let beside = make_beside(parent, dir)?;
    let moved = fill(&beside, files).and_then(|()| fs::rename(&beside, dir).map_err(io_at(dir)));
    if moved.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    moved?;
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_at(parent))
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<> {
    let path = path.to_path_buf();
    move |error| FolderError::Io { path, error }
}

fn is_empty_dir(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

/// Most directories beside one place: of writers at the same time, and of writers that were killed.
const BESIDE_MAX: u32 = 1000;

/// A directory of this writer alone. Process ids are no names for one: pods that share a disk all have id 1.
fn make_beside(parent: &Path, dir: &Path) -> Result<PathBuf, FolderError> {
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut at = 0;
    loop {
        let beside = parent.join(format!(".{name}.{at}.tmp"));
        match fs::create_dir(&beside) {
            Ok(()) => return Ok(beside),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && at < BESIDE_MAX => at += 1,
            Err(error) => return Err(io_at(&beside)(error)),
        }
    }
}

fn fill(dir: &Path, files: &[(&str, Vec<u8>)]) -> Result<(), FolderError> {
    for (name, bytes) in files {
        let path = dir.join(name);
        put(&path, bytes).map_err(io_at(&path))?;
    }
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_at(dir))
}

fn put(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
