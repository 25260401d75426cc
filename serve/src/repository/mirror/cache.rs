//! The local directory of a mirror: versions that are whole, put into place at once, and what was left half done.
//!
//! Visible is only what may be served. Everything is made under a hidden name and renamed; whoever scans holds the same
//! lock, so that an exchange is never seen half. Nothing is synced: a directory that is there after a crash is compared
//! with its digests before it counts.

use super::plan::{LABELS, Local, LocalModel, MANIFEST, Mark};
use crate::bundled;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub struct Cache {
    root: PathBuf,
    is_temporary: bool,
    /// True once it is over: nothing is put into place any more.
    arranging: Mutex<bool>,
    /// Locked for as long as the process lives.
    _owner: File,
}

/// Says that the directory is a mirror's, of which address, and who uses it.
const OWNER: &str = ".elastic-mirror";
/// In a version's directory: what it was copied of.
const MARK: &str = ".mark";
const PART: &str = ".part";
const GONE: &str = ".gone";

impl Cache {
    /// One of this process alone, which goes with it.
    pub fn temporary(address: &str) -> Result<Cache, String> {
        let root = std::env::temp_dir().join(format!("elastic-serve-{}", std::process::id()));
        // What a process of the same number left when it was killed, as in a container.
        if root.exists() {
            fs::remove_dir_all(&root).map_err(|error| at(&root, &error))?;
        }
        // Nobody else's eyes, and an error where somebody was quicker to take the name.
        fs::DirBuilder::new().mode(0o700).create(&root).map_err(|error| at(&root, &error))?;
        Cache::open(root, address, true)
    }

    /// One that is kept. It must be empty, or have been one of the same address.
    pub fn kept(root: PathBuf, address: &str) -> Result<Cache, String> {
        Cache::open(root, address, false)
    }

    fn open(root: PathBuf, address: &str, is_temporary: bool) -> Result<Cache, String> {
        fs::create_dir_all(&root).map_err(|error| at(&root, &error))?;
        let owner = root.join(OWNER);
        match fs::read_to_string(&owner) {
            Ok(of) if of.trim_end() == address => {}
            Ok(of) => {
                let (of, dir) = (of.trim_end(), root.display());
                return Err(format!(
                    "{dir} holds copies of {of}, not of {address}: name another directory, or remove it"
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_empty = fs::read_dir(&root).map_err(|error| at(&root, &error))?.next().is_none();
                if !is_empty {
                    let dir = root.display();
                    return Err(format!("{dir} is not empty and no copy of a registry: name an empty directory"));
                }
                fs::write(&owner, format!("{address}\n")).map_err(|error| at(&owner, &error))?;
            }
            Err(error) => return Err(at(&owner, &error)),
        }
        let file = File::open(&owner).map_err(|error| at(&owner, &error))?;
        file.try_lock()
            .map_err(|_| format!("{} is used by another process: name another directory", root.display()))?;
        Ok(Cache { root, is_temporary, arranging: Mutex::new(false), _owner: file })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whoever looks at the directory holds it still.
    pub fn still(&self) -> MutexGuard<'_, bool> {
        self.arranging.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an earlier process left: versions that are whole count, the rest goes.
    pub fn read(&self) -> Local {
        let mut local = Local::default();
        for (name, dir) in directories(&self.root) {
            if name.starts_with('.') {
                let _ = fs::remove_dir_all(dir);
                continue;
            }
            // Read in the bucket before they count.
            let _ = fs::remove_file(dir.join(LABELS));
            let mut model = LocalModel::default();
            for (number, dir) in directories(&dir) {
                let mark = fs::read_to_string(dir.join(MARK)).ok().and_then(|text| Mark::parse(text.trim_end()));
                match (number.parse(), mark.filter(|_| bundled::is_whole(&dir))) {
                    (Ok(number), Some(mark)) => drop(model.versions.insert(number, mark)),
                    _ => drop(fs::remove_dir_all(dir)),
                }
            }
            local.models.insert(name, model);
        }
        local
    }

    /// An empty hidden directory for a version that comes.
    pub fn begin(&self) -> Result<PathBuf, String> {
        let part = self.root.join(PART);
        remove(&part)?;
        fs::create_dir(&part).map_err(|error| at(&part, &error))?;
        Ok(part)
    }

    /// Puts what was begun into place, instead of what is there. The manifest is written here, last.
    pub fn place(&self, model: &str, version: u64, manifest: &[u8], mark: &Mark) -> Result<(), String> {
        let (part, dir) = (self.root.join(PART), self.root.join(model));
        let write = |name: &str, bytes: &[u8]| {
            let path = part.join(name);
            fs::write(&path, bytes).map_err(|error| at(&path, &error))
        };
        write(MANIFEST, manifest)?;
        write(MARK, format!("{mark}\n").as_bytes())?;
        let target = dir.join(version.to_string());
        {
            let _arranging = self.arrange()?;
            fs::create_dir_all(&dir).map_err(|error| at(&dir, &error))?;
            self.set_aside(&target)?;
            if let Err(error) = fs::rename(&part, &target) {
                let _ = fs::rename(self.root.join(GONE), &target);
                return Err(at(&target, &error));
            }
        }
        remove(&self.root.join(GONE))
    }

    pub fn place_labels(&self, model: &str, bytes: &[u8]) -> Result<(), String> {
        let dir = self.root.join(model);
        let (beside, path) = (dir.join(format!(".{LABELS}")), dir.join(LABELS));
        let _arranging = self.arrange()?;
        fs::create_dir_all(&dir).map_err(|error| at(&dir, &error))?;
        fs::write(&beside, bytes).map_err(|error| at(&beside, &error))?;
        fs::rename(&beside, &path).map_err(|error| at(&path, &error))
    }

    pub fn remove_labels(&self, model: &str) -> Result<(), String> {
        let path = self.root.join(model).join(LABELS);
        let _arranging = self.arrange()?;
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&path, &error)),
            _ => Ok(()),
        }
    }

    /// A model, or one version of it.
    pub fn remove(&self, model: &str, version: Option<u64>) -> Result<(), String> {
        let dir = self.root.join(model);
        let target = version.map_or(dir.clone(), |version| dir.join(version.to_string()));
        {
            let _arranging = self.arrange()?;
            self.set_aside(&target)?;
        }
        remove(&self.root.join(GONE))
    }

    fn set_aside(&self, target: &Path) -> Result<(), String> {
        let gone = self.root.join(GONE);
        remove(&gone)?;
        match fs::rename(target, &gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(target, &error)),
            _ => Ok(()),
        }
    }

    fn arrange(&self) -> Result<MutexGuard<'_, bool>, String> {
        let arranging = self.still();
        match *arranging {
            false => Ok(arranging),
            true => Err("the server is ending".into()),
        }
    }

    /// Nothing appears after this; a temporary directory is gone.
    pub fn end(&self) {
        let mut is_over = self.still();
        *is_over = true;
        // A copy that is under way may make one more file meanwhile.
        let gone = |_| !self.is_temporary || remove(&self.root).is_ok();
        let _ = (0..3).any(gone);
    }
}

fn remove(dir: &Path) -> Result<(), String> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(dir, &error)),
        _ => Ok(()),
    }
}

fn directories(dir: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let is_dir = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    is_dir.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
