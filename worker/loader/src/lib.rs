//! From the inputs that a job names to the samples of each shard.
//!
//! Which samples a shard has is a pure function of (seed, step, shard, V, global batch): the loader holds
//! no cursor, so nothing of it has to be saved or handed over. Reading is done once, at [`open`]; sending
//! inputs to the nodes is the coordinator's business, and what a sample means is the model's.

mod batches;
mod input;
mod order;
mod rows_csv;
mod rows_npy;
mod samples;
mod shape;
mod synthetic;

pub use batches::{Plan, ValidationBatches, epoch_of};
pub use shape::shape;

use elastic_spec::Digest;
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::schedule::Schedule;
use elastic_spec::job::{DataSource, DataSpec, JobSpec, Length, ModelKind};
use elastic_transform::Text;
use input::Input;
use samples::Samples;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// All samples of a job, split into training and validation.
#[derive(Debug)]
pub struct Data {
    samples: Samples,
    /// Indices into the samples, ascending: never empty.
    train: Vec<u64>,
    validation: Vec<u64>,
    sha256: Option<Digest>,
}

/// Which of a job's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Train,
    Validation,
}

/// What is wrong with an input: the file, the place in it, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    #[error("{}: {source}; the file must be there, and readable, for every worker", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error(
        "the data is not what was submitted: data.sha256 is {wanted}, the input here has {found}; give every node the same files, or submit again if they were changed on purpose"
    )]
    Changed { wanted: Digest, found: Digest },
    #[error("{0}")]
    Unusable(String),
}

/// Reads the inputs of a job. `files` says where on this node the input lies that the spec calls so.
pub fn open(spec: &JobSpec, files: &dyn Fn(&str) -> PathBuf) -> Result<Data, LoaderError> {
    let inputs = input::read(&spec.data, files)?;
    let sha256 = input::digest(&inputs);
    if let (Some(wanted), Some(found)) = (spec.data.sha256, sha256)
        && wanted != found
    {
        return Err(LoaderError::Changed { wanted, found });
    }
    // A program of its own gets clouds from the seed, whatever its parameters say.
    let is_own_cloud =
        matches!((&spec.data.source, &spec.model.kind), (DataSource::Synthetic { .. }, ModelKind::Own { .. }));
    let context = spec.context().filter(|_| !is_own_cloud);
    let samples = read_samples(&spec.data.source, spec.train.seed, context, inputs)?;
    let (train, validation) = order::split(spec.train.seed, samples.len(), spec.data.validation);
    assert!(!train.is_empty(), "readers give at least one sample, and a split leaves one to train");
    Ok(Data { samples, train, validation, sha256 })
}

/// Reads all samples of a source, to evaluate on. `context` is that of a model of tokens.
pub fn whole(source: &DataSource, context: Option<u32>, files: &dyn Fn(&str) -> PathBuf) -> Result<Data, LoaderError> {
    let data = DataSpec { source: source.clone(), validation: 0.0, sha256: None };
    let inputs = input::read(&data, files)?;
    let sha256 = input::digest(&inputs);
    let samples = read_samples(source, 0, context, inputs)?;
    let train = (0..samples.len()).collect();
    Ok(Data { samples, train, validation: Vec::new(), sha256 })
}

/// What `data.sha256` is to be for these inputs; none for synthetic data.
pub fn digest(spec: &JobSpec, files: &dyn Fn(&str) -> PathBuf) -> Result<Option<Digest>, LoaderError> {
    Ok(input::digest(&input::read(&spec.data, files)?))
}

