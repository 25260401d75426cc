//! Writes a checkpoint beside the others and publishes it at once: with one rename, or by its manifest.
//!
//! Order is everything here: bytes of all files, then their names, then the rename (or the manifest), then its own
//! sync. A crash at any point leaves either no new name or a whole checkpoint under it.
//!
//! That is no fence: a publisher that was paused may publish long after others have gone on. It does no
//! harm. Its name holds its own step, term and gen, so it takes nobody's place; publishing never replaces;
//! and with exact reduction the state of a step is the same bits whoever writes it.

use crate::contents::{BadContents, Contents, Origin};
use crate::grid::{Plan, plan, row_file};
use crate::manifest::{FORMAT, FORMAT_VERSION, Manifest, Name, OPTIMIZER, ROWS, WEIGHTS};
use crate::place::{Place, Revealed, Staged};
use crate::read::{self, Refusal};
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
    place: &dyn Place,
    dir: &Path,
    origin: &Origin,
    contents: &Contents,
) -> Result<Published, PublishError> {
    contents.check()?;
    let files = Files { weights: plan(&contents.weights), optimizer: plan(&contents.optimizer), rows: &contents.rows };
    let manifest = files.manifest(origin, contents);
    place.make(dir)?;
    if let Some(published) = look_around(place, dir, &manifest)? {
        return Ok(published);
    }
    // Before anything is written: a place without renames stages under the very name.
    not_anothers(place, dir, manifest.name())?;
    let files = files.staged(&manifest);
    let staged = place.stage(dir, manifest.name(), &files)?;
    let revealed = reveal(place, dir, &staged, &manifest, &files);
    if revealed.is_err() {
        // What is left is no checkpoint, and cleaning finds it.
        let _ = place.discard(&staged);
    }
    revealed
}

struct Files<'a> {
    weights: Plan<'a>,
    optimizer: Plan<'a>,
    rows: &'a [u8],
}

impl Files<'_> {
    fn staged(&self, manifest: &Manifest) -> Staged<'_> {
        let files = vec![(WEIGHTS, parts(&self.weights)), (OPTIMIZER, parts(&self.optimizer)), (ROWS, vec![self.rows])];
        Staged { files, manifest: manifest.to_text().into_bytes() }
    }

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

fn parts<'a>(plan: &'a Plan<'_>) -> Vec<&'a [u8]> {
    std::iter::once(&plan.header[..]).chain(plan.tensors.iter().map(|t| &t.bytes[..])).collect()
}

/// Looks again, since writing may have taken minutes, and publishes.
fn reveal(
    place: &dyn Place,
    dir: &Path,
    staged: &Path,
    manifest: &Manifest,
    files: &Staged<'_>,
) -> Result<Published, PublishError> {
    let name = manifest.name();
    loop {
        if let Some(published) = look_around(place, dir, manifest)? {
            place.discard(staged)?;
            return Ok(published);
        }
        match place.reveal(dir, staged, name, files)? {
            Revealed::Published => {
                let path = dir.join(name.to_string());
                return Ok(Published { path, manifest: manifest.clone(), fresh: true });
            }
            // By a damaged one, which makes way, or by another run's.
            Revealed::Taken => {
                not_anothers(place, dir, name)?;
                place.set_aside(dir, name)?;
            }
        }
    }
}

fn not_anothers(place: &dyn Place, dir: &Path, name: Name) -> Result<(), PublishError> {
    let path = dir.join(name.to_string());
    match read::restore(place, &path) {
        Ok(_) => Err(PublishError::Taken { path }),
        Err(why) => known(place, &path, why),
    }
}

/// Whether what is there already forbids publishing, or makes it unnecessary.
fn look_around(place: &dyn Place, dir: &Path, ours: &Manifest) -> Result<Option<Published>, PublishError> {
    let names = read::published(place, dir).map_err(at("list", dir))?;
    let mut same = None;
    for name in names.into_iter().filter(|name| name.step >= ours.step) {
        let path = dir.join(name.to_string());
        // A damaged one fences nobody: its claims prove nothing.
        let theirs = match read::manifest(place, &path) {
            Ok(theirs) => theirs,
            Err(why) => {
                known(place, &path, why)?;
                continue;
            }
        };
        if theirs.cluster == ours.cluster && theirs.term > ours.term {
            return Err(PublishError::Fenced { newer: Term(theirs.term), ours: Term(ours.term), path });
        }
        // A job that pauses between a step and its validation is of another round of the same step.
        let is_same = (theirs.step, theirs.round, theirs.config_sha256) == (ours.step, ours.round, ours.config_sha256);
        if !is_same {
            continue;
        }
        match read::restore(place, &path) {
            Ok(_) if theirs.state_sha256 == ours.state_sha256 => {
                same = Some(Published { path, manifest: theirs, fresh: false })
            }
            Ok(_) => {
                let (theirs, ours) = (theirs.state_sha256, ours.state_sha256);
                return Err(PublishError::Diverged { path, theirs, ours });
            }
            Err(why) => known(place, &path, why)?,
        }
    }
    Ok(same)
}

/// Damage is knowledge; a store that is away is none, and nothing may be written over what could not be read.
fn known(place: &dyn Place, path: &Path, why: Refusal) -> Result<(), PublishError> {
    match why {
        Refusal::Io { error, .. } if place.is_away(&error) => Err(at("read", path)(error)),
        _ => Ok(()),
    }
}

pub(crate) fn at(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PublishError {
    let path = path.to_path_buf();
    move |error| PublishError::Disk { doing, path, error }
}
