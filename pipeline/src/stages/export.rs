//! Export: a bundle of the trained model, and the files of others.

use super::{Failure, Made, Place, text};
use crate::artifact::{Artifact, Kind};
use crate::fail::{self, Moment};
use anyhow::{Context, Result};
use elastic_spec::pipeline::Stage;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Beside what a bundle is: how it came about. A manifest tells nothing that the others do not, and is kept all the same.
const PROVENANCE: &str = "provenance.json";

pub fn run(place: &Place) -> Result<Made, Failure> {
    let (run, checkpoint) = run_dir(place)?;
    let labels = match place.artifact("examples")?.blob("labels.txt") {
        Some(_) => Some(text(&place.fetched_one("examples", "labels.txt")?)),
        None => None,
    };
    let mut made = Made::default();
    for format in std::iter::once("bundle").chain(place.asked.spec.export.formats.iter().map(|format| format.word())) {
        place.in_time()?;
        let out = place.work.join(format);
        let (run, checkpoint, to) = (text(&run), text(&checkpoint), text(&out));
        let mut args = vec!["export", &checkpoint, "--run", &run, "--format", format, "--out", &to, "--json"];
        if let Some(labels) = &labels {
            args.extend(["--labels", labels]);
        }
        let said = place.elastic(&format!("export-{format}"), &args)?;
        let blobs = place.keep_all(&out, |name| name != PROVENANCE)?;
        if format == "bundle" {
            fail::at(Stage::Export, Moment::Work);
            made.lived = views(&out.join(PROVENANCE))?;
            let content = said["content_sha256"].as_str().context("export tells the digest of the content")?;
            made.words = format!("bundle {}", content.get(..16).unwrap_or(content));
            let facts = json!({ "content_sha256": content, "weights_sha256": said["weights_sha256"] });
            made.outputs.push(("bundle".into(), Artifact::new(Kind::Bundle, facts, blobs)));
        } else {
            made.words += &format!(", {format}");
            let facts = json!({ "format": format, "weights_sha256": said["weights_sha256"] });
            made.outputs.push((format.into(), Artifact::new(Kind::Export, facts, blobs)));
        }
    }
    Ok(made)
}

/// The model as the directory of a run, and the checkpoint in it: the run may have kept its own elsewhere.
fn run_dir(place: &Place) -> Result<(PathBuf, PathBuf)> {
    let model = place.artifact("model")?;
    let checkpoint = model.notes["checkpoint"].as_str().context("a model has a checkpoint")?;
    let dir = place.folder("run")?;
    for blob in &model.blobs {
        let name = match blob.name.strip_prefix("checkpoint/") {
            Some(name) => format!("checkpoints/{checkpoint}/{name}"),
            None => blob.name.clone(),
        };
        place.workspace.fetch_one(blob, &dir.join(name))?;
    }
    let checkpoint = dir.join("checkpoints").join(checkpoint);
    Ok((dir, checkpoint))
}

fn views(provenance: &Path) -> Result<Vec<Value>> {
    let json = std::fs::read(provenance).with_context(|| format!("read {}", provenance.display()))?;
    let provenance: Value = serde_json::from_slice(&json).with_context(|| format!("read {}", provenance.display()))?;
    Ok(provenance["views"].as_array().cloned().unwrap_or_default())
}
