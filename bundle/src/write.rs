//! Writes a bundle beside its place and moves it there whole; the manifest is the last file.

use crate::description::{BadDescription, Description};
use crate::manifest::{DESCRIPTION, FileEntry, MANIFEST, Manifest, PROVENANCE, SIGNATURE, TOKENIZER, WEIGHTS};
use crate::provenance::Provenance;
use crate::weights::{self, safetensors};
use crate::{Model, Predictor};
use elastic_spec::Digest;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("{} is there already; name another directory, or remove it first", .0.display())]
    There(PathBuf),
    #[error(transparent)]
    Description(#[from] BadDescription),
    #[error("the model and its weights do not go together: {0}")]
    Unusable(String),
    #[error("write {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Makes `dir` the bundle of `model`. It appears by one rename, whole or not at all, and never replaces anything.
pub fn write(dir: &Path, model: &Model, provenance: &Provenance) -> Result<Manifest, WriteError> {
    model.description.check()?;
    Predictor::new(model, 1).map_err(WriteError::Unusable)?;
    let taken = fs::symlink_metadata(dir).is_ok();
    if taken && !is_empty_dir(dir) {
        return Err(WriteError::There(dir.into()));
    }
    let io_at = |path: &Path| {
        let path = path.to_path_buf();
        move |error| WriteError::Io { path, error }
    };
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(io_at(parent))?;
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    let written = fill(&beside, model, provenance).and_then(|manifest| {
        fs::rename(&beside, dir).map_err(io_at(dir))?;
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(io_at(parent))?;
        Ok(manifest)
    });
    if written.is_err() {
        let _ = fs::remove_dir_all(&beside);
    }
    written
}

fn is_empty_dir(dir: &Path) -> bool {
    fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}

fn fill(dir: &Path, model: &Model, provenance: &Provenance) -> Result<Manifest, WriteError> {
    // A leftover of a process of the same number, which is gone.
    let _ = fs::remove_dir_all(dir);
    fs::create_dir(dir).map_err(|error| WriteError::Io { path: dir.into(), error })?;
    let mut files = vec![
        (DESCRIPTION, model.description.to_json()),
        (SIGNATURE, signature_json(&model.description)),
        (WEIGHTS, safetensors(&model.weights, &[("format", "pt")])),
    ];
    files.extend(model.tokenizer.clone().map(|json| (TOKENIZER, json)));
    let mut entries = Vec::new();
    for (name, bytes) in &files {
        put(&dir.join(name), bytes)?;
        entries.push(FileEntry { name: name.to_string(), bytes: bytes.len() as u64, sha256: Digest::of(bytes) });
    }
    let provenance = serde_json::to_vec_pretty(provenance).expect("a provenance has only plain values");
    put(&dir.join(PROVENANCE), &provenance)?;
    let manifest = Manifest::of(weights::digest(&model.weights), entries);
    put(&dir.join(MANIFEST), &manifest.to_json())?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| WriteError::Io { path: dir.into(), error })?;
    Ok(manifest)
}

pub fn signature_json(description: &Description) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(&description.signature()).expect("a signature has only plain values");
    text.push('\n');
    text.into_bytes()
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    let write = || -> io::Result<()> {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| WriteError::Io { path: path.into(), error })
}
