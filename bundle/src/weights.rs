//! Tensors as a safetensors file whose bytes are a function of the tensors.

use bytes::Bytes;
use elastic_spec::Digest;
use elastic_spec::weights::{self, Dtype};
use safetensors::SafeTensors;
use serde::Serialize;
use std::collections::BTreeMap;

/// A tensor by name: raw little-endian bytes, row-major, unpadded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

impl Tensor {
    pub fn of_floats(name: &str, shape: &[usize], floats: &[f32]) -> Tensor {
        let bytes: Vec<u8> = floats.iter().flat_map(|x| x.to_le_bytes()).collect();
        Tensor { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec(), bytes: bytes.into() }
    }

    /// The numbers of a tensor of F32; None for another type.
    pub fn floats(&self) -> Option<Vec<f32>> {
        let float = |b: &[u8]| f32::from_le_bytes(b.try_into().expect("four bytes"));
        (self.dtype == Dtype::F32).then(|| self.bytes.chunks_exact(4).map(float).collect())
    }
}

/// The digest that a checkpoint of the same tensors has.
pub fn digest(tensors: &[Tensor]) -> Digest {
    weights::digest(tensors.iter().map(|t| weights::Tensor {
        name: &t.name,
        dtype: t.dtype,
        shape: &t.shape,
        bytes: &t.bytes,
    }))
}

/// The file: header keys and tensors in the order of their names, `metadata` as given.
pub fn safetensors(tensors: &[Tensor], metadata: &[(&str, &str)]) -> Vec<u8> {
    let mut sorted: Vec<&Tensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut entries = Vec::new();
    if !metadata.is_empty() {
        let metadata: BTreeMap<&str, &str> = metadata.iter().copied().collect();
        entries.push(format!("\"__metadata__\":{}", json(&metadata)));
    }
    let mut offset = 0;
    for tensor in &sorted {
        let end = offset + tensor.bytes.len();
        let entry = Entry { dtype: tensor.dtype.as_str(), shape: &tensor.shape, data_offsets: [offset, end] };
        entries.push(format!("{}:{}", json(&tensor.name), json(&entry)));
        offset = end;
    }
    let mut text = format!("{{{}}}", entries.join(",")).into_bytes();
    // Tensors begin at a multiple of 8.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = Vec::with_capacity(8 + text.len() + offset);
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(&text);
    sorted.iter().for_each(|tensor| out.extend_from_slice(&tensor.bytes));
    out
}

/// Of the header, in this order whatever keeps maps elsewhere.
#[derive(Serialize)]
struct Entry<'a> {
    dtype: &'a str,
    shape: &'a [usize],
    data_offsets: [usize; 2],
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain values have JSON")
}

/// The tensors of a file, sorted by name.
pub fn read(bytes: &[u8]) -> Result<Vec<Tensor>, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let mut tensors = Vec::new();
    for (name, view) in file.iter() {
        let dtype = format!("{:?}", view.dtype());
        let dtype = Dtype::parse(&dtype).ok_or_else(|| format!("tensor {name:?} is of type {dtype}"))?;
        let bytes = Bytes::copy_from_slice(view.data());
        tensors.push(Tensor { name: name.to_string(), dtype, shape: view.shape().to_vec(), bytes });
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(tensors)
}
