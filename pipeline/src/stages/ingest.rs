//! Ingest: the one stage whose work is done in this process.

use super::{Failure, Made, Place};
use crate::artifact::{Artifact, Kind};
use crate::fail::{self, Moment};
use crate::ingest::{IngestError, ingest};
use elastic_spec::pipeline::Stage;
use serde_json::json;

pub fn run(place: &Place) -> Result<Made, Failure> {
    let out = place.folder("rows")?;
    let made = ingest(&place.asked.spec.ingest, &out).map_err(|error| match error {
        IngestError::Malformed { .. } => Failure::last(error),
        IngestError::Unreadable { .. } | IngestError::Write { .. } => Failure::passing(error),
    })?;
    place.in_time()?;
    let mut blobs = Vec::new();
    for (i, file) in made.files.iter().enumerate() {
        blobs.push(place.workspace.keep(&out.join(file), file, true)?);
        if i == 0 {
            fail::at(Stage::Ingest, Moment::Work);
        }
    }
    let dataset = &made.dataset;
    let words = match dataset.classes {
        0 => format!("{} paragraphs to train, {} to evaluate", dataset.train_rows, dataset.evaluation_rows),
        classes => format!(
            "{} rows to train, {} to evaluate; {} numbers, {classes} classes",
            dataset.train_rows, dataset.evaluation_rows, dataset.features
        ),
    };
    let examples = Artifact::new(Kind::Examples, json!(dataset), blobs);
    Ok(Made { outputs: vec![("examples".into(), examples)], words, ..Made::default() })
}
