//! How bytes lie in the files, and the checksums over them: blocks on a grid that no world size moves.

use crate::contents::TensorBytes;
use crate::manifest::{RowFile, StoredTensor, TensorFile};
use elastic_spec::layout::BLOCK_FLOATS;

/// Bytes under one checksum: 64 Ki floats, counted from the beginning of each tensor.
pub(crate) const BLOCK_BYTES: u64 = (BLOCK_FLOATS * 4) as u64;

/// CRC-32 of each block.
pub(crate) fn checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK_BYTES as usize).map(crc32fast::hash).collect()
}

/// A safetensors file to be written: its entry in the manifest, its header, and its tensors in file order.
pub(crate) struct Plan<'a> {
    pub file: TensorFile,
    pub header: Vec<u8>,
    pub tensors: Vec<&'a TensorBytes>,
}

/// Widest elements first, then by name, so that every tensor is aligned to its elements.
pub(crate) fn plan(tensors: &[TensorBytes]) -> Plan<'_> {
    let mut sorted: Vec<&TensorBytes> = tensors.iter().collect();
    sorted.sort_by(|a, b| b.dtype.bytes().cmp(&a.dtype.bytes()).then(a.name.cmp(&b.name)));
    let mut stored = Vec::with_capacity(sorted.len());
    let mut offset = 0;
    for tensor in &sorted {
        stored.push(StoredTensor {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            offset,
            bytes: tensor.bytes.len() as u64,
            crc32: checksums(&tensor.bytes),
        });
        offset += tensor.bytes.len() as u64;
    }
    let header = header_of(&stored);
    let header_bytes = header.len() as u64;
    let file = TensorFile {
        bytes: header_bytes + offset,
        header_bytes,
        header_crc32: crc32fast::hash(&header),
        tensors: stored,
    };
    Plan { file, header, tensors: sorted }
}

pub(crate) fn row_file(rows: &[u8]) -> RowFile {
    RowFile { bytes: rows.len() as u64, crc32: checksums(rows) }
}

/// The 8 bytes of length, and JSON padded with spaces so that the tensors start at a multiple of 8.
fn header_of(stored: &[StoredTensor]) -> Vec<u8> {
    let quote = |text: &str| serde_json::to_string(text).expect("text is JSON");
    // Some readers refuse files that do not name whose row-major layout this is; "pt" is what they all know.
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    for tensor in stored {
        let (name, dtype, end) = (quote(&tensor.name), tensor.dtype, tensor.offset + tensor.bytes);
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        json += &format!(
            r#",{name}:{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{},{end}]}}"#,
            shape.join(","),
            tensor.offset
        );
    }
    json.push('}');
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use elastic_spec::weights::Dtype;
    use safetensors::SafeTensors;

    #[test]
    fn any_safetensors_reader_reads_what_is_written() {
        let tensor = |name: &str, dtype: Dtype, shape: &[usize], byte: u8| {
            let bytes = Bytes::from(vec![byte; shape.iter().product::<usize>() * dtype.bytes()]);
            TensorBytes { name: name.to_string(), dtype, shape: shape.to_vec(), bytes }
        };
        let tensors = [
            tensor("b\"ü", Dtype::Bf16, &[3], 1),
            tensor("a", Dtype::F32, &[2, 3], 2),
            tensor("scalar", Dtype::F64, &[], 3),
            tensor("none", Dtype::F32, &[0, 4], 4),
            tensor("mask", Dtype::Bool, &[5], 5),
        ];
        let plan = plan(&tensors);
        let mut file = plan.header.clone();
        plan.tensors.iter().for_each(|t| file.extend_from_slice(&t.bytes));
        assert_eq!(file.len() as u64, plan.file.bytes);
        assert_eq!(plan.file.header_bytes % 8, 0);
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.len(), tensors.len());
        for tensor in &tensors {
            let view = read.tensor(&tensor.name).unwrap();
            assert_eq!((view.shape(), view.data()), (&tensor.shape[..], &tensor.bytes[..]));
            assert_eq!(view.dtype().to_string(), tensor.dtype.as_str());
        }
    }

    #[test]
    fn a_tensor_of_many_blocks_has_a_checksum_for_each() {
        let bytes = vec![7; BLOCK_BYTES as usize * 2 + 1];
        assert_eq!(checksums(&bytes).len(), 3);
        assert_eq!(checksums(&[]).len(), 0);
    }
}
