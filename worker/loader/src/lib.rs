//! From the inputs that a job names to the samples of each shard.
//!
//! Which samples a shard has is a pure function of (seed, step, shard, V, global batch): the loader holds
//! no cursor, so nothing of it has to be saved or handed over. Reading is done once, at [`open`]; sending
//! inputs to the nodes is the coordinator's business, and what a sample means is the model's.

mod batches;

pub use batches::{Plan, ValidationBatches};

use elastic_spec::batch::DataShape;
use elastic_spec::job::JobSpec;
use elastic_spec::job::schedule::Schedule;
use elastic_spec::{Digest, Step};
use std::path::{Path, PathBuf};

/// All samples of a job, split into training and validation.
#[derive(Debug)]
pub struct Data {
    shape: DataShape,
    /// Samples of each side, as indices into the input.
    train: Vec<u64>,
    validation: Vec<u64>,
    sha256: Option<Digest>,
}

/// What is wrong with an input: the file, the place in it, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum LoaderError {
    #[error("{}: {source}; the file must be readable by every worker", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("the data is not what was submitted: data.sha256 is {wanted}, the input here has {found}; submit again if the data was changed on purpose")]
    Changed { wanted: Digest, found: Digest },
    #[error("{0}")]
    Unusable(String),
}

/// Reads the inputs of a job. `files` says where on this node the input lies that the spec calls so.
pub fn open(spec: &JobSpec, files: &dyn Fn(&str) -> PathBuf) -> Result<Data, LoaderError> {
    let _ = (spec, files(""));
    Err(LoaderError::Unusable("no reader yet".to_string()))
}

/// What `data.sha256` is to be for these inputs; none for synthetic data. One file: its SHA-256. Several:
/// the SHA-256 of the lines `<hex>  <role>`.
pub fn digest(spec: &JobSpec, files: &dyn Fn(&str) -> PathBuf) -> Result<Option<Digest>, LoaderError> {
    let _ = (spec, Path::new(&files("")));
    Ok(None)
}

impl Data {
    pub fn shape(&self) -> &DataShape {
        &self.shape
    }

    pub fn train_samples(&self) -> u64 {
        self.train.len() as u64
    }

    pub fn validation_samples(&self) -> u64 {
        self.validation.len() as u64
    }

    /// The digest of the inputs as read; none for synthetic data.
    pub fn sha256(&self) -> Option<Digest> {
        self.sha256
    }
}

/// Steps of the whole job.
pub fn total_steps(spec: &JobSpec, train_samples: u64) -> Result<u64, LoaderError> {
    use elastic_spec::job::Length;
    match spec.train.length {
        Length::Steps(steps) => Ok(steps),
        Length::Epochs(epochs) => train_samples
            .div_ceil(u64::from(spec.train.global_batch))
            .checked_mul(epochs)
            .ok_or_else(|| LoaderError::Unusable(format!("{epochs} epochs of {train_samples} samples are more than 2^64 steps"))),
    }
}

/// Which round does what, once the data is known.
pub fn schedule(spec: &JobSpec, data: &Data) -> Result<Schedule, LoaderError> {
    Ok(Schedule {
        steps: total_steps(spec, data.train_samples())?,
        validate_every: spec.train.validate_every,
        has_validation: data.validation_samples() > 0,
    })
}

/// The step's place: epochs done before it, and batches of its epoch before it.
pub fn epoch_of(step: Step, train_samples: u64, global_batch: u32) -> (u64, u64) {
    let per_epoch = train_samples.div_ceil(u64::from(global_batch)).max(1);
    (step.0 / per_epoch, step.0 % per_epoch)
}
