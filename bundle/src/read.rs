//! Reads a bundle and believes none of it until the digests agree.

use crate::description::{BadDescription, Description};
use crate::manifest::{DESCRIPTION, MANIFEST, Manifest, PROVENANCE, SIGNATURE, TOKENIZER, WEIGHTS};
use crate::provenance::Provenance;
use crate::{Bundle, Model, weights};
use elastic_spec::Digest;
use elastic_transform::Transform;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Why a directory is not taken for a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("{}: there is no {MANIFEST}: it is no bundle, or not a whole one yet", .0.display())]
    NoManifest(PathBuf),
    #[error("{}: {MANIFEST} cannot be used: {what}", dir.display())]
    Manifest { dir: PathBuf, what: String },
    #[error("{}: {file} is missing; copy the bundle again", dir.display())]
    Missing { dir: PathBuf, file: String },
    #[error("{}: {file} has {found} bytes, and {MANIFEST} says {wanted}; copy the bundle again", dir.display())]
    Length { dir: PathBuf, file: String, found: u64, wanted: u64 },
    #[error("{}: {file} is damaged: its SHA-256 is {found}, and {MANIFEST} says {wanted}; copy the bundle again", dir.display())]
    Damaged { dir: PathBuf, file: String, found: Digest, wanted: Digest },
    #[error("{}: {what}", dir.display())]
    Unusable { dir: PathBuf, what: String },
    #[error("{}: {source}", dir.display())]
    Description { dir: PathBuf, source: BadDescription },
    #[error("read {}: {error}", path.display())]
    Io { path: PathBuf, error: io::Error },
}

/// Largest manifest that is read, in bytes.
const MANIFEST_BYTES_MAX: u64 = 1 << 20;

pub fn open(dir: &Path) -> Result<Bundle, BundleError> {
    let manifest = manifest(dir)?;
    let read = |name: &str| file(dir, &manifest, name);
    let needed = |name: &str| {
        read(name)?.ok_or_else(|| {
            let what = format!("it lists no {name}");
            BundleError::Manifest { dir: dir.into(), what }
        })
    };
    let unusable = |what: String| BundleError::Unusable { dir: dir.into(), what };
    let description = Description::parse(&needed(DESCRIPTION)?)
        .map_err(|source| BundleError::Description { dir: dir.into(), source })?;
    let tokenizer = read(TOKENIZER)?;
    if (description.transform == Transform::Tokenizer) != tokenizer.is_some() {
        return Err(unusable(format!("{TOKENIZER} and the transform of {DESCRIPTION} do not go together")));
    }
    if needed(SIGNATURE)? != crate::write::signature_json(&description) {
        return Err(unusable(format!("{SIGNATURE} is not that of {DESCRIPTION}")));
    }
    let weights = weights::read(&needed(WEIGHTS)?).map_err(|what| unusable(format!("{WEIGHTS}: {what}")))?;
    let found = weights::digest(&weights);
    if found != manifest.weights_sha256 {
        let wanted = manifest.weights_sha256;
        return Err(unusable(format!("the weights' SHA-256 is {found}, and {MANIFEST} says {wanted}")));
    }
    Ok(Bundle { model: Model { description, weights, tokenizer }, manifest })
}

fn manifest(dir: &Path) -> Result<Manifest, BundleError> {
    let path = dir.join(MANIFEST);
    let mut json = Vec::new();
    let read = std::fs::File::open(&path).and_then(|file| file.take(MANIFEST_BYTES_MAX).read_to_end(&mut json));
    match read {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(BundleError::NoManifest(dir.into())),
        Err(error) => Err(BundleError::Io { path, error }),
        Ok(_) => Manifest::parse(&json).map_err(|what| BundleError::Manifest { dir: dir.into(), what }),
    }
}

/// A file that the manifest lists, if it lists it.
fn file(dir: &Path, manifest: &Manifest, name: &str) -> Result<Option<Vec<u8>>, BundleError> {
    let Some(entry) = manifest.files.iter().find(|file| file.name == name) else { return Ok(None) };
    let path = dir.join(name);
    let io_error = |error| BundleError::Io { path: path.clone(), error };
    // Before it is opened: a pipe would wait for its writer.
    let found = match std::fs::metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(BundleError::Missing { dir: dir.into(), file: name.into() });
        }
        Err(error) => return Err(io_error(error)),
        Ok(metadata) if !metadata.is_file() => {
            return Err(BundleError::Unusable { dir: dir.into(), what: format!("{name} is no file") });
        }
        Ok(metadata) => metadata.len(),
    };
    // Before it is read: a wrong file may be of any size.
    if found != entry.bytes {
        let wanted = entry.bytes;
        return Err(BundleError::Length { dir: dir.into(), file: name.into(), found, wanted });
    }
    let bytes = std::fs::read(&path).map_err(io_error)?;
    let found = Digest::of(&bytes);
    match found == entry.sha256 {
        true => Ok(Some(bytes)),
        false => Err(BundleError::Damaged { dir: dir.into(), file: name.into(), found, wanted: entry.sha256 }),
    }
}

/// What lies beside, if anything does.
pub fn read_provenance(dir: &Path) -> Result<Option<Provenance>, BundleError> {
    let path = dir.join(PROVENANCE);
    match std::fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BundleError::Io { path, error }),
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|error| BundleError::Unusable { dir: dir.into(), what: format!("{PROVENANCE}: {error}") }),
    }
}
