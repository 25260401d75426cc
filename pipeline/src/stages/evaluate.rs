//! Evaluate: figures of the bundle on the rows that training never saw, against bounds and against the blessed model.

use super::{Failure, Made, Place, text};
use crate::artifact::{Artifact, Kind};
use crate::fail::{self, Moment};
use crate::ingest::Dataset;
use crate::judge::{Figures, judge};
use crate::registry::Baseline;
use anyhow::Context;
use elastic_spec::pipeline::Stage;
use serde_json::json;
use std::path::Path;

pub fn run(place: &Place, baseline: Option<Baseline>) -> Result<Made, Failure> {
    let bundle = place.fetched("bundle")?;
    let examples = place.artifact("examples")?;
    let dataset: Dataset = serde_json::from_value(examples.facts.clone()).context("the facts of examples")?;
    let candidate = figures(place, &bundle, &dataset, "candidate")?;
    fail::at(Stage::Evaluate, Moment::Work);
    let old = match &baseline {
        None => None,
        Some(baseline) => {
            let dir = place.folder("baseline")?;
            baseline.fetch(&dir)?;
            Some(figures(place, &dir, &dataset, "baseline")?)
        }
    };
    let judgement = judge(&place.asked.spec.evaluate, &candidate, old.as_ref());
    let report = json!({
        "candidate": candidate,
        "baseline": old,
        "baseline_content_sha256": baseline.as_ref().map(|baseline| &baseline.content_sha256),
        "refusals": judgement.refusals,
        "skipped": judgement.skipped,
    });
    let path = place.work.join("evaluation.json");
    let json = serde_json::to_string_pretty(&report).context("figures as JSON")? + "\n";
    std::fs::write(&path, json).with_context(|| format!("write {}", path.display()))?;
    let blob = place.workspace.keep(&path, "evaluation.json", true)?;
    let facts = json!({
        "accuracy": candidate.all["accuracy"],
        "loss": candidate.all["loss"],
        "refusals": judgement.refusals,
    });
    let words = format!(
        "{}loss {:.4}{}",
        candidate.all["accuracy"].as_f64().map(|a| format!("accuracy {:.2} %, ", a * 100.0)).unwrap_or_default(),
        candidate.all["loss"].as_f64().unwrap_or(f64::NAN),
        baseline.map(|baseline| format!("; compared with version {}", baseline.version)).unwrap_or_default(),
    );
    let evaluation = Artifact::new(Kind::Evaluation, facts, vec![blob]);
    Ok(Made { outputs: vec![("evaluation".into(), evaluation)], words, said: judgement.skipped, ..Made::default() })
}

fn figures(place: &Place, bundle: &Path, dataset: &Dataset, name: &str) -> Result<Figures, Failure> {
    let bundle = text(bundle);
    let file = if dataset.classes == 0 { "evaluation.txt" } else { "evaluation.csv" };
    let of = |name: &str, file: &str| -> Result<serde_json::Value, Failure> {
        let data = text(&place.fetched_one("examples", file)?);
        Ok(place.elastic(name, &["evaluate", &bundle, "--data", &data, "--json"])?)
    };
    let mut figures = Figures { all: of(name, file)?, ..Figures::default() };
    for (i, slice) in dataset.slices.iter().enumerate() {
        figures.slices.insert(slice.name.clone(), of(&format!("{name}-{i}"), &slice.file)?);
    }
    Ok(figures)
}
