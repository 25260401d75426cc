//! `elastic export`: makes a model of a run.

use crate::exit::{Exit, Outcome, mistake};
use crate::models::{self, Asked, Named, Weights};
use crate::show;
use crate::workspace::quoted;
use anyhow::{Context, Result, anyhow};
use clap::ValueHint;
use elastic_bundle::Manifest;
use elastic_pipeline::registry::Registry;
use elastic_spec::pipeline::LIVE_LABEL;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  elastic export runs/digits-3f2a --out models/digits              a bundle, to be served
  elastic export runs/digits-3f2a --registry models                the next version of its model, to be served
  elastic export runs/digits-3f2a --labels names.txt --out b       with names for the classes, one a line
  elastic export runs/gpt-77aa --format hf --out gpt-hf            for the transformers library
  elastic export runs/digits-3f2a --format onnx --out digits-onnx
  elastic export runs/digits-3f2a/checkpoints/step-00000450.t1.g1 --out b
  elastic export s3://bucket/states/digits-3f2a --out b            a run whose checkpoints lie in a bucket

The newest checkpoint that proves whole is taken. The same model gives the same
files, byte for byte, whoever trained it on however many workers; who that was
stands in provenance.json beside them. Nothing is ever replaced: --out must not
exist yet, and what --registry has already gets no second version. A version that
--registry gets answers who names none, unless the label `live` is elsewhere;
`elastic pipeline label` moves it.

Exit codes: 0 written, 1 it could not be written, 2 mistakes on the command line.")]
pub struct Args {
    /// A run's directory, or a checkpoint, or the same in a bucket
    #[arg(value_name = "RUN|CHECKPOINT", value_hint = ValueHint::AnyPath)]
    pub path: PathBuf,
    /// Directory to write
    #[arg(long, value_name = "DIR", value_hint = ValueHint::AnyPath, required_unless_present = "registry")]
    pub out: Option<PathBuf>,
    /// Publish the bundle as the next version of its model: a folder, or s3://bucket/prefix
    #[arg(long, value_name = "REGISTRY", value_hint = ValueHint::DirPath, conflicts_with_all = ["out", "format"])]
    pub registry: Option<String>,
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
    match (&args.registry, &args.out, args.format.of_others()) {
        (Some(registry), _, _) => {
            let published = publish(&named, registry)?;
            let ended = tell_bundle(&args, &named, &published.manifest, &published.place, Some(&published));
            published.behind.iter().for_each(|words| eprintln!("{words}"));
            ended
        }
        (None, None, _) => Err(mistake(anyhow!("--out says where to write, or --registry where to publish")).into()),
        (None, Some(out), Some(format)) => in_another_format(&args, &named, format, out),
        (None, Some(out), None) => {
            let manifest = elastic_bundle::write(out, &named.model, &named.provenance);
            let manifest = manifest.with_context(|| format!("export {}", args.path.display()))?;
            tell_bundle(&args, &named, &manifest, &out.display().to_string(), None)
        }
    }
}

fn in_another_format(args: &Args, named: &Named, format: elastic_export::Format, out: &Path) -> Outcome {
    let files = elastic_export::export(&named.model, format, out);
    let files = files.with_context(|| format!("export {}", args.path.display()))?;
    if args.json {
        let value = json!({
            "format": format.as_str(),
            "out": out,
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

fn tell_bundle(
    args: &Args,
    named: &Named,
    manifest: &Manifest,
    place: &str,
    published: Option<&InRegistry>,
) -> Outcome {
    let bytes: u64 = manifest.files.iter().map(|file| file.bytes).sum();
    if args.json {
        let mut value = json!({
            "format": "bundle",
            "out": place,
            "job": named.provenance.job,
            "step": named.provenance.step,
            "average": named.provenance.average,
            "weights_sha256": manifest.weights_sha256,
            "content_sha256": manifest.content_sha256,
            "bytes": bytes,
        });
        if let Some(published) = published {
            value["version"] = json!(published.version);
            value["default"] = json!(published.behind.is_none());
        }
        show::out(&format!("{value}\n"))?;
        return Ok(Exit::Ok);
    }
    let which = if named.provenance.average { ", the average of its weights" } else { "" };
    show::out(&format!(
        "step {} of {}{which}\n\n  bundle           {place} ({})\n  content SHA-256  {}\n  weights SHA-256  {}\n",
        named.provenance.step,
        named.provenance.job,
        show::bytes(bytes),
        manifest.content_sha256,
        manifest.weights_sha256,
    ))?;
    Ok(Exit::Ok)
}

/// A bundle in a registry.
struct InRegistry {
    manifest: Manifest,
    version: u64,
    place: String,
    /// What to say where another version goes on answering who names none.
    behind: Option<String>,
}

/// Publishes a run as the next version of its model, and tells where.
pub fn as_next_version(run: &Path, registry: &str) -> Result<()> {
    let asked = Asked { run: None, weights: Weights::Best, labels: None };
    let published = publish(&models::find(run, &asked)?, registry)?;
    eprintln!("  {:<21}{}", "exported to", published.place);
    published.behind.iter().for_each(|words| eprintln!("{words}"));
    Ok(())
}

fn publish(named: &Named, registry: &str) -> Result<InRegistry> {
    let model = &named.model.description.name;
    let aside = tempfile::tempdir().context("make a temporary directory for the bundle; TMPDIR names another place")?;
    let bundle = aside.path().join("bundle");
    let manifest = elastic_bundle::write(&bundle, &named.model, &named.provenance)
        .with_context(|| format!("write a bundle of {}", named.provenance.source))?;
    let found = Registry::open(registry)?;
    let version = found.publish(model, &bundle, || ()).with_context(|| format!("publish {model} in {registry}"))?;
    found.verify(model, version).context("read back what was published")?;
    let place = format!("{}/{model}/{version}", registry.trim_end_matches('/'));
    let behind = match found.labels(model)?.get(LIVE_LABEL) {
        Some(live) if *live != version => {
            let to = format!("elastic pipeline label {} {model} {LIVE_LABEL} {version}", quoted(registry));
            Some(format!(
                "version {live}, labelled {LIVE_LABEL}, goes on answering who names none; to have this one instead:\n  {to}"
            ))
        }
        Some(_) => None,
        None => {
            let versions = found.versions(model)?;
            let newest =
                versions.iter().rev().find(|(_, version)| version.published.is_some()).map(|(number, _)| *number);
            let newest = newest.filter(|newest| *newest != version);
            newest.map(|newest| format!("it was there already; version {newest}, the newest, answers who names none"))
        }
    };
    Ok(InRegistry { manifest, version, place, behind })
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
