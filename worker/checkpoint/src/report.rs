//! What the CLI shows of checkpoints: plain values, ready for JSON.

use crate::disk::Fs;
use crate::manifest::{Manifest, Name, OPTIMIZER, ROWS, WEIGHTS};
use crate::place::{ByRename, Place};
use crate::read::{self, Refusal};
use elastic_spec::{Digest, Round, Step};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One line of `elastic checkpoint list`. Only the manifest was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub path: PathBuf,
    pub step: Step,
    pub term: u64,
    #[serde(rename = "gen")]
    pub gen_: u64,
    /// Of all files; none where the manifest is refused.
    pub bytes: Option<u64>,
    pub weights_sha256: Option<Digest>,
    /// Why the manifest is refused.
    pub refused: Option<String>,
}

/// What a checkpoint says about itself. Only the manifest was read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Inspection {
    pub path: PathBuf,
    pub format_version: u32,
    pub cluster: String,
    pub job: String,
    pub config_sha256: Digest,
    pub term: u64,
    #[serde(rename = "gen")]
    pub gen_: u64,
    pub step: Step,
    pub round: Round,
    pub meta: BTreeMap<String, String>,
    pub weights_sha256: Digest,
    pub state_sha256: Digest,
    pub files: Vec<FileLine>,
    pub weights: Vec<TensorLine>,
    pub optimizer: Vec<TensorLine>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FileLine {
    pub name: &'static str,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TensorLine {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// The outcome of reading every byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verification {
    pub path: PathBuf,
    pub whole: bool,
    /// Why not.
    pub refused: Option<String>,
    pub step: Option<Step>,
    pub bytes: Option<u64>,
    pub weights_sha256: Option<Digest>,
    pub state_sha256: Option<Digest>,
}

/// The checkpoints at `path`, newest first: a directory of them, a run directory (with `checkpoints` in it),
/// or one checkpoint. Empty if there are none.
pub fn list(path: &Path) -> io::Result<Vec<Listed>> {
    list_in(&ByRename(Arc::new(Fs)), path)
}

/// As [`list`], in another place.
pub fn list_in(place: &dyn Place, path: &Path) -> io::Result<Vec<Listed>> {
    Ok(resolve(place, path)?.iter().map(|path| listed(place, path)).collect())
}

/// The newest checkpoint at `path` (as for [`list`]) by name, whether or not it is whole.
pub fn inspect(path: &Path) -> Result<Inspection, InspectError> {
    inspect_in(&ByRename(Arc::new(Fs)), path)
}

/// As [`inspect`], in another place.
pub fn inspect_in(place: &dyn Place, path: &Path) -> Result<Inspection, InspectError> {
    let newest = resolve(place, path)?.into_iter().next();
    let path = newest.ok_or_else(|| InspectError::Nothing(path.to_path_buf()))?;
    match read::manifest(place, &path) {
        Ok(manifest) => Ok(inspection(path, manifest)),
        Err(why) => Err(InspectError::Refused { path, why }),
    }
}

/// Reads every byte of all checkpoints at `path` (as for [`list`]), newest first.
pub fn verify(path: &Path) -> io::Result<Vec<Verification>> {
    verify_in(&ByRename(Arc::new(Fs)), path)
}

/// As [`verify`], in another place.
pub fn verify_in(place: &dyn Place, path: &Path) -> io::Result<Vec<Verification>> {
    Ok(resolve(place, path)?.into_iter().map(|path| verification(place, path)).collect())
}

/// The newest checkpoint at `path` (as for [`list`]) that proves whole, and why newer ones were refused.
pub fn newest_whole(path: &Path) -> io::Result<read::Found> {
    newest_whole_in(&ByRename(Arc::new(Fs)), path)
}

/// As [`newest_whole`], in another place.
pub fn newest_whole_in(place: &dyn Place, path: &Path) -> io::Result<read::Found> {
    read::first_whole(place, resolve(place, path)?)
}

#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("there is no checkpoint at {0}")]
    Nothing(PathBuf),
    #[error("{path}: {why}")]
    Refused { path: PathBuf, why: Refusal },
    #[error(transparent)]
    Disk(#[from] io::Error),
}

fn resolve(place: &dyn Place, path: &Path) -> io::Result<Vec<PathBuf>> {
    let is_one = path.file_name().is_some_and(|name| Name::parse(&name.to_string_lossy()).is_some());
    if is_one || place.len(&path.join(crate::manifest::MANIFEST)).is_ok() {
        return Ok(vec![path.to_path_buf()]);
    }
    for dir in [path.to_path_buf(), path.join("checkpoints")] {
        let names = read::published(place, &dir)?;
        if !names.is_empty() {
            return Ok(names.into_iter().rev().map(|name| dir.join(name.to_string())).collect());
        }
    }
    Ok(Vec::new())
}

fn listed(place: &dyn Place, path: &Path) -> Listed {
    let manifest = read::manifest(place, path);
    let said = path.file_name().and_then(|name| Name::parse(&name.to_string_lossy()));
    let name = manifest.as_ref().ok().map(Manifest::name).or(said);
    let name = name.unwrap_or(Name { step: Step(0), epoch: Default::default() });
    Listed {
        path: path.to_path_buf(),
        step: name.step,
        term: name.epoch.term.0,
        gen_: name.epoch.gen_.0,
        bytes: manifest.as_ref().ok().map(Manifest::bytes),
        weights_sha256: manifest.as_ref().ok().map(|m| m.weights_sha256),
        refused: manifest.err().map(|e| e.to_string()),
    }
}

fn inspection(path: PathBuf, manifest: Manifest) -> Inspection {
    let lines = |file: &crate::manifest::TensorFile| {
        let line = |t: &crate::manifest::StoredTensor| TensorLine {
            name: t.name.clone(),
            dtype: t.dtype.to_string(),
            shape: t.shape.clone(),
            bytes: t.bytes,
        };
        let mut lines: Vec<TensorLine> = file.tensors.iter().map(line).collect();
        lines.sort_by(|a, b| a.name.cmp(&b.name));
        lines
    };
    Inspection {
        files: vec![
            FileLine { name: WEIGHTS, bytes: manifest.weights.bytes },
            FileLine { name: OPTIMIZER, bytes: manifest.optimizer.bytes },
            FileLine { name: ROWS, bytes: manifest.rows.bytes },
        ],
        weights: lines(&manifest.weights),
        optimizer: lines(&manifest.optimizer),
        path,
        format_version: manifest.format_version,
        cluster: manifest.cluster,
        job: manifest.job.to_string(),
        config_sha256: manifest.config_sha256,
        term: manifest.term,
        gen_: manifest.gen_,
        step: manifest.step,
        round: manifest.round,
        meta: manifest.meta,
        weights_sha256: manifest.weights_sha256,
        state_sha256: manifest.state_sha256,
    }
}

fn verification(place: &dyn Place, path: PathBuf) -> Verification {
    let restored = read::restore(place, &path);
    let manifest = restored.as_ref().ok().map(|r| &r.manifest);
    Verification {
        whole: restored.is_ok(),
        step: manifest.map(|m| m.step),
        bytes: manifest.map(Manifest::bytes),
        weights_sha256: manifest.map(|m| m.weights_sha256),
        state_sha256: manifest.map(|m| m.state_sha256),
        refused: restored.err().map(|e| e.to_string()),
        path,
    }
}
