//! NumPy's `.npz`: a zip archive with a `.npy` for each tensor, stored as it is, without times.

use anyhow::{Context, Result, bail};
use elastic_bundle::Tensor;
use elastic_spec::weights::Dtype;
use std::io::{Cursor, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

/// The tensors in the order in which they come.
pub fn archive(tensors: &[&Tensor]) -> Result<Vec<u8>> {
    // Fixed, whatever else in the program asks the zip crate for: the same tensors are the same bytes.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for tensor in tensors {
        let name = format!("{}.npy", tensor.name);
        let head = head(tensor)?;
        let large = (head.len() + tensor.bytes.len()) as u64 >= u64::from(u32::MAX);
        writer.start_file(&name, options.large_file(large)).with_context(|| format!("add {name}"))?;
        writer
            .write_all(&head)
            .and_then(|()| writer.write_all(&tensor.bytes))
            .with_context(|| format!("add {name}"))?;
    }
    Ok(writer.finish().context("end the archive")?.into_inner())
}

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";

/// What stands before a tensor's bytes: version 1.0, C order, as long as a multiple of 64.
fn head(tensor: &Tensor) -> Result<Vec<u8>> {
    let descr = match tensor.dtype {
        Dtype::F64 => "<f8",
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
        Dtype::I64 => "<i8",
        Dtype::I32 => "<i4",
        Dtype::I16 => "<i2",
        Dtype::I8 => "|i1",
        Dtype::U64 => "<u8",
        Dtype::U32 => "<u4",
        Dtype::U16 => "<u2",
        Dtype::U8 => "|u1",
        Dtype::Bool => "|b1",
        Dtype::Bf16 => bail!("tensor {:?} is BF16, which NumPy has not; export safetensors", tensor.name),
    };
    let axes: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
    let shape = if let [one] = &axes[..] { format!("({one},)") } else { format!("({})", axes.join(", ")) };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    let used = MAGIC.len() + 2 + text.len() + 1;
    text += &" ".repeat(used.next_multiple_of(64) - used);
    text.push('\n');
    let length = u16::try_from(text.len()).with_context(|| format!("tensor {:?} has too many axes", tensor.name))?;
    Ok([MAGIC, &length.to_le_bytes(), text.as_bytes()].concat())
}
