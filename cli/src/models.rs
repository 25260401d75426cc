//! Finds the model that a path names: a bundle, a run, or a checkpoint of one, in a folder or a bucket.

use crate::exit::mistake;
use anyhow::{Context, Result, anyhow};
use elastic_bundle::{Bundle, Description, Lived, Model, Provenance, Shape, Tensor};
use elastic_checkpoint::{Restored, TensorBytes, newest_whole, newest_whole_in};
use elastic_serve::repository::scan;
use elastic_spec::about::{About, JOB, TOKENIZER, VIEWS};
use elastic_spec::batch::DataShape;
use elastic_spec::job::DataSource;
use elastic_transform::Transform;
use elastic_worker::bucket::{Bucket, is_bucket};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// A model, and where it comes from.
pub struct Named {
    pub model: Model,
    pub provenance: Provenance,
    /// Where it is of a run: the job as it was resolved.
    pub about: Option<About>,
}

/// Which of a run's weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Weights {
    /// The average that the run kept (train.ema), else the last ones
    Best,
    /// Those after the last step
    Last,
    /// The average; an error where none was kept
    Average,
}

/// What else the command line says.
pub struct Asked<'a> {
    /// The directory of the run, where a checkpoint lies elsewhere.
    pub run: Option<&'a Path>,
    pub weights: Weights,
    pub labels: Option<Vec<String>>,
}

/// A bundle where there is a bundle, the newest of a model's versions where there are versions, else a run or a
/// checkpoint.
pub fn find(path: &Path, asked: &Asked) -> Result<Named> {
    let dir = match path.join("model.json").exists() {
        true => Some(path.to_path_buf()),
        false if path.join(JOB).exists() => None,
        false => newest_version(path),
    };
    let Some(dir) = dir else { return of_run(path, asked) };
    let bundle = Bundle::open(&dir).map_err(|error| anyhow!("{error}"))?;
    let provenance = elastic_bundle::read_provenance(&dir).map_err(|error| anyhow!("{error}"))?;
    Ok(Named { model: bundle.model, provenance: provenance.unwrap_or_default(), about: None })
}

/// Of a model's directory in a registry, whatever labels there are.
fn newest_version(path: &Path) -> Option<PathBuf> {
    scan::of_model(path).ok()?.versions.pop_last().map(|(_, version)| version.dir)
}

fn of_run(path: &Path, asked: &Asked) -> Result<Named> {
    if !path.exists() && address(path).is_none() {
        let cure = "name a run's directory (as `elastic submit` prints it), a checkpoint in it, or a bundle";
        return Err(mistake(anyhow!("{} does not exist; {cure}", path.display())));
    }
    let run = Run::of(path, asked.run)?;
    let about = run.about()?;
    let restored = newest(path, &run, &about)?;
    let found = restored.manifest.config_sha256;
    if found != about.spec.config_digest() {
        tracing::warn!(run = %run.place(), "the checkpoint was written by a job with other keys than {JOB} has");
    }
    let is_average = takes_average(&restored, asked.weights)?;
    let tokenizer = match &about.spec.data.source {
        DataSource::Text { tokenizer: Some(_), .. } => {
            let bytes = run.read(TOKENIZER)?;
            Some(bytes.with_context(|| format!("there is no {TOKENIZER} at {}", run.place()))?)
        }
        _ => None,
    };
    let provenance = provenance(&run, &about, &restored, is_average)?;
    let description = describe(&about, asked.labels.clone())?;
    let model = Model { description, weights: weights(&restored, is_average), tokenizer };
    Ok(Named { model, provenance, about: Some(about) })
}

/// What lies beside a run's checkpoints.
enum Run {
    Folder(PathBuf),
    Bucket(Bucket, PathBuf),
}

impl Run {
    /// The one that has the run's `job.json`: the path itself, or above a checkpoint.
    fn of(path: &Path, said: Option<&Path>) -> Result<Run> {
        if let Some(run) = said {
            return Ok(Run::Folder(run.to_path_buf()));
        }
        if let Some(address) = address(path) {
            let run = match address.rsplit_once('/') {
                Some((run, checkpoint)) if checkpoint.starts_with("step-") => run,
                _ => address,
            };
            let (bucket, root) = open(run)?;
            return Ok(Run::Bucket(bucket, root));
        }
        let whole = path.canonicalize().with_context(|| format!("read {}", path.display()))?;
        let found = whole.ancestors().take(3).find(|dir| dir.join(JOB).exists());
        found.map(|dir| Run::Folder(dir.to_path_buf())).ok_or_else(|| {
            mistake(anyhow!(
                "there is no {JOB} at {} or above it, which says what the weights belong to; name the run's directory, or \
                 say it with --run DIR (runs of older versions have none: resume one with `elastic submit --resume`)",
                path.display()
            ))
        })
    }

    fn place(&self) -> String {
        match self {
            Run::Folder(dir) | Run::Bucket(_, dir) => dir.display().to_string(),
        }
    }

