//! `elastic export`: makes a model of a run.

use crate::exit::{Exit, Outcome, mistake};
use crate::models::{self, Asked, Named, Weights};
use crate::show;
use anyhow::{Context, Result, anyhow};
use clap::ValueHint;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic export runs/digits-3f2a --out models/digits              a bundle, to be served
  elastic export runs/digits-3f2a --out models/digits/2            the second version of a model
  elastic export runs/digits-3f2a --labels names.txt --out b       with names for the classes, one a line
  elastic export runs/gpt-77aa --format hf --out gpt-hf            for the transformers library
  elastic export runs/digits-3f2a --format onnx --out digits-onnx
  elastic export runs/digits-3f2a/checkpoints/step-00000450.t1.g1 --out b

The newest checkpoint that proves whole is taken. The same model gives the same
files, byte for byte, whoever trained it on however many workers; who that was
stands in provenance.json beside them. Nothing is ever replaced: --out must not
exist yet.

Exit codes: 0 written, 1 it could not be written, 2 mistakes on the command line.")]
pub struct Args {
    /// A run's directory, or a checkpoint
    #[arg(value_name = "RUN|CHECKPOINT", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// Directory to write
    #[arg(long, value_name = "DIR", value_hint = ValueHint::AnyPath)]
    pub out: PathBuf,
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Bundle)]
    pub format: Format,
    /// Which weights
    #[arg(long, value_enum, default_value_t = Weights::Best)]
    pub weights: Weights,
    /// File with the names of the classes, one a line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub labels: Option<PathBuf>,
    /// The run's directory, for a checkpoint that lies elsewhere
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub run: Option<PathBuf>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A model that `elastic serve` answers with
    Bundle,
    /// The weights in one file that many programs read
    Safetensors,
    /// A folder that the transformers library loads (gpt)
    Hf,
    /// A graph with its weights, for any ONNX runtime
    Onnx,
    /// The weights, for numpy.load
    Npz,
}

impl Format {
    fn of_others(self) -> Option<elastic_export::Format> {
        match self {
            Format::Bundle => None,
            Format::Safetensors => Some(elastic_export::Format::Safetensors),
            Format::Hf => Some(elastic_export::Format::Hf),
            Format::Onnx => Some(elastic_export::Format::Onnx),
            Format::Npz => Some(elastic_export::Format::Npz),
        }
    }
}

pub fn run(args: Args) -> Outcome {
    let labels = args.labels.as_deref().map(read_labels).transpose()?;
    let asked = Asked { run: args.run.as_deref(), weights: args.weights, labels };
    let named = models::find(&args.path, &asked)?;
    match args.format.of_others() {
        Some(format) => in_another_format(&args, &named, format),
        None => as_bundle(&args, &named),
    }
}

fn in_another_format(args: &Args, named: &Named, format: elastic_export::Format) -> Outcome {
    let files = elastic_export::export(&named.model, format, &args.out);
    let files = files.with_context(|| format!("export {}", args.path.display()))?;
    if args.json {
        let value = json!({
            "format": format.as_str(),
            "out": args.out,
            "job": named.provenance.job,
            "step": named.provenance.step,
            "average": named.provenance.average,
            "files": files,
        });
        show::out(&format!("{value}\n"))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("step {} of {}\n\n", named.provenance.step, named.provenance.job);
    for file in &files {
        let bytes = std::fs::metadata(file).map_or(0, |file| file.len());
        text += &format!("  {} ({})\n", file.display(), show::bytes(bytes));
    }
    show::out(&text)?;
    Ok(Exit::Ok)
}

fn as_bundle(args: &Args, named: &Named) -> Outcome {
    let manifest = elastic_bundle::write(&args.out, &named.model, &named.provenance);
    let manifest = manifest.with_context(|| format!("export {}", args.path.display()))?;
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    if args.json {
        let value = json!({
            "format": "bundle",
            "out": args.out,
            "job": named.provenance.job,
            "step": named.provenance.step,
            "average": named.provenance.average,
            "weights_sha256": manifest.weights_sha256,
            "content_sha256": manifest.content_sha256,
            "bytes": bytes,
        });
        show::out(&format!("{value}\n"))?;
        return Ok(Exit::Ok);
    }
    let which = if named.provenance.average { ", the average of its weights" } else { "" };
    show::out(&format!(
        "step {} of {}{which}\n\n  bundle           {} ({})\n  content SHA-256  {}\n  weights SHA-256  {}\n",
        named.provenance.step,
        named.provenance.job,
        args.out.display(),
        show::bytes(bytes),
        manifest.content_sha256,
        manifest.weights_sha256,
    ))?;
    Ok(Exit::Ok)
}

/// Exports a run as the next version of its model in a registry: `<registry>/<job name>/<version>`.
pub fn as_next_version(run: &Path, registry: &Path) -> Result<PathBuf> {
    let asked = Asked { run: None, weights: Weights::Best, labels: None };
    let named = models::find(run, &asked)?;
    let model = registry.join(&named.model.description.name);
    let versions = std::fs::read_dir(&model).map(|entries| {
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u64>().ok()).max().unwrap_or(0)
    });
    let mut version = versions.unwrap_or(0) + 1;
    loop {
        let out = model.join(version.to_string());
        match elastic_bundle::write(&out, &named.model, &named.provenance) {
            Ok(_) => return Ok(out),
            // Somebody else was a moment earlier.
            Err(elastic_bundle::WriteError::Folder(elastic_bundle::FolderError::There(_))) => version += 1,
            Err(error) => return Err(error).with_context(|| format!("export {}", run.display())),
        }
    }
}

/// One name a line; a line end at the end is no name.
fn read_labels(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display())).map_err(mistake)?;
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_string()).collect();
    match labels.iter().position(String::is_empty) {
        Some(at) => Err(mistake(anyhow!("{}, line {}: a class has no name", path.display(), at + 1))),
        None => Ok(labels),
    }
}
