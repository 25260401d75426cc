//! Tensors in files: NumPy's `.npy` and `.npz`, and safetensors.
//!
//! What is read is checked as it is parsed: an error names the file, the place in it and what would do. Nothing is
//! allocated because a header asks for it.

mod npy;
mod npz;
mod safetensors;

pub use npy::{npy_bytes, parse_npy, read_npy, write_npy};
pub use npz::{Packing, npz_bytes, parse_npz, read_npz, write_npz};
pub use safetensors::{parse_safetensors, read_safetensors, safetensors_bytes, write_safetensors};

use super::dtype::DType;
use super::storage::Storage;
use super::{Error, Result};
use std::path::Path;

/// An error in a file, at a place ("byte 12", "tensor `w`").
fn file_error<T>(file: &str, place: impl Into<String>, message: impl Into<String>) -> Result<T> {
    Err(Error::File { file: file.into(), place: place.into(), message: message.into() })
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).or_else(|e| file_error(&path.display().to_string(), "the file", format!("read: {e}")))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes).or_else(|e| file_error(&path.display().to_string(), "the file", format!("write: {e}")))
}

/// Little-endian elements. `bytes` holds whole ones.
fn elements(bytes: &[u8], dtype: DType) -> Storage {
    macro_rules! all {
        ($variant:ident, $ty:ty) => {
            Storage::$variant(bytes.as_chunks().0.iter().map(|b| <$ty>::from_le_bytes(*b)).collect())
        };
    }
    match dtype {
        DType::Bool => Storage::Bool(bytes.iter().map(|b| *b != 0).collect()),
        DType::U8 => Storage::U8(bytes.to_vec()),
        DType::I32 => all!(I32, i32),
        DType::I64 => all!(I64, i64),
        DType::F16 => all!(F16, u16),
        DType::Bf16 => all!(Bf16, u16),
        DType::F32 => all!(F32, f32),
        DType::F64 => all!(F64, f64),
    }
}

fn bytes_of(data: &Storage) -> Vec<u8> {
    match data {
        Storage::Bool(xs) => xs.iter().map(|x| *x as u8).collect(),
        Storage::U8(xs) => xs.clone(),
        Storage::I32(xs) => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Storage::I64(xs) => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Storage::F16(xs) | Storage::Bf16(xs) => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Storage::F32(xs) => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Storage::F64(xs) => xs.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Bytes of a tensor of this shape, if they can be counted.
fn size_of(shape: &[usize], dtype: DType) -> Option<usize> {
    shape.iter().try_fold(dtype.size(), |size, axis| size.checked_mul(*axis))
}
