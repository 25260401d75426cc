//! From a job file and the flags beside it to a spec, or to all the mistakes at once.

use crate::exit::mistake;
use anyhow::{Context, Result, anyhow};
use elastic_spec::job::{JobSpec, Mistake, ParseContext, Parsed, Place, parse};
use elastic_spec::limits::JOB_FILE_BYTES_MAX;
use std::path::Path;

/// A job file that has no mistakes.
pub struct JobFile {
    pub text: String,
    pub spec: JobSpec,
    pub warnings: Vec<Mistake>,
}

pub enum Read {
    Good(Box<JobFile>),
    Bad(Vec<Mistake>),
}

/// Reads the file with `--set` and `--workers` laid over it. Touches nothing else.
pub fn read(file: &Path, set: &[String], workers: Option<u16>) -> Result<Read> {
    let text = read_text(file).map_err(mistake)?;
    let whole = std::path::absolute(file).with_context(|| format!("find {}", file.display()))?;
    let mut context = ParseContext {
        file: file.display().to_string(),
        base_dir: whole.parent().unwrap_or(Path::new("/")).display().to_string(),
        overrides: set.to_vec(),
    };
    let Some(workers) = workers else { return Ok(judged(parse(&text, &context), text, "")) };
    let most = format!("elastic.max_workers={workers}");
    context.overrides.push(most.clone());
    // A minimum above would be a mistake that nobody made.
    let least = parse(&text, &ParseContext { overrides: set.to_vec(), ..context.clone() })
        .map_or(1, |parsed| parsed.spec.elastic.min_workers);
    if least > workers {
        context.overrides.push(format!("elastic.min_workers={workers}"));
    }
    Ok(judged(parse(&text, &context), text, &most))
}

/// What was said with `--workers` is called so in mistakes.
fn judged(parsed: Result<Parsed, Vec<Mistake>>, text: String, by_workers: &str) -> Read {
    let rename = |mut mistakes: Vec<Mistake>| {
        for mistake in &mut mistakes {
            if matches!(&mistake.place, Place::Flag(flag) if flag == by_workers) {
                let workers = by_workers.rsplit('=').next().unwrap_or_default();
                mistake.place = Place::File(format!("--workers {workers}"));
            }
        }
        mistakes
    };
    match parsed {
        Ok(Parsed { spec, warnings }) => Read::Good(Box::new(JobFile { text, spec, warnings: rename(warnings) })),
        Err(mistakes) => Read::Bad(rename(mistakes)),
    }
}

fn read_text(path: &Path) -> Result<String> {
    let reading = || format!("read the job file {}", path.display());
    let bytes = std::fs::metadata(path).with_context(reading)?.len();
    if bytes > JOB_FILE_BYTES_MAX as u64 {
        return Err(anyhow!("it has {bytes} bytes, the most is {JOB_FILE_BYTES_MAX}")).with_context(reading);
    }
    std::fs::read_to_string(path).with_context(reading)
}

/// Mistakes as JSON, for programs.
pub fn as_json(mistakes: &[Mistake]) -> serde_json::Value {
    let one = |mistake: &Mistake| {
        serde_json::json!({
            "place": mistake.place.to_string(),
            "line": mistake.line(),
            "column": mistake.column(),
            "field": mistake.field,
            "message": mistake.message,
            "suggestion": mistake.suggestion,
        })
    };
    serde_json::json!({ "mistakes": mistakes.iter().map(one).collect::<Vec<_>>() })
}
