//! The few file operations that checkpoints are made of, so that a simulated disk can stand in for the real one.
//!
//! What each of them promises after a power failure is what POSIX promises and no more: bytes only after
//! [`DiskFile::sync`], names only after [`Disk::sync_dir`].

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

pub trait Disk: Send + Sync {
    /// Creates `path` and what is missing above it, names synced.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// A new file; an error if there is one already.
    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// Renames a directory; [`io::ErrorKind::AlreadyExists`] if the new name is taken.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a directory and all in it.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted; empty if there is no such directory.
    fn names(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Length of a file in bytes.
    fn len(&self, path: &Path) -> io::Result<u64>;
    /// The first `limit` bytes of a file, or all if it is shorter. Memory grows with what was really read.
    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
}

pub trait DiskFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// When this returns, everything written is on the disk.
    fn sync(&mut self) -> io::Result<()>;
}

/// The machine's own file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Fs;

struct FsFile(io::BufWriter<File>);

impl DiskFile for FsFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.flush()?;
        self.0.get_ref().sync_all()
    }
}

impl Disk for Fs {
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            self.create_dir_all(parent)?;
        }
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_dir(parent_of(path)),
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        // One write a mebibyte: models have many small tensors.
        Ok(Box::new(FsFile(io::BufWriter::with_capacity(1 << 20, File::create_new(path)?))))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // Some network file systems know no NOREPLACE. A plain rename of a directory never replaces one
            // that has anything in it, which is all that is needed here.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
                if to.exists() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(from, to).map_err(|error| match error.kind() {
                    io::ErrorKind::DirectoryNotEmpty => io::ErrorKind::AlreadyExists.into(),
                    _ => error,
                })
            }
            other => Ok(other?),
        }
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir_all(path)
    }

    fn names(&self, dir: &Path) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // A name that is not UTF-8 is not one of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn len(&self, path: &Path) -> io::Result<u64> {
        Ok(fs::metadata(path)?.len())
    }

    fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        let mut file = File::open(path)?.take(limit);
        loop {
            let more = (out.len().max(1 << 20)).min((limit as usize).saturating_sub(out.len()));
            out.try_reserve(more).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
            if more == 0 || (&mut file).take(more as u64).read_to_end(&mut out)? == 0 {
                return Ok(out);
            }
        }
    }
}

pub(crate) fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
