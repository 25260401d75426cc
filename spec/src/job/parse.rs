//! From the text of a `job.toml` to a [`JobSpec`]: all mistakes at once, or the spec and what to beware of.
//!
//! Pure: paths are resolved as texts, no file is looked at.

use super::JobSpec;
use super::document::Document;
use super::mistake::{Mistake, Place};
use super::resolve::Resolved;
use crate::limits::SPEC_BYTES_MAX;

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

/// Most mistakes that are told at once; more would bury the first ones.
const MISTAKES_MAX: usize = 100;

/// Reads a whole job file. `Err` holds every mistake, in the order of the file.
pub fn parse(text: &str, context: &ParseContext) -> Result<Parsed, Vec<Mistake>> {
    let document = super::document::read(text, context);
    let mut resolved = super::resolve::resolve(&document.root, context);
    if let Some(bytes) = resolved.spec.as_ref().map(|spec| spec.canonical_json().len()).filter(|n| *n > SPEC_BYTES_MAX)
    {
        let message = format!("says too much: {bytes} bytes when resolved, at most {SPEC_BYTES_MAX} can be stored");
        let place = Place::File(context.file.clone());
        resolved.wrong.push(Mistake { place, field: String::new(), message, suggestion: None });
    }
    judged(document, resolved, context).map(|(spec, warnings)| Parsed { spec, warnings })
}

/// What was read and its warnings, or all that is wrong with it, in the order of the file.
pub(crate) fn judged<T>(
    document: Document,
    resolved: Resolved<T>,
    context: &ParseContext,
) -> Result<(T, Vec<Mistake>), Vec<Mistake>> {
    let mut mistakes = document.mistakes;
    if mistakes.is_empty() {
        mistakes.extend(resolved.missing);
    }
    // A line that is no TOML gives values that nobody wrote: about those nothing is said.
    mistakes.extend(resolved.wrong.into_iter().filter(|mistake| !document.broken.contains(&mistake.line())));
    match resolved.spec {
        Some(spec) if mistakes.is_empty() => {
            let mut warnings = resolved.warnings;
            warnings.sort_by(|a, b| a.place.cmp(&b.place));
            Ok((spec, warnings))
        }
        _ => {
            assert!(!mistakes.is_empty(), "a spec that cannot be made has a mistake to show for it");
            mistakes.sort_by(|a, b| a.place.cmp(&b.place));
            Err(shortened(mistakes, context))
        }
    }
}

fn shortened(mut mistakes: Vec<Mistake>, context: &ParseContext) -> Vec<Mistake> {
    let rest = mistakes.len().saturating_sub(MISTAKES_MAX);
    if rest > 0 {
        mistakes.truncate(MISTAKES_MAX);
        let place = Place::File(context.file.clone());
        let message = format!("{rest} more mistakes are not shown");
        mistakes.push(Mistake { place, field: String::new(), message, suggestion: None });
    }
    mistakes
}
