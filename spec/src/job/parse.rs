//! From the text of a `job.toml` to a [`JobSpec`]: all mistakes at once, or the spec and what to beware of.
//!
//! Pure: paths are resolved as texts, no file is looked at.

use super::JobSpec;
use super::mistake::{Mistake, Place};

/// What the text does not say itself.
#[derive(Clone, Debug, Default)]
pub struct ParseContext {
    /// How the file is called in mistakes: `job.toml`.
    pub file: String,
    /// The folder that relative paths start from: the job file's own, absolute. Empty: they stay relative.
    pub base_dir: String,
    /// `--set` flags in order, `train.lr=0.1`: laid over the file before anything is checked.
    pub overrides: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    pub spec: JobSpec,
    /// Allowed, but probably not what was wanted; in the order of the file.
    pub warnings: Vec<Mistake>,
}

/// Reads a whole job file. `Err` holds every mistake, in the order of the file.
pub fn parse(text: &str, context: &ParseContext) -> Result<Parsed, Vec<Mistake>> {
    let (_root, mut mistakes) = super::document::read(text, context);
    let place = Place::File(context.file.clone());
    let message = "the sections of a job file are not read yet".to_string();
    mistakes.push(Mistake { place, field: String::new(), message, suggestion: None });
    Err(mistakes)
}