    /// A file's bytes; None if it is not there.
    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let reading = || format!("read {name} at {}", self.place());
        match self {
            Run::Bucket(bucket, _) => bucket.beside(name).with_context(reading),
            Run::Folder(dir) => match std::fs::read(dir.join(name)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                bytes => bytes.map(Some).with_context(reading),
            },
        }
    }

    fn about(&self) -> Result<About> {
        let bytes = self.read(JOB)?.ok_or_else(|| {
            let cure = "resume the run with `elastic submit --resume`, or name another with --run DIR";
            mistake(anyhow!("there is no {JOB} at {}, which says what the weights belong to; {cure}", self.place()))
        })?;
        let text = String::from_utf8(bytes).map_err(|why| mistake(anyhow!("{JOB} at {}: {why}", self.place())))?;
        About::from_json(&text).map_err(|why| mistake(anyhow!("{JOB} at {}: {why}", self.place())))
    }
}

/// The address of a bucket, where a path is one.
fn address(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| is_bucket(text)).map(|text| text.trim_end_matches('/'))
}

fn open(address: &str) -> Result<(Bucket, PathBuf)> {
    Bucket::open(address).map_err(|error| mistake(anyhow::Error::new(error)))
}

fn newest(path: &Path, run: &Run, about: &About) -> Result<Restored> {
    // A run's checkpoints may lie elsewhere.
    let elsewhere = match (&about.spec.checkpoint.dir, run) {
        (Some(states), Run::Folder(dir)) if path.join(JOB).exists() => {
            // A path may end in `..`.
            let whole = dir.canonicalize().with_context(|| format!("read {}", dir.display()))?;
            whole.file_name().map(|name| Path::new(states).join(name))
        }
        _ => None,
    };
    let place = elsewhere.as_deref().unwrap_or(path);
    let found = match address(place) {
        Some(address) => open(address).and_then(|(bucket, root)| Ok(newest_whole_in(&bucket, &root)?)),
        None => newest_whole(place).map_err(anyhow::Error::from),
    };
    let found = found.with_context(|| format!("read the checkpoints at {}", place.display()))?;
    for refused in &found.refused {
        tracing::warn!(path = %refused.path.display(), why = %refused.why, "a checkpoint is damaged; the one before is taken");
    }
    let why = found.refused.first().map(|refused| format!("; {} is damaged: {}", refused.path.display(), refused.why));
    found.newest.ok_or_else(|| {
        mistake(anyhow!("there is no whole checkpoint at {}{}", place.display(), why.unwrap_or_default()))
    })
}

const AVERAGE: &str = ".average";

fn takes_average(restored: &Restored, weights: Weights) -> Result<bool> {
    let has = restored.contents.optimizer.iter().any(|tensor| tensor.name.ends_with(AVERAGE));
    match (weights, has) {
        (Weights::Average, false) => Err(mistake(anyhow!(
            "{} keeps no average of the weights (train.ema); leave out --weights average",
            restored.path.display()
        ))),
        (Weights::Last, _) => Ok(false),
        (_, has) => Ok(has),
    }
}

/// Sorted by name. Buffers (running statistics) have no average: they are the last ones.
fn weights(restored: &Restored, is_average: bool) -> Vec<Tensor> {
    let contents = &restored.contents;
    let of = |name: &str, t: &TensorBytes| Tensor {
        name: name.to_string(),
        dtype: t.dtype,
        shape: t.shape.clone(),
        bytes: t.bytes.clone(),
    };
    let average = |name: &str| {
        let named = format!("{name}{AVERAGE}");
        contents.optimizer.iter().find(|t| is_average && t.name == named)
    };
    let one = |t: &TensorBytes| of(&t.name, average(&t.name).unwrap_or(t));
    let mut weights: Vec<Tensor> = contents.weights.iter().map(one).collect();
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    weights
}

fn describe(about: &About, labels: Option<Vec<String>>) -> Result<Description> {
    let spec = &about.spec;
    let labels = match (about.data.clone(), labels) {
        (DataShape::Tokens { .. }, None) => Vec::new(),
        (DataShape::Tokens { .. }, Some(_)) => {
            return Err(mistake(anyhow!("--labels: a model of text has no classes")));
        }
        (DataShape::Features { classes, .. }, None) => (0..classes).map(|class| class.to_string()).collect(),
        (DataShape::Features { classes, .. }, Some(labels)) if labels.len() != classes => {
            return Err(mistake(anyhow!("--labels has {} lines, and the model has {classes} classes", labels.len())));
        }
        (DataShape::Features { .. }, Some(labels)) => labels,
    };
    Ok(Description {
        name: spec.name.clone(),
        model: spec.model.kind.clone(),
        dtype: spec.train.dtype,
        data: Shape::from(&about.data),
        transform: Transform::of(&spec.data),
        labels,
    })
}

fn provenance(run: &Run, about: &About, restored: &Restored, is_average: bool) -> Result<Provenance> {
    let manifest = &restored.manifest;
    Ok(Provenance {
        job: manifest.job.to_string(),
        config_sha256: Some(manifest.config_sha256),
        data_sha256: about.spec.data.sha256,
        weights_sha256: Some(manifest.weights_sha256),
        step: manifest.step.0,
        average: is_average,
        code_version: env!("CARGO_PKG_VERSION").into(),
        exported_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        source: restored.path.display().to_string(),
        spec: Some(serde_json::to_value(&about.spec).context("the job as JSON")?),
        views: views(run)?,
    })
}

/// Lines that cannot be read are left out: a writer may have been killed in the middle of one.
fn views(run: &Run) -> Result<Vec<Lived>> {
    let text = run.read(VIEWS)?.unwrap_or_default();
    let lived = text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    Ok(lived.collect())
}