fn read_samples(
    source: &DataSource,
    seed: u64,
    context: Option<u32>,
    inputs: Vec<Input>,
) -> Result<Samples, LoaderError> {
    let mut inputs = inputs.into_iter();
    let mut next = || input::unpacked(inputs.next().expect("one file for each input of the spec"));
    match source {
        DataSource::Csv { label, header, scale, classes, .. } => {
            let (path, bytes) = next()?;
            let columns = rows_csv::Columns { label: *label, header: *header, scale: *scale, classes: *classes };
            rows_csv::read(&bytes, &columns).map_err(|problem| LoaderError::Malformed { path, problem })
        }
        DataSource::Npy { scale, classes, .. } => {
            let ((x_path, x), (y_path, y)) = (next()?, next()?);
            let malformed = |path: &Path| {
                let path = path.to_path_buf();
                move |problem| LoaderError::Malformed { path, problem }
            };
            let features = rows_npy::features(&x, *scale).map_err(malformed(&x_path))?;
            rows_npy::join(features, &y, *classes).map_err(malformed(&y_path))
        }
        DataSource::Text { tokenizer, .. } => {
            let (path, text) = next()?;
            let tokenizer = tokenizer.as_ref().map(|_| next()).transpose()?;
            let transform = match &tokenizer {
                None => Text::Bytes,
                Some((path, json)) => {
                    Text::of(Some(json)).map_err(|problem| LoaderError::Malformed { path: path.clone(), problem })?
                }
            };
            let tokens = transform.encode(&text);
            let tokens = tokens.map_err(|problem| LoaderError::Malformed { path: path.clone(), problem })?;
            windows(context, path, (tokens, transform.vocab()))
        }
        DataSource::Synthetic { samples, features, classes } => Ok(match context {
            Some(context) => synthetic::tokens(seed, *samples, context, *classes),
            None => synthetic::clouds(seed, *samples, *features, *classes),
        }),
    }
}

fn windows(context: Option<u32>, path: PathBuf, (tokens, vocab): (Vec<i32>, usize)) -> Result<Samples, LoaderError> {
    let context = context.ok_or_else(|| {
        LoaderError::Unusable("the model reads no tokens, so it cannot learn from data.kind = \"text\"".to_string())
    })? as usize;
    if tokens.len() <= context {
        let found = tokens.len();
        let wanted = context + 1;
        let problem = format!(
            "has {found} tokens; a sample of model.context = {context} needs {wanted}: take a longer text or a smaller context"
        );
        return Err(LoaderError::Malformed { path, problem });
    }
    Ok(Samples::Windows { tokens, context, vocab })
}

impl Data {
    pub fn shape(&self) -> DataShape {
        self.samples.shape()
    }

    pub fn train_samples(&self) -> u64 {
        self.train.len() as u64
    }

    pub fn validation_samples(&self) -> u64 {
        self.validation.len() as u64
    }

    /// Some of the samples in their order, `begin` to `end` of those kept for validation, or of the others.
    pub fn samples(&self, part: Part, range: Range<u64>) -> Batch {
        let indices = match part {
            Part::Train => &self.train,
            Part::Validation => &self.validation,
        };
        let mut batch = Batch::default();
        for at in range {
            self.samples.push(indices[at as usize], at, &mut batch);
        }
        batch
    }

    /// The digest of the inputs as read; none for synthetic data.
    pub fn sha256(&self) -> Option<Digest> {
        self.sha256
    }
}

/// Steps of the whole job.
pub fn total_steps(spec: &JobSpec, train_samples: u64) -> Result<u64, LoaderError> {
    let per_epoch = train_samples.div_ceil(u64::from(spec.train.global_batch));
    let steps = match spec.train.length {
        Length::Steps(steps) => Some(steps),
        Length::Epochs(epochs) => per_epoch.checked_mul(epochs),
    };
    // Rounds count validations, too: twice the steps at most.
    steps.filter(|steps| *steps <= STEPS_MAX).ok_or_else(|| {
        LoaderError::Unusable(format!("train.epochs of {per_epoch} steps each are more than 2^62 steps; set it lower"))
    })
}

const STEPS_MAX: u64 = 1 << 62;

/// Which round does what, once the data is known.
pub fn schedule(spec: &JobSpec, data: &Data) -> Result<Schedule, LoaderError> {
    Ok(Schedule {
        steps: total_steps(spec, data.train_samples())?,
        validate_every: spec.train.validate_every,
        has_validation: data.validation_samples() > 0,
    })
}
