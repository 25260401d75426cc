//! NumPy's `.npz`: a zip archive of `.npy` files, one for each name.

use super::super::tensor::Tensor;
use super::super::{Error, Result};
use super::{file_error, npy_bytes, parse_npy, read, write};
use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};
use std::path::Path;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// Whether an archive's members are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As `numpy.savez`.
    Stored,
    /// As `numpy.savez_compressed`.
    Deflated,
}

/// Most bytes that a member may inflate to for each of its packed ones, beside 1 MiB: deflate reaches 1,032.
const INFLATION_MAX: u64 = 1_032;

/// The arrays in a file by their names, without `.npy`.
pub fn read_npz(path: impl AsRef<Path>) -> Result<BTreeMap<String, Tensor>> {
    parse_npz(&read(path.as_ref())?, &path.as_ref().display().to_string())
}

/// The same of bytes; `file` is what errors call them.
pub fn parse_npz(bytes: &[u8], file: &str) -> Result<BTreeMap<String, Tensor>> {
    let mut archive = ZipArchive::new(Cursor::new(bytes))
        .or_else(|e| file_error(file, "the archive", format!("no zip: {e}; write it with numpy.savez")))?;
    let mut tensors = BTreeMap::new();
    for at in 0..archive.len() {
        let wrong = |e: zip::result::ZipError| Error::File {
            file: file.into(),
            place: format!("member {at}"),
            message: format!("{e}; write it anew"),
        };
        let mut member = archive.by_index(at).map_err(wrong)?;
        let name = member.name().map_err(wrong)?.into_owned();
        let Some(short) = name.strip_suffix(".npy") else {
            return file_error(file, format!("member `{name}`"), "is no .npy file; take it out of the archive");
        };
        let most = (1 << 20) + INFLATION_MAX.saturating_mul(member.compressed_size());
        let mut npy = Vec::new();
        // The checksum is compared at the end of the member, so all of it is read.
        if let Err(e) = member.by_ref().take(most + 1).read_to_end(&mut npy) {
            return file_error(file, format!("member `{name}`"), format!("{e}; write it anew"));
        }
        if npy.len() as u64 > most {
            return file_error(file, format!("member `{name}`"), "inflates to more than deflate can have packed");
        }
        let tensor = parse_npy(&npy, &format!("{file}:{name}"))?;
        if tensors.insert(short.to_string(), tensor).is_some() {
            return file_error(file, format!("member `{name}`"), "comes twice; give arrays different names");
        }
    }
    Ok(tensors)
}

/// The tensors as an archive, in this order. An error for bf16, and for a name that comes twice.
pub fn npz_bytes(tensors: &[(&str, &Tensor)], packing: Packing) -> Result<Vec<u8>> {
    let method = match packing {
        Packing::Stored => CompressionMethod::Stored,
        Packing::Deflated => CompressionMethod::Deflated,
    };
    // No time of writing: the same tensors are the same bytes.
    let options = SimpleFileOptions::default().compression_method(method);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, tensor) in tensors {
        let npy = npy_bytes(tensor)?;
        let is_large = npy.len() as u64 >= u32::MAX as u64;
        let wrong = |e: String| Error::File { file: "npz".into(), place: format!("tensor `{name}`"), message: e };
        writer.start_file(format!("{name}.npy"), options.large_file(is_large)).map_err(|e| wrong(e.to_string()))?;
        writer.write_all(&npy).map_err(|e| wrong(e.to_string()))?;
    }
    let cursor = writer.finish().or_else(|e| file_error("npz", "the archive", e.to_string()))?;
    Ok(cursor.into_inner())
}

/// Writes an archive to a file, replacing it.
pub fn write_npz(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)], packing: Packing) -> Result<()> {
    write(path.as_ref(), &npz_bytes(tensors, packing)?)
}
