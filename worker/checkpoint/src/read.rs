//! Reads a checkpoint and believes none of it until the checksums agree.

use crate::contents::{Contents, TensorBytes};
use crate::grid::BLOCK_BYTES;
use crate::manifest::{
    FORMAT_VERSION, MANIFEST, MANIFEST_BYTES_MAX, Manifest, Name, OPTIMIZER, ROWS, TensorFile, WEIGHTS,
};
use crate::place::Place;
use bytes::Bytes;
use elastic_spec::Digest;
use safetensors::SafeTensors;
use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint is not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("it has no {MANIFEST}: it was never published whole")]
    NoManifest,
    #[error("{MANIFEST} is damaged: its SHA-256 is not what it says")]
    ManifestDamaged,
    #[error("{MANIFEST} cannot be used: {what}")]
    Manifest { what: String },
    #[error("its format version is {found}, and this program reads version {FORMAT_VERSION}")]
    Version { found: u32 },
    #[error("the directory is called {directory:?}, and its manifest says {manifest}")]
    Name { directory: String, manifest: Name },
    #[error("{file} is missing")]
    Missing { file: &'static str },
    #[error("{file} has {found} bytes instead of {wanted}: it is {}", if found < wanted { "truncated" } else { "too long" })]
    Length { file: &'static str, found: u64, wanted: u64 },
    #[error("the header of {file} is damaged: wrote {wrote:08x}, read {read:08x}")]
    Header { file: &'static str, wrote: u32, read: u32 },
    #[error("block {block} of {tensor:?} in {file} is damaged: wrote {wrote:08x}, read {read:08x}")]
    Block { file: &'static str, tensor: String, block: usize, wrote: u32, read: u32 },
    #[error("block {block} of {ROWS} is damaged: wrote {wrote:08x}, read {read:08x}")]
    Rows { block: usize, wrote: u32, read: u32 },
    #[error("{file} is not the safetensors file that the manifest describes: {what}")]
    Mismatch { file: &'static str, what: String },
    #[error("the {what} digest is {found}, and the manifest says {wanted}")]
    Digest { what: &'static str, found: Digest, wanted: Digest },
    #[error("read {file}: {error}")]
    Io { file: &'static str, error: io::Error },
}

/// A checkpoint, whole and verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub path: PathBuf,
    pub manifest: Manifest,
    pub contents: Contents,
}

#[derive(Debug)]
pub struct Refused {
    pub path: PathBuf,
    pub why: Refusal,
}

/// What was found in a directory of checkpoints.
#[derive(Debug, Default)]
pub struct Found {
    pub newest: Option<Restored>,
    /// Newer ones that could not be used, newest first.
    pub refused: Vec<Refused>,
}

pub(crate) fn newest_verified(place: &dyn Place, dir: &Path) -> io::Result<Found> {
    first_whole(place, published(place, dir)?.into_iter().rev().map(|name| dir.join(name.to_string())).collect())
}

/// Of checkpoints, newest first.
pub(crate) fn first_whole(place: &dyn Place, newest_first: Vec<PathBuf>) -> io::Result<Found> {
    let mut found = Found::default();
    for path in newest_first {
        match restore(place, &path) {
            Ok(restored) => {
                found.newest = Some(restored);
                break;
            }
            // The one before would be taken though this one is whole, or the run would begin anew.
            Err(Refusal::Io { error, .. }) if place.is_away(&error) => return Err(error),
            Err(why) => found.refused.push(Refused { path, why }),
        }
    }
    Ok(found)
}

/// Names of checkpoints in `dir`, oldest first.
pub(crate) fn published(place: &dyn Place, dir: &Path) -> io::Result<Vec<Name>> {
    let mut names: Vec<Name> = place.names(dir)?.iter().filter_map(|name| Name::parse(name)).collect();
    names.sort();
    Ok(names)
}

/// The manifest alone: proves that it is whole, says nothing about the files.
pub(crate) fn manifest(place: &dyn Place, path: &Path) -> Result<Manifest, Refusal> {
    let file = path.join(MANIFEST);
    let length = match place.len(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Refusal::NoManifest),
        length => length.map_err(|error| Refusal::Io { file: MANIFEST, error })?,
    };
    if length == 0 || length > MANIFEST_BYTES_MAX {
        let what = format!("it has {length} bytes; 1 to {MANIFEST_BYTES_MAX} are allowed");
        return Err(Refusal::Manifest { what });
    }
    let text = place.read(&file, MANIFEST_BYTES_MAX).map_err(|error| Refusal::Io { file: MANIFEST, error })?;
    let manifest = Manifest::from_text(&text)?;
    let directory = path.file_name().unwrap_or_default().to_string_lossy();
    // A copy under a name of one's own is fine; a name that tells another story is not.
    match Name::parse(&directory) {
        Some(name) if name != manifest.name() => {
            Err(Refusal::Name { directory: directory.into_owned(), manifest: manifest.name() })
        }
        _ => Ok(manifest),
    }
}

/// The manifest, and that the files have the lengths that it says.
pub(crate) fn look(place: &dyn Place, path: &Path) -> Result<Manifest, Refusal> {
    let manifest = manifest(place, path)?;
    let files = [(WEIGHTS, manifest.weights.bytes), (OPTIMIZER, manifest.optimizer.bytes), (ROWS, manifest.rows.bytes)];
    files.into_iter().try_for_each(|(file, wanted)| check_length(place, path, file, wanted))?;
    Ok(manifest)
}

/// Everything, verified.
pub(crate) fn restore(place: &dyn Place, path: &Path) -> Result<Restored, Refusal> {
    let manifest = manifest(place, path)?;
    let contents = Contents {
        step: manifest.step,
        round: manifest.round,
        meta: manifest.meta.clone(),
        weights: tensors(place, path, WEIGHTS, &manifest.weights)?,
        optimizer: tensors(place, path, OPTIMIZER, &manifest.optimizer)?,
        rows: rows(place, path, &manifest)?,
    };
    for (what, found, wanted) in [
        ("weights", contents.weights_digest(), manifest.weights_sha256),
        ("state", contents.state_digest(), manifest.state_sha256),
    ] {
        if found != wanted {
            return Err(Refusal::Digest { what, found, wanted });
        }
    }
    Ok(Restored { path: path.to_path_buf(), manifest, contents })
}

fn tensors(
    place: &dyn Place,
    dir: &Path,
    file: &'static str,
    wanted: &TensorFile,
) -> Result<Vec<TensorBytes>, Refusal> {
    let bytes = whole(place, dir, file, wanted.bytes)?;
    // The manifest's door has made sure that header and tensors make up the file's length exactly.
    let data = bytes.slice(wanted.header_bytes as usize..);
    let read = crc32fast::hash(&bytes[..wanted.header_bytes as usize]);
    if read != wanted.header_crc32 {
        return Err(Refusal::Header { file, wrote: wanted.header_crc32, read });
    }
    let mut tensors = Vec::with_capacity(wanted.tensors.len());
    for stored in &wanted.tensors {
        let bytes = data.slice(stored.offset as usize..(stored.offset + stored.bytes) as usize);
        if let Err((block, wrote, read)) = check_blocks(&bytes, &stored.crc32) {
            return Err(Refusal::Block { file, tensor: stored.name.clone(), block, wrote, read });
        }
        tensors.push(TensorBytes {
            name: stored.name.clone(),
            dtype: stored.dtype,
            shape: stored.shape.clone(),
            bytes,
        });
    }
    match compare(&bytes, &tensors) {
        Ok(()) => Ok(tensors),
        Err(what) => Err(Refusal::Mismatch { file, what }),
    }
}

/// Whether other readers will see in the file what the manifest says.
fn compare(file: &[u8], tensors: &[TensorBytes]) -> Result<(), String> {
    let read = SafeTensors::deserialize(file).map_err(|e| e.to_string())?;
    if read.len() != tensors.len() {
        return Err(format!("it holds {} tensors instead of {}", read.len(), tensors.len()));
    }
    for tensor in tensors {
        let view = read.tensor(&tensor.name).map_err(|e| e.to_string())?;
        let place = |bytes: &[u8]| (bytes.as_ptr() as usize - file.as_ptr() as usize, bytes.len());
        let same = view.dtype().to_string() == tensor.dtype.as_str()
            && view.shape() == tensor.shape
            && (tensor.bytes.is_empty() || place(view.data()) == place(&tensor.bytes));
        if !same {
            return Err(format!("tensor {:?} has another type, shape or place", tensor.name));
        }
    }
    Ok(())
}

fn rows(place: &dyn Place, dir: &Path, manifest: &Manifest) -> Result<Bytes, Refusal> {
    let bytes = whole(place, dir, ROWS, manifest.rows.bytes)?;
    match check_blocks(&bytes, &manifest.rows.crc32) {
        Ok(()) => Ok(bytes),
        Err((block, wrote, read)) => Err(Refusal::Rows { block, wrote, read }),
    }
}

fn check_length(place: &dyn Place, dir: &Path, file: &'static str, wanted: u64) -> Result<(), Refusal> {
    match place.len(&dir.join(file)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Refusal::Missing { file }),
        Err(error) => Err(Refusal::Io { file, error }),
        Ok(found) if found != wanted => Err(Refusal::Length { file, found, wanted }),
        Ok(_) => Ok(()),
    }
}

/// A file of exactly `wanted` bytes. The manifest has a checksum for each block of it, so a length that is
/// claimed costs its maker as much as its reader.
fn whole(place: &dyn Place, dir: &Path, file: &'static str, wanted: u64) -> Result<Bytes, Refusal> {
    let path = dir.join(file);
    check_length(place, dir, file, wanted)?;
    if wanted == 0 {
        return Ok(Bytes::new());
    }
    let bytes = place.read(&path, wanted).map_err(|error| Refusal::Io { file, error })?;
    match bytes.len() as u64 == wanted {
        true => Ok(Bytes::from(bytes)),
        false => Err(Refusal::Length { file, found: bytes.len() as u64, wanted }),
    }
}

fn check_blocks(bytes: &[u8], wanted: &[u32]) -> Result<(), (usize, u32, u32)> {
    for (block, (bytes, wrote)) in bytes.chunks(BLOCK_BYTES as usize).zip(wanted).enumerate() {
        let read = crc32fast::hash(bytes);
        if read != *wrote {
            return Err((block, *wrote, read));
        }
    }
    Ok(())
}
