//! From a pipeline file to what is asked: its spec and the job that it trains, or all mistakes in both files.

use crate::ingest::Dataset;
use anyhow::{Context, Result, anyhow};
use elastic_spec::job::{JobSpec, Mistake, ParseContext};
use elastic_spec::limits::JOB_FILE_BYTES_MAX;
use elastic_spec::pipeline::PipelineSpec;
use std::path::Path;

/// A pipeline file that has no mistakes, and the job file that it names.
pub struct Asked {
    pub spec: PipelineSpec,
    pub job_text: String,
    /// Its data is not known before ingest: one of the right kind stands for it.
    pub job: JobSpec,
    pub warnings: Vec<Mistake>,
}

/// Reads both files. The inner error holds every mistake.
pub fn read(file: &Path, set: &[String]) -> Result<Result<Asked, Vec<Mistake>>> {
    let text = read_text(file).with_context(|| format!("read the pipeline file {}", file.display()))?;
    let parsed = match elastic_spec::pipeline::parse(&text, &context(file, set.to_vec())?) {
        Ok(parsed) => parsed,
        Err(mistakes) => return Ok(Err(mistakes)),
    };
    let spec = parsed.spec;
    let path = Path::new(&spec.train.job);
    let job_text = read_text(path).with_context(|| format!("train.job: read the job file {}", path.display()))?;
    let stand_in = Dataset { train_rows: 1, evaluation_rows: 1, features: 1, classes: 2, slices: vec![] };
    Ok(match job_of(&spec, &job_text, &stand_in, Path::new("/data"))? {
        Err(mistakes) => Err(mistakes),
        Ok(job) => Ok(Asked { spec, job_text, job, warnings: parsed.warnings }),
    })
}

/// The job with what ingest made as its data.
pub fn job_of(
    spec: &PipelineSpec,
    text: &str,
    dataset: &Dataset,
    data: &Path,
) -> Result<Result<JobSpec, Vec<Mistake>>> {
    // The model is called like its pipeline, wherever the files lie.
    let mut overrides = vec![format!("name=\"{}\"", spec.name)];
    overrides.extend(spec.train.set.iter().cloned());
    let path = format!("data.path={}", serde_json::to_string(&data.display().to_string()).context("a path as text")?);
    match spec.ingest.source.is_text() {
        true => overrides.extend(["data.kind=\"text\"".to_string(), path]),
        false => overrides.extend([
            "data.kind=\"csv\"".to_string(),
            path,
            "data.label=-1".into(),
            "data.header=false".into(),
            format!("data.classes={}", dataset.classes),
        ]),
    }
    let context = context(Path::new(&spec.train.job), overrides)?;
    Ok(elastic_spec::job::parse(text, &context).map(|parsed| parsed.spec))
}

fn context(file: &Path, overrides: Vec<String>) -> Result<ParseContext> {
    let whole = std::path::absolute(file).with_context(|| format!("find {}", file.display()))?;
    let base_dir = whole.parent().unwrap_or(Path::new("/")).display().to_string();
    Ok(ParseContext { file: file.display().to_string(), base_dir, overrides })
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::metadata(path)?.len();
    if bytes > JOB_FILE_BYTES_MAX as u64 {
        return Err(anyhow!("it has {bytes} bytes, the most is {JOB_FILE_BYTES_MAX}"));
    }
    Ok(std::fs::read_to_string(path)?)
}
