//! What `pipeline.toml` says, resolved: every default filled in, every path absolute.
//!
//! The machinery is that of job files (`job`): a table of keys, all mistakes at once, with lines. What the stages do with
//! it is the pipeline's business.

mod keys;
mod reference;
mod resolve;

pub use keys::PIPELINE;
pub use reference::reference_markdown;
pub use resolve::parse;

use crate::job::Mistake;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The label of the version that a server answers with who names neither a version nor a label; a push moves it unless
/// it is asked for another.
pub const LIVE_LABEL: &str = "live";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PipelineSpec {
    pub name: String,
    pub ingest: Ingest,
    pub train: Train,
    pub export: Export,
    pub evaluate: Evaluate,
    pub check: Check,
    /// None: nothing is pushed.
    pub push: Option<Push>,
    pub store: Store,
}

/// Stages, in the order in which they run.
///
/// Export comes before evaluate: what is evaluated is the very bundle that is pushed, not something that it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Ingest,
    Train,
    Export,
    Evaluate,
    Check,
    Push,
}

impl Stage {
    pub const ALL: [Stage; 6] =
        [Stage::Ingest, Stage::Train, Stage::Export, Stage::Evaluate, Stage::Check, Stage::Push];

    pub fn word(self) -> &'static str {
        match self {
            Stage::Ingest => "ingest",
            Stage::Train => "train",
            Stage::Export => "export",
            Stage::Evaluate => "evaluate",
            Stage::Check => "check",
            Stage::Push => "push",
        }
    }

    pub fn parse(word: &str) -> Option<Stage> {
        Stage::ALL.into_iter().find(|stage| stage.word() == word)
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// How often and how long a stage is tried. No part of what decides its result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Patience {
    /// Tries after the first.
    pub retries: u32,
    /// Before the first retry; it doubles with each.
    pub backoff_ms: u64,
    /// Of one try. None: as long as it takes.
    pub timeout_s: Option<u64>,
}

/// A column of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Column {
    /// From 0; negative: from the end.
    Number(i32),
    Name(String),
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Column::Number(number) => write!(f, "{number}"),
            Column::Name(name) => f.write_str(name),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ingest {
    pub source: Source,
    /// Share of the rows kept for evaluation, above 0 and below 1.
    pub evaluation: f64,
    /// Of the split.
    pub seed: u64,
    /// Names of the classes by number; empty: taken from the data.
    pub labels: Vec<String>,
    /// Columns by whose values evaluation is told apart.
    pub slices: Vec<Column>,
    pub patience: Patience,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "format", rename_all = "snake_case")]
pub enum Source {
    Csv {
        path: String,
        header: bool,
        columns: Columns,
    },
    Jsonl {
        path: String,
        columns: Columns,
    },
    Parquet {
        path: String,
        columns: Columns,
    },
    /// Rows are paragraphs.
    Text {
        path: String,
    },
    /// The two files of MNIST's format.
    Idx {
        path: String,
        labels_path: String,
    },
}

/// Which columns of a table are what.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Columns {
    pub label: Column,
    /// None: all others.
    pub features: Option<Vec<Column>>,
    /// What a row is known by; None: by what is in it.
    pub id: Option<Column>,
}

impl Source {
    /// The files, each with the key that names it.
    pub fn files(&self) -> Vec<(&'static str, &str)> {
        match self {
            Source::Csv { path, .. }
            | Source::Jsonl { path, .. }
            | Source::Parquet { path, .. }
            | Source::Text { path } => {
                vec![("path", path)]
            }
            Source::Idx { path, labels_path } => vec![("path", path), ("labels_path", labels_path)],
        }
    }

    pub fn is_text(&self) -> bool {
        matches!(self, Source::Text { .. })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Train {
    /// A job file; its data is what ingest made.
    pub job: String,
    pub set: Vec<String>,
    /// None: as the job file says. Changes no bit.
    pub workers: Option<u16>,
    pub patience: Patience,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    Hf,
    Npz,
    Onnx,
    Safetensors,
}

impl Format {
    pub fn word(self) -> &'static str {
        match self {
            Format::Hf => "hf",
            Format::Npz => "npz",
            Format::Onnx => "onnx",
            Format::Safetensors => "safetensors",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Export {
    /// Beside the bundle, which is always made.
    pub formats: Vec<Format>,
    pub patience: Patience,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluate {
    pub thresholds: Vec<Threshold>,
    pub changes: Vec<Change>,
    pub patience: Patience,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    Accuracy,
    Loss,
    Precision,
    Recall,
    F1,
}

impl Metric {
    pub fn word(self) -> &'static str {
        match self {
            Metric::Accuracy => "accuracy",
            Metric::Loss => "loss",
            Metric::Precision => "precision",
            Metric::Recall => "recall",
            Metric::F1 => "f1",
        }
    }

    /// Whether it is told of each class rather than of all samples.
    pub fn is_of_a_class(self) -> bool {
        matches!(self, Metric::Precision | Metric::Recall | Metric::F1)
    }
}

/// A number that evaluation tells.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    pub metric: Metric,
    /// Of precision, recall and f1: the label of one class; None: the worst of all.
    pub class: Option<String>,
    /// `column=value`; None: all samples.
    pub slice: Option<String>,
}

impl fmt::Display for Measure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.metric.word())?;
        match &self.class {
            Some(class) => write!(f, " of class {class}")?,
            None if self.metric.is_of_a_class() => f.write_str(" of the worst class")?,
            None => {}
        }
        match &self.slice {
            Some(slice) => write!(f, " where {slice}"),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    #[serde(flatten)]
    pub measure: Measure,
    pub lower: Option<f64>,
    pub upper: Option<f64>,
}

/// What is wanted of the gain over the latest blessed model; a gain is a higher metric, or a lower loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    #[serde(flatten)]
    pub measure: Measure,
    pub absolute: Option<f64>,
    pub relative: Option<f64>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Samples that the server is asked about.
    pub requests: u32,
    pub patience: Patience,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// A folder or an S3 prefix.
    pub registry: String,
    pub model: String,
    /// The label that is moved to the new version.
    pub label: String,
    pub patience: Patience,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// Lineage, runs under way and, without `blobs`, artifacts.
    pub workspace: String,
    pub blobs: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub spec: PipelineSpec,
    pub warnings: Vec<Mistake>,
}

impl PipelineSpec {
    pub fn patience(&self, stage: Stage) -> Patience {
        match stage {
            Stage::Ingest => self.ingest.patience,
            Stage::Train => self.train.patience,
            Stage::Export => self.export.patience,
            Stage::Evaluate => self.evaluate.patience,
            Stage::Check => self.check.patience,
            Stage::Push => self.push.as_ref().map_or(self.check.patience, |push| push.patience),
        }
    }
}
