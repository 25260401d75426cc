//! What `job.toml` says, resolved: every default filled in, every path absolute.
//!
//! `parse` reads the file and reports all mistakes at once; `schedule` says what each round does.
//! The canonical JSON of a [`JobSpec`] is what travels, and its digest is the job's config digest.

mod command;
pub(crate) mod document;
pub mod folder;
mod groups;
pub mod keys;
mod mistake;
pub mod names;
pub(crate) mod parse;
mod print;
pub(crate) mod reference;
pub(crate) mod resolve;
pub mod schedule;
pub(crate) mod section;

pub use command::{CommandSpec, ROLE, Redirects, Stream};
pub use groups::{Group, group_of, idle};
pub use mistake::{Mistake, Place};
pub use parse::{ParseContext, Parsed, parse};
pub use reference::reference_markdown;
pub use resolve::efficiency;

use crate::ids::Digest;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    pub name: String,
    pub model: ModelSpec,
    pub data: DataSpec,
    pub train: TrainSpec,
    pub elastic: ElasticSpec,
    pub checkpoint: CheckpointSpec,
    pub resources: ResourceSpec,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSpec {
    pub kind: ModelKind,
    /// A safetensors file whose tensors replace the random initialisation, by name, or a folder of Hugging Face.
    pub init: Option<String>,
    /// SHA-256 of what `init` names, fixed at submit where it is at hand; every worker checks what it reads against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_sha256: Option<Digest>,
    /// Patterns (`names`) of parameters that begin at random all the same.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub init_except: Vec<String>,
    /// Patterns of parameters that are not trained. Left out where there are none, so that the digest of a job
    /// without them is what it was before there was the key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// Linear layers of these widths with ReLU (or GELU) between; the output width is the data's classes.
    Mlp { hidden: Vec<u32>, activation: Activation },
    /// `channels.len()` blocks of conv3x3 (same padding), optional batch norm, ReLU, 2x2 max-pool where the
    /// image is still at least 2x2; then a hidden linear layer (0: none) and the output layer.
    /// `image` is (channels, height, width) of a sample.
    Cnn { image: [u32; 3], channels: Vec<u32>, kernel: u32, hidden: u32, batch_norm: bool },
    /// He et al. 2015, "Deep residual learning for image recognition": 18 layers, torchvision's names. `image`
    /// is (channels, height, width) of a sample, `width` the first stage's channels. Batch norm always.
    Resnet18 { image: [u32; 3], stem: Stem, width: u32, zero_init_residual: bool },
    /// A decoder: token embeddings, positions, pre-norm blocks, weight-tied output layer.
    Gpt {
        layers: u32,
        heads: u32,
        width: u32,
        context: u32,
        dropout: f32,
        #[serde(default)]
        norm: Norm,
        #[serde(default)]
        positions: Positions,
    },
    /// A model of the user's own: `program` is the worker to start, `params` are handed to it as they are.
    Own { program: String, params: serde_json::Value },
    /// No model: a command, started on every node of the job.
    Command(CommandSpec),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    Relu,
    Gelu,
}

/// The norms of a decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Norm {
    #[default]
    Layer,
    Rms,
}

/// How a decoder knows where a token stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned vector for each place, added to the token's.
    #[default]
    Learned,
    /// Queries and keys are turned by their place.
    Rotary,
}

