//! Writes a checkpoint beside the others and publishes it with one rename.
//!
//! Order is everything here: bytes of all files, then their names, then the rename, then the rename's own
//! sync. A crash at any point leaves either no new name or a whole checkpoint under it.
//!
//! Rename is no fence: a publisher that was paused may rename long after others have gone on. It does no
//! harm. Its name holds its own step, term and gen, so it takes nobody's place; publishing never replaces;
//! and with exact reduction the state of a step is the same bits whoever writes it.

use crate::contents::{BadContents, Contents, Origin};
use crate::disk::Disk;
use crate::grid::{Plan, plan, row_file};
use crate::manifest::{FORMAT, FORMAT_VERSION, MANIFEST, Manifest, Name, OPTIMIZER, ROWS, WEIGHTS};
use crate::read;
use elastic_spec::{Digest, Term};
use std::io;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    pub path: PathBuf,
    pub manifest: Manifest,
    /// False: a verified checkpoint of the very same state was there already, and nothing was written.
    pub fresh: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("a newer leader (term {newer}, ours is {ours}) has published {path}: this publisher is out of date")]
    Fenced { newer: Term, ours: Term, path: PathBuf },
    #[error(
        "{path} holds another state of the same step under the same config ({theirs}, ours is {ours}): \
         the run is not exact, or the directory belongs to another run; use an empty one"
    )]
    Diverged { path: PathBuf, theirs: Digest, ours: Digest },
    #[error("{path} is a whole checkpoint of another config: use an empty directory")]
    Taken { path: PathBuf },
    #[error(transparent)]
    Contents(#[from] BadContents),
    #[error("{doing} {path}: {error}")]
    Disk { doing: &'static str, path: PathBuf, error: io::Error },
}

pub(crate) fn publish(
    disk: &dyn Disk,
    dir: &Path,
    origin: &Origin,
    contents: &Contents,
) -> Result<Published, PublishError> {
    contents.check()?;
    let files = Files { weights: plan(&contents.weights), optimizer: plan(&contents.optimizer), rows: &contents.rows };
    let manifest = files.manifest(origin, contents);
    disk.create_dir_all(dir).map_err(at("create", dir))?;
    if let Some(published) = look_around(disk, dir, &manifest)? {
        return Ok(published);
    }
    let name = manifest.name();
    let temporary = dir.join(free_name(disk, dir, name, "tmp")?);
    let written = write_all(disk, &temporary, &files, &manifest)
        .and_then(|()| rename_into_place(disk, dir, &temporary, &manifest));
    if written.is_err() {
        // What is left is not a checkpoint's name, and cleaning finds it.
        let _ = disk.remove_dir_all(&temporary);
    }
    written
}

struct Files<'a> {
    weights: Plan<'a>,
    optimizer: Plan<'a>,
    rows: &'a [u8],
}

impl Files<'_> {
    fn manifest(&self, origin: &Origin, contents: &Contents) -> Manifest {
        Manifest {
            format: FORMAT.to_string(),
            format_version: FORMAT_VERSION,
            cluster: origin.cluster.clone(),
            job: origin.job.clone(),
            config_sha256: origin.config,
            term: origin.epoch.term.0,
            gen_: origin.epoch.gen_.0,
            step: contents.step,
            round: contents.round,
            meta: contents.meta.clone(),
            weights_sha256: contents.weights_digest(),
            state_sha256: contents.state_digest(),
            weights: self.weights.file.clone(),
            optimizer: self.optimizer.file.clone(),
            rows: row_file(self.rows),
        }
    }
}

fn write_all(disk: &dyn Disk, dir: &Path, files: &Files<'_>, manifest: &Manifest) -> Result<(), PublishError> {
    disk.create_dir(dir).map_err(at("create", dir))?;
    for (name, plan) in [(WEIGHTS, &files.weights), (OPTIMIZER, &files.optimizer)] {
        let parts = std::iter::once(&plan.header[..]).chain(plan.tensors.iter().map(|t| &t.bytes[..]));
        write_file(disk, &dir.join(name), parts)?;
    }
    write_file(disk, &dir.join(ROWS), [files.rows])?;
    write_file(disk, &dir.join(MANIFEST), [manifest.to_text().as_bytes()])?;
    disk.sync_dir(dir).map_err(at("sync", dir))
}

