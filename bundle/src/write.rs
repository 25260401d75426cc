//! Writes a bundle; the manifest is the last file.

use crate::description::{BadDescription, Description};
use crate::folder::{FolderError, publish};
use crate::manifest::{DESCRIPTION, FileEntry, MANIFEST, Manifest, PROVENANCE, SIGNATURE, TOKENIZER, WEIGHTS};
use crate::provenance::Provenance;
use crate::weights::{self, safetensors};
use crate::{Model, Predictor};
use elastic_spec::Digest;
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Description(#[from] BadDescription),
    #[error("the model and its weights do not go together: {0}")]
    Unusable(String),
}

/// Makes `dir` the bundle of `model`. It appears by one rename, whole or not at all, and never replaces anything.
pub fn write(dir: &Path, model: &Model, provenance: &Provenance) -> Result<Manifest, WriteError> {
    model.description.check()?;
    Predictor::new(model, 1).map_err(WriteError::Unusable)?;
    let mut files = vec![
        (DESCRIPTION, model.description.to_json()),
        (SIGNATURE, signature_json(&model.description)),
        (WEIGHTS, safetensors(&model.weights, &[("format", "pt")])),
    ];
    files.extend(model.tokenizer.clone().map(|json| (TOKENIZER, json)));
    let entry = |(name, bytes): &(&str, Vec<u8>)| FileEntry {
        name: name.to_string(),
        bytes: bytes.len() as u64,
        sha256: Digest::of(bytes),
    };
    let manifest = Manifest::of(weights::digest(&model.weights), files.iter().map(entry).collect());
    files.push((PROVENANCE, serde_json::to_vec_pretty(provenance).expect("a provenance has only plain values")));
    files.push((MANIFEST, manifest.to_json()));
    publish(dir, &files)?;
    Ok(manifest)
}

pub fn signature_json(description: &Description) -> Vec<u8> {
    let mut text = serde_json::to_string_pretty(&description.signature()).expect("a signature has only plain values");
    text.push('\n');
    text.into_bytes()
}
