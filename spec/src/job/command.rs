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
use std::fmt;
use std::str::FromStr;

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
    /// What the processes are to the job: their `ROLE_NAME`.
    #[serde(default = "role", skip_serializing_if = "is_role")]
    pub role: String,
    /// What stands before each line that is shown, with `${role_name}`, `${local_rank}`, `${rank}` and `${hostname}`.
    /// None: the rank, where there are several processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// What is kept in `log_dir` and not shown.
    #[serde(default, skip_serializing_if = "Redirects::is_none")]
    pub redirects: Redirects,
    /// The only processes of each node that are shown, by their place on it. None: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show: Option<Vec<u16>>,
    /// Each process sees one device alone, and is told that it is the first of its node.
    #[serde(default, skip_serializing_if = "is_false")]
    pub virtual_local_rank: bool,
}

/// The role of processes that nobody named one for.
pub const ROLE: &str = "default";

fn role() -> String {
    ROLE.to_string()
}

fn is_role(role: &str) -> bool {
    role == ROLE
}

fn is_false(truth: &bool) -> bool {
    !truth
}

impl CommandSpec {
    /// One process on each node, as it is when nothing else is said.
    pub fn of(run: Vec<String>, folder: String) -> CommandSpec {
        CommandSpec {
            run,
            processes: 1,
            folder,
            env: BTreeMap::new(),
            grace_s: 8,
            log_dir: None,
            role: role(),
            prefix: None,
            redirects: Redirects::default(),
            show: None,
            virtual_local_rank: false,
        }
    }

    /// Whether a stream of the process at this place on its node is shown.
    pub fn shows(&self, local: u16, stream: Stream) -> bool {
        self.show.as_ref().is_none_or(|only| only.contains(&local)) && !self.redirects.has(local, stream)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout = 1,
    Stderr = 2,
}

/// Streams of processes, in the words of torchrun: `3`, or `0:1,3:2` by their place on the node. 1 is stdout, 2 stderr, 3 both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Redirects {
    #[default]
    None,
    All(u8),
    Some(BTreeMap<u16, u8>),
}

impl Redirects {
    pub fn is_none(&self) -> bool {
        *self == Redirects::None
    }

    fn has(&self, local: u16, stream: Stream) -> bool {
        let streams = match self {
            Redirects::None => 0,
            Redirects::All(streams) => *streams,
            Redirects::Some(places) => places.get(&local).copied().unwrap_or(0),
        };
        streams & stream as u8 != 0
    }
}

impl FromStr for Redirects {
    type Err = String;

    fn from_str(text: &str) -> Result<Redirects, String> {
        let wrong =
            || format!("is {text:?}; allowed: 0, 1 (stdout), 2 (stderr), 3 (both), or PLACE:STREAMS,… like 0:1,3:2");
        let streams = |text: &str| text.parse::<u8>().ok().filter(|streams| *streams <= 3).ok_or_else(wrong);
        if !text.contains(':') {
            return streams(text).map(|streams| if streams == 0 { Redirects::None } else { Redirects::All(streams) });
        }
        let mut places = BTreeMap::new();
        for one in text.split(',') {
            let (place, those) = one.split_once(':').ok_or_else(wrong)?;
            places.insert(place.parse::<u16>().map_err(|_| wrong())?, streams(those)?);
        }
        places.retain(|_, streams| *streams != 0);
        Ok(if places.is_empty() { Redirects::None } else { Redirects::Some(places) })
    }
}

impl fmt::Display for Redirects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Redirects::None => write!(f, "0"),
            Redirects::All(streams) => write!(f, "{streams}"),
            Redirects::Some(places) => {
                let places: Vec<String> = places.iter().map(|(place, streams)| format!("{place}:{streams}")).collect();
                write!(f, "{}", places.join(","))
            }
        }
    }
}

impl TryFrom<String> for Redirects {
    type Error = String;

    fn try_from(text: String) -> Result<Redirects, String> {
        text.parse()
    }
}

impl From<Redirects> for String {
    fn from(redirects: Redirects) -> String {
        redirects.to_string()
    }
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
    let (processes, grace_s): (Option<u16>, Option<u32>) = (section.int("processes"), section.int("grace"));
    let folder = match section.path("folder") {
        None if !section.has("folder") => Some(if base_dir.is_empty() { "/" } else { base_dir }.to_string()),
        folder => folder,
    };
    let env = section.json("env").and_then(|env| read_env(section, &env));
    let log_dir = section.path("log_dir");
    let (role, prefix) = (section.text("role"), section.text("prefix"));
    if prefix.as_ref().is_some_and(|prefix| prefix.contains(char::is_control)) {
        section.wrong("prefix", "has a control character; lines stay lines");
    }
    let redirects = section.text("redirects").and_then(|text| match text.parse::<Redirects>() {
        Ok(redirects) => Some(redirects),
        Err(message) => {
            section.wrong("redirects", message);
            None
        }
    });
    if log_dir.is_none() && redirects.as_ref().is_some_and(|r| !r.is_none()) {
        section.wrong("redirects", "needs log_dir: where what is not shown is kept");
    }
    let show = section.ints("show");
    if let (Some(show), Some(processes)) = (&show, processes)
        && let Some(place) = show.iter().find(|place| **place >= u32::from(processes))
    {
        section.wrong("show", format!("has {place}; the processes of a node are 0 to {}", processes - 1));
    }
    Some(CommandSpec {
        run: run?,
        processes: processes?,
        folder: folder?,
        env: env?,
        grace_s: grace_s?,
        log_dir,
        role: role?,
        prefix,
        redirects: redirects?,
        show: show.map(|show| show.into_iter().filter_map(|place| u16::try_from(place).ok()).collect()),
        virtual_local_rank: section.truth("virtual_local_rank")?,
    })
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