fn write_file<'a>(disk: &dyn Disk, path: &Path, parts: impl IntoIterator<Item = &'a [u8]>) -> Result<(), PublishError> {
    let mut file = disk.create(path).map_err(at("create", path))?;
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        file.write(part).map_err(at("write", path))?;
    }
    file.sync().map_err(at("sync", path))
}

/// Looks again, since writing may have taken minutes, and renames.
fn rename_into_place(
    disk: &dyn Disk,
    dir: &Path,
    temporary: &Path,
    manifest: &Manifest,
) -> Result<Published, PublishError> {
    let path = dir.join(manifest.name().to_string());
    loop {
        if let Some(published) = look_around(disk, dir, manifest)? {
            disk.remove_dir_all(temporary).map_err(at("remove", temporary))?;
            return Ok(published);
        }
        match disk.rename_new(temporary, &path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                move_damaged_aside(disk, dir, manifest.name())?
            }
            renamed => {
                renamed.map_err(at("publish", &path))?;
                disk.sync_dir(dir).map_err(at("sync", dir))?;
                return Ok(Published { path, manifest: manifest.clone(), fresh: true });
            }
        }
    }
}

/// Whether what is there already forbids publishing, or makes it unnecessary.
fn look_around(disk: &dyn Disk, dir: &Path, ours: &Manifest) -> Result<Option<Published>, PublishError> {
    let names = read::published(disk, dir).map_err(at("list", dir))?;
    let mut same = None;
    for name in names.into_iter().filter(|name| name.step >= ours.step) {
        let path = dir.join(name.to_string());
        // A damaged one fences nobody: its claims prove nothing.
        let Ok(theirs) = read::manifest(disk, &path) else { continue };
        if theirs.cluster == ours.cluster && theirs.term > ours.term {
            return Err(PublishError::Fenced { newer: Term(theirs.term), ours: Term(ours.term), path });
        }
        // A job that pauses between a step and its validation is of another round of the same step.
        let is_same = (theirs.step, theirs.round, theirs.config_sha256) == (ours.step, ours.round, ours.config_sha256);
        if !is_same {
            continue;
        }
        match read::restore(disk, &path) {
            Ok(_) if theirs.state_sha256 == ours.state_sha256 => {
                same = Some(Published { path, manifest: theirs, fresh: false })
            }
            Ok(_) => {
                let (theirs, ours) = (theirs.state_sha256, ours.state_sha256);
                return Err(PublishError::Diverged { path, theirs, ours });
            }
            Err(_) => continue,
        }
    }
    Ok(same)
}

/// Our very name is taken: by a damaged one, which makes way, or by another run's.
fn move_damaged_aside(disk: &dyn Disk, dir: &Path, name: Name) -> Result<(), PublishError> {
    let path = dir.join(name.to_string());
    if read::restore(disk, &path).is_ok() {
        return Err(PublishError::Taken { path });
    }
    let aside = dir.join(free_name(disk, dir, name, "damaged")?);
    match disk.rename_new(&path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        renamed => renamed.map_err(at("move aside", &path)),
    }
}

/// `<name>.<why>-<n>` with the first n that nobody has.
pub(crate) fn free_name(disk: &dyn Disk, dir: &Path, name: Name, why: &str) -> Result<String, PublishError> {
    let taken = disk.names(dir).map_err(at("list", dir))?;
    let mut candidates = (0u64..).map(|n| format!("{name}.{why}-{}-{n}", std::process::id()));
    Ok(candidates.find(|candidate| !taken.contains(candidate)).expect("a directory does not hold 2^64 names"))
}

fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublishError {
    let path = path.to_path_buf();
    move |error| PublishError::Disk { doing, path, error }
}