/// How a residual network begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// 7x7 convolution with stride 2, 3x3 max-pool with stride 2.
    Full,
    /// 3x3 convolution with stride 1, no pool.
    Small,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    pub source: DataSource,
    /// Share of the samples kept for validation, chosen by a seeded hash of the sample's index. 0: none.
    pub validation: f64,
    /// SHA-256 of the input, fixed at submit; every worker checks what it reads against it.
    pub sha256: Option<Digest>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSource {
    /// One sample a line, plain or gzip: numbers, of which column `label` (negative: from the end) is the class.
    /// Features are multiplied by `scale`.
    Csv { path: String, label: i32, header: bool, scale: f32, classes: u32 },
    /// `x`: (samples, features…) f32/f64/u8; `y`: (samples) integers.
    Npy { x: String, y: String, scale: f32, classes: u32 },
    /// A text, cut into windows of the model's context. Tokens are bytes, or a Hugging Face tokenizer's.
    Text { path: String, tokenizer: Option<String> },
    /// Made from the seed alone: `classes` Gaussian clusters in `features` dimensions, or, for gpt, a
    /// random but learnable token sequence with `classes` as vocabulary.
    Synthetic { samples: u64, features: u32, classes: u32 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSpec {
    /// Samples of one step, over all workers.
    pub global_batch: u32,
    /// V: the fixed logical pieces of every batch.
    pub shards: u16,
    pub length: Length,
    pub seed: u64,
    /// Left out of the canonical JSON where it is f32, which keeps the digests of older jobs.
    #[serde(default, skip_serializing_if = "Dtype::is_f32")]
    pub dtype: Dtype,
    pub optimizer: Optimizer,
    /// Base learning rate.
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    /// Largest global gradient norm; None: no clipping.
    pub clip_norm: Option<f64>,
    /// What becomes of a step whose gradient is not finite. Left out where it ends the job, so that the digest of a
    /// job is what it was before there was the key.
    #[serde(default, skip_serializing_if = "NonFinite::is_fail")]
    pub non_finite: NonFinite,
    /// Decay of the average of the weights that is kept beside them, 0..1; None: none is kept. Left out then, for the
    /// digest's sake.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<f64>,
    /// Cross-entropy label smoothing, 0..1.
    pub label_smoothing: f32,
    /// Validate after every so many steps, and after the last; 0: after the last only.
    pub validate_every: u64,
    /// Parameters with rates of their own; the first that matches counts. Left out where there are none, for the
    /// digest's sake.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
}

/// What products read: state, sums and all else are f32 in both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    #[default]
    F32,
    Bf16,
}

impl Dtype {
    fn is_f32(&self) -> bool {
        *self == Dtype::F32
    }

    /// As a job file says it.
    pub fn word(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    Steps(u64),
    /// An epoch is ceil(samples / global_batch) steps; the last batch is padded with weight 0.
    Epochs(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    Sgd { momentum: f64, nesterov: bool, weight_decay: f64 },
    Adam { beta1: f64, beta2: f64, eps: f64, weight_decay: f64 },
    AdamW { beta1: f64, beta2: f64, eps: f64, weight_decay: f64 },
}

/// What becomes of a step whose reduced gradient, the same on every worker, holds a NaN or an infinity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NonFinite {
    /// It ends the job.
    #[default]
    Fail,
    /// It moves nothing and counts.
    Skip,
}

impl NonFinite {
    fn is_fail(&self) -> bool {
        *self == NonFinite::Fail
    }
}

/// Factor on the base rate; `warmup` steps rise linearly from 1/warmup to 1 before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    Constant {
        warmup: u64,
    },
    /// Linear fall to `end` (a factor) at the last step.
    Linear {
        warmup: u64,
        end: f64,
    },
    /// Half a cosine down to `end` (a factor) at the last step.
    Cosine {
        warmup: u64,
        end: f64,
    },
    /// Multiplied by `gamma` every `every` steps.
    Step {
        warmup: u64,
        every: u64,
        gamma: f64,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ElasticSpec {
    /// Fewer than these: the job pauses.
    pub min_workers: u16,
    pub max_workers: u16,
    pub reduce: Reduce,
    /// Restarts that a job may spend before it is given up; progress refills it.
    pub restarts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reduce {
    /// f32 sums along the fixed tree: the same bits for every membership.
    Exact,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSpec {
    /// None: `checkpoints` in the run directory.
    pub dir: Option<String>,
    /// Steps between checkpoints; the last step always has one. 0: only the last.
    pub every: u64,
    /// Newest verified ones to keep, at least 1.
    pub keep: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceSpec {
    pub device: Device,
    /// Threads a worker computes with; 0: the node's cores divided by its slots. Results do not depend on it.
    pub threads: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The best that this build can train on.
    Auto,
    Cpu,
    Cuda,
}

impl Device {
    /// As a job file says it.
    pub fn word(self) -> &'static str {
        match self {
            Device::Auto => "auto",
            Device::Cpu => "cpu",
            Device::Cuda => "cuda",
        }
    }
}

impl JobSpec {
    /// The one spelling that is stored, sent and digested: field order is the types' order.
    pub fn canonical_json(&self) -> String {
        serde_json::to_string(self).expect("a spec is plain data")
    }

    /// The digest of all that decides the job's bits and its membership rules.
    pub fn config_digest(&self) -> Digest {
        Digest::of(self.canonical_json().as_bytes())
    }

    /// Reads canonical JSON back: the door for specs from the wire and the store. What a job file may not
    /// say is refused here, too.
    pub fn from_json(text: &str) -> Result<JobSpec, String> {
        let spec: JobSpec = serde_json::from_str(text).map_err(|e| format!("job spec: {e}"))?;
        let context = ParseContext { file: "job spec".to_string(), ..ParseContext::default() };
        match parse(&spec.to_toml_resolved(), &context) {
            Ok(parsed) if parsed.spec == spec => Ok(spec),
            Ok(_) => Err("job spec: has a value that no job file can say".to_string()),
            Err(mistakes) => Err(mistakes
                .iter()
                .map(|m| format!("job spec: {}: {}", m.field, m.message))
                .collect::<Vec<_>>()
                .join("; ")),
        }
    }

    /// The files that the job reads, each with the key that names it; data first.
    pub fn inputs(&self) -> Vec<Input<'_>> {
        let mut inputs = self.data.inputs();
        inputs.extend(self.model.init.as_deref().map(|path| Input { key: "init", path }));
        inputs
    }

    /// Samples are windows of so many tokens, where the data is a text.
    pub fn context(&self) -> Option<u32> {
        match &self.model.kind {
            ModelKind::Gpt { context, .. } => Some(*context),
            ModelKind::Own { params, .. } => resolve::own_context(params),
            ModelKind::Mlp { .. } | ModelKind::Cnn { .. } | ModelKind::Resnet18 { .. } | ModelKind::Command(_) => None,
        }
    }
}

impl DataSpec {
    /// The files of the data, in the order in which their digest is taken.
    pub fn inputs(&self) -> Vec<Input<'_>> {
        let input = |key, path| Input { key, path };
        match &self.source {
            DataSource::Csv { path, .. } => vec![input("path", path)],
            DataSource::Npy { x, y, .. } => vec![input("x", x), input("y", y)],
            DataSource::Text { path, tokenizer } => {
                let tokenizer = tokenizer.as_deref().map(|tokenizer| input("tokenizer", tokenizer));
                std::iter::once(input("path", path)).chain(tokenizer).collect()
            }
            DataSource::Synthetic { .. } => Vec::new(),
        }
    }
}

/// A file that a job reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input<'a> {
    /// `path`, `x`, `tokenizer`, `init`, …
    pub key: &'static str,
    pub path: &'a str,
}

/// V by default: the largest power of two up to 64 that divides the batch and leaves at least 4 samples
/// a shard (8 with batch norm), else 1. A function of the batch only, so that the bits are, too.
pub fn default_shards(global_batch: u32, batch_norm: bool) -> u16 {
    let least = if batch_norm { 8 } else { 4 };
    (0..=6)
        .map(|power| 1u32 << power)
        .filter(|v| global_batch.is_multiple_of(*v) && global_batch / v >= least)
        .max()
        .unwrap_or(1) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v_is_the_largest_power_of_two_that_leaves_four_samples() {
        for (batch, bn, v) in [
            (32, false, 8),
            (32, true, 4),
            (256, false, 64),
            (4096, false, 64),
            (30, false, 2),
            (3, false, 1),
            (7, false, 1),
        ] {
            assert_eq!(default_shards(batch, bn), v, "batch {batch}, batch norm {bn}");
        }
    }
}
