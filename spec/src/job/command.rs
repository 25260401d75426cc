//! A job whose work is a command: what `[command]` means.
//!
//! Such a job has no network, no data and no steps of ours. The other parts of its spec are fixed, so that two
//! commands that are the same have the same digest; nothing reads them.

use super::document::Table;
use super::mistake::{Mistake, Place};
use super::section::Section;
use super::{
    CheckpointSpec, DataSource, DataSpec, Device, Dtype, ElasticSpec, JobSpec, Length, LrSchedule, ModelKind,
    ModelSpec, NonFinite, Optimizer, Reduce, ResourceSpec, TrainSpec,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The same on every node: `processes` of it run there as one group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSpec {
    /// The program and its arguments, as they are: nothing in them is replaced.
    pub run: Vec<String>,
    /// Processes on each node.
    pub processes: u16,
    /// Where they start.
    pub folder: String,
    /// Added to what they inherit from the agent.
    pub env: BTreeMap<String, String>,
    /// From SIGTERM to SIGKILL, in seconds.
    pub grace_s: u32,
    /// Where each process's stdout, stderr and error file are kept besides the node's logs.
    pub log_dir: Option<String>,
}

/// What stands beside `[command]` and means nothing there.
const SECTIONS_OF_MODELS: &[&str] = &["model", "data", "train", "checkpoint", "resources"];

pub(super) fn read(section: &mut Section, root: &Table, base_dir: &str) -> Option<CommandSpec> {
    for name in SECTIONS_OF_MODELS {
        if let Some(entry) = root.get(*name) {
            let message = "stands beside [command]; a job is a command or the training of a model".to_string();
            let (place, field) = (entry.place.clone(), name.to_string());
            section.mistakes.push(Mistake { place, field, message, suggestion: None });
        }
    }
    let run = section.words("run");
    if run.as_ref().is_some_and(|words| words.first().is_none_or(|program| program.is_empty())) {
        section.wrong("run", "names no program; allowed: the program, then its arguments");
    }
    let (processes, grace_s) = (section.int("processes"), section.int("grace"));
    let folder = match section.path("folder") {
        None if !section.has("folder") => Some(if base_dir.is_empty() { "/" } else { base_dir }.to_string()),
        folder => folder,
    };
    let env = section.json("env").and_then(|env| read_env(section, &env));
    let log_dir = section.path("log_dir");
    Some(CommandSpec { run: run?, processes: processes?, folder: folder?, env: env?, grace_s: grace_s?, log_dir })
}

fn read_env(section: &mut Section, env: &serde_json::Value) -> Option<BTreeMap<String, String>> {
    let mut read = BTreeMap::new();
    for (name, value) in env.as_object()? {
        let is_good = !name.is_empty() && !name.contains(['=', '\0']);
        match value.as_str().filter(|value| is_good && !value.contains('\0')) {
            Some(value) => {
                read.insert(name.clone(), value.to_string());
            }
            None => section.wrong("env", format!("has {name:?} = {value}; allowed: names without '=', and texts")),
        }
    }
    Some(read)
}

/// Bounds of a command: how many nodes.
pub(super) fn read_elastic(section: &mut Section) -> Option<ElasticSpec> {
    let (min_workers, given): (Option<u16>, Option<u16>) = (section.int("min_workers"), section.int("max_workers"));
    section.choice("reduce");
    let restarts = section.int("restarts");
    if section.has("max_workers") && given.is_none() {
        return None;
    }
    let max_workers = given.or(min_workers);
    if let (Some(min), Some(max)) = (min_workers, max_workers)
        && min > max
    {
        section.wrong("min_workers", format!("is {min}, above max_workers = {max}"));
    }
    Some(ElasticSpec {
        min_workers: min_workers?,
        max_workers: max_workers?,
        reduce: Reduce::Exact,
        restarts: restarts?,
    })
}

/// Where the file has `[command]`.
pub(super) fn place(root: &Table) -> Option<Place> {
    root.get("command").map(|entry| entry.place.clone())
}

impl JobSpec {
    /// A job that runs a command.
    pub fn of_command(name: String, command: CommandSpec, elastic: ElasticSpec) -> JobSpec {
        let kind = ModelKind::Command(command);
        JobSpec {
            name,
            model: ModelSpec { kind, init: None, init_sha256: None, init_except: Vec::new(), freeze: Vec::new() },
            data: DataSpec {
                source: DataSource::Synthetic { samples: 1, features: 1, classes: 2 },
                validation: 0.0,
                sha256: None,
            },
            train: TrainSpec {
                global_batch: 1,
                shards: 1,
                length: Length::Steps(1),
                seed: 0,
                dtype: Dtype::F32,
                optimizer: Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
                lr: 1.0,
                lr_schedule: LrSchedule::Constant { warmup: 0 },
                clip_norm: None,
                non_finite: NonFinite::Fail,
                ema: None,
                label_smoothing: 0.0,
                validate_every: 0,
                groups: Vec::new(),
            },
            elastic,
            checkpoint: CheckpointSpec { dir: None, every: 0, keep: 1 },
            resources: ResourceSpec { device: Device::Auto, threads: 0 },
        }
    }

    /// The command, where the job is one.
    pub fn command(&self) -> Option<&CommandSpec> {
        match &self.model.kind {
            ModelKind::Command(command) => Some(command),
            _ => None,
        }
    }
}
