//! A bundle in the formats of others: Hugging Face, ONNX, NumPy, safetensors.
//!
//! What is written is a function of the model alone: the same model has the same bytes, whoever trained it and in whatever
//! order its tensors come. `docs/export.md` says what each format keeps and loses.

mod hf;
mod npz;
mod onnx;

use anyhow::{Context, Result, anyhow, ensure};
use elastic_bundle::{Model, Predictor, Tensor, publish, safetensors};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A format of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The weights, in one file that many programs read.
    Safetensors,
    /// A folder that the transformers library loads: decoders.
    Hf,
    /// A graph with its weights that any ONNX runtime runs: every model but one's own.
    Onnx,
    /// The weights, as `numpy.load` reads them.
    Npz,
}

impl Format {
    pub const ALL: [Format; 4] = [Format::Safetensors, Format::Hf, Format::Onnx, Format::Npz];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Safetensors => "safetensors",
            Format::Hf => "hf",
            Format::Onnx => "onnx",
            Format::Npz => "npz",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        let known = Format::ALL.map(Format::as_str).join(", ");
        Format::ALL
            .into_iter()
            .find(|format| format.as_str() == text)
            .ok_or_else(|| format!("there is no format {text:?}; known are {known}"))
    }
}

/// Makes `dir` the model in that format, and names the files. It appears by one rename, whole or not at all, and never
/// replaces anything. An error says what cannot be exported, and what can.
pub fn export(model: &Model, format: Format, dir: &Path) -> Result<Vec<PathBuf>> {
    let files = files(model, format)?;
    publish(dir, &files)?;
    Ok(files.iter().map(|(name, _)| dir.join(name)).collect())
}

/// Names and bytes, in the order in which they are written.
fn files(model: &Model, format: Format) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let weights = sorted(&model.weights)?;
    match format {
        Format::Safetensors => Ok(vec![("model.safetensors", safetensors(&model.weights, &[("format", "pt")]))]),
        Format::Npz => Ok(vec![("weights.npz", npz::archive(&weights)?)]),
        Format::Hf => {
            check(model).context("export as hf")?;
            hf::files(model, &weights).context("export as hf")
        }
        Format::Onnx => {
            check(model).context("export as onnx")?;
            onnx::files(model, &weights).context("export as onnx")
        }
    }
}

/// Whether description and weights go together, so that the network can be written down without looking again.
fn check(model: &Model) -> Result<()> {
    model.description.check()?;
    Predictor::new(model, 1).map(drop).map_err(|why| anyhow!("the model and its weights do not go together: {why}"))
}

/// The tensors by name, each once and as long as its shape says.
fn sorted(tensors: &[Tensor]) -> Result<Vec<&Tensor>> {
    let mut sorted: Vec<&Tensor> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    for pair in sorted.windows(2) {
        ensure!(pair[0].name != pair[1].name, "tensor {:?} comes twice", pair[0].name);
    }
    for tensor in &sorted {
        let Tensor { name, shape, dtype, bytes } = tensor;
        let wanted = shape.iter().try_fold(dtype.bytes(), |bytes, side| bytes.checked_mul(*side));
        ensure!(
            wanted == Some(bytes.len()),
            "tensor {name:?} has {} bytes, which are no {dtype} {shape:?}",
            bytes.len()
        );
    }
    Ok(sorted)
}

#[cfg(test)]
mod tests;
