//! Safetensors: names, shapes and types in JSON, then the elements; the only format here that has bf16.

use super::super::dtype::DType;
use super::super::tensor::{Tensor, check_axes};
use super::super::{Error, Result};
use super::{bytes_of, elements, file_error, read, size_of, write};
use ::safetensors::tensor::TensorView;
use ::safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::path::Path;

const TYPES: [(DType, Dtype); 8] = [
    (DType::Bool, Dtype::BOOL),
    (DType::U8, Dtype::U8),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::F16, Dtype::F16),
    (DType::Bf16, Dtype::BF16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
];

/// The tensors in a file by their names.
pub fn read_safetensors(path: impl AsRef<Path>) -> Result<BTreeMap<String, Tensor>> {
    parse_safetensors(&read(path.as_ref())?, &path.as_ref().display().to_string())
}

/// The same of bytes; `file` is what errors call them.
pub fn parse_safetensors(bytes: &[u8], file: &str) -> Result<BTreeMap<String, Tensor>> {
    let whole = SafeTensors::deserialize(bytes)
        .or_else(|e| file_error(file, "the header", format!("no safetensors: {e}; write it anew")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in whole.iter() {
        let place = format!("tensor `{name}`");
        let Some((dtype, _)) = TYPES.iter().find(|(_, theirs)| *theirs == view.dtype()) else {
            let message = format!("elements are {:?}; convert to one of {}", view.dtype(), names());
            return file_error(file, place, message);
        };
        check_axes("safetensors", view.shape()).or_else(|e| file_error(file, place.clone(), e.to_string()))?;
        if size_of(view.shape(), *dtype) != Some(view.data().len()) {
            return file_error(file, place, format!("{:?} does not fit its bytes; write it anew", view.shape()));
        }
        tensors.insert(name.to_string(), Tensor::from_storage(elements(view.data(), *dtype), view.shape())?);
    }
    Ok(tensors)
}

fn names() -> String {
    TYPES.map(|(_, theirs)| format!("{theirs:?}")).join(", ")
}

/// The tensors as a file's bytes; the same tensors are the same bytes. An error for a name that comes twice.
pub fn safetensors_bytes(tensors: &[(&str, &Tensor)]) -> Result<Vec<u8>> {
    let wrong = |name: &str, message: String| Error::File {
        file: "safetensors".into(),
        place: format!("tensor `{name}`"),
        message,
    };
    let mut datas = BTreeMap::new();
    for (name, tensor) in tensors {
        let bytes = bytes_of(&tensor.to_storage()?);
        if datas.insert(*name, (bytes, *tensor)).is_some() {
            return Err(wrong(name, "comes twice; give tensors different names".into()));
        }
    }
    let mut views = BTreeMap::new();
    for (name, (bytes, tensor)) in &datas {
        let (_, dtype) = TYPES.iter().find(|(ours, _)| *ours == tensor.dtype()).expect("all types are listed");
        let view = TensorView::new(*dtype, tensor.shape().to_vec(), bytes).map_err(|e| wrong(name, e.to_string()))?;
        views.insert(*name, view);
    }
    ::safetensors::serialize(views, None).or_else(|e| file_error("safetensors", "the file", e.to_string()))
}

/// Writes a file, replacing it.
pub fn write_safetensors(path: impl AsRef<Path>, tensors: &[(&str, &Tensor)]) -> Result<()> {
    write(path.as_ref(), &safetensors_bytes(tensors)?)
}
