//! The work of each stage: its inputs as files, a process of the product, its outputs as artifacts.

pub mod check;
pub mod evaluate;
pub mod export;
pub mod ingest;
pub mod push;
pub mod states;
pub mod train;

use crate::artifact::{Artifact, Blob};
use crate::child::{ChildError, Program};
use crate::job::Asked;
use crate::workspace::Workspace;
use anyhow::{Context, Result, anyhow};
use elastic_spec::pipeline::{PipelineSpec, Stage};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Where a stage runs, and with what.
pub struct Place<'a> {
    pub asked: &'a Asked,
    pub workspace: &'a Workspace,
    pub known: &'a BTreeMap<String, (i64, Artifact)>,
    /// A folder of this stage's own.
    pub work: &'a Path,
    pub program: &'a Program,
    /// When the stage's time is over.
    pub until: Option<Instant>,
    /// Tells people something while the stage runs.
    pub tell: &'a dyn Fn(String),
}

/// What a stage made.
#[derive(Debug, Default)]
pub struct Made {
    pub outputs: Vec<(String, Artifact)>,
    /// One line for people.
    pub words: String,
    /// What people should know besides.
    pub said: Vec<String>,
    /// Views that the training behind it lived through.
    pub lived: Vec<Value>,
}

/// Why a stage has no result.
#[derive(Debug)]
pub struct Failure {
    pub error: anyhow::Error,
    /// Another try would meet the same.
    pub is_final: bool,
    /// The stage's time is over.
    pub is_late: bool,
}

impl Failure {
    pub fn passing(error: impl Into<anyhow::Error>) -> Failure {
        Failure { error: error.into(), is_final: false, is_late: false }
    }

    pub fn last(error: impl Into<anyhow::Error>) -> Failure {
        Failure { error: error.into(), is_final: true, is_late: false }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure::passing(error)
    }
}

impl From<ChildError> for Failure {
    fn from(error: ChildError) -> Failure {
        let (is_final, is_late) = (error.is_final(), matches!(error, ChildError::Late { .. }));
        Failure { error: error.into(), is_final, is_late }
    }
}

/// The names of what a stage makes.
pub fn outputs(stage: Stage, spec: &PipelineSpec) -> Vec<String> {
    match stage {
        Stage::Ingest => vec!["examples".into()],
        Stage::Train => vec!["model".into()],
        Stage::Export => {
            let formats = spec.export.formats.iter().map(|format| format.word().to_string());
            std::iter::once("bundle".to_string()).chain(formats).collect()
        }
        Stage::Evaluate => vec!["evaluation".into()],
        Stage::Check => vec!["answers".into()],
        Stage::Push => vec!["pushed".into()],
    }
}

impl Place<'_> {
    pub fn artifact(&self, name: &str) -> Result<&Artifact> {
        self.known.get(name).map(|(_, artifact)| artifact).with_context(|| format!("{name} was made before"))
    }

    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let dir = self.work.join(name);
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    /// An artifact's blobs as files of a folder.
    pub fn fetched(&self, name: &str) -> Result<PathBuf> {
        let dir = self.folder(name)?;
        self.workspace.fetch(self.artifact(name)?, &dir)?;
        Ok(dir)
    }

    /// One blob of an artifact as a file.
    pub fn fetched_one(&self, artifact: &str, blob: &str) -> Result<PathBuf> {
        let path = self.work.join(artifact).join(blob);
        let found = self.artifact(artifact)?.blob(blob);
        let found = found.ok_or_else(|| anyhow!("the artifact {artifact} has no {blob}"))?;
        self.workspace.fetch_one(found, &path)?;
        Ok(path)
    }

    /// What is left of the stage's time.
    pub fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    pub fn in_time(&self) -> Result<(), Failure> {
        match self.left() {
            Some(left) if left.is_zero() => {
                Err(Failure { is_late: true, ..Failure::passing(anyhow!("the stage's time is over")) })
            }
            _ => Ok(()),
        }
    }

    /// Runs `elastic args…` to its end.
    pub fn elastic(&self, name: &str, args: &[&str]) -> Result<Value, ChildError> {
        self.elastic_heard(name, args, &|_| {})
    }

    /// The same, hearing what it says to people.
    pub fn elastic_heard(&self, name: &str, args: &[&str], hears: &dyn Fn(&str)) -> Result<Value, ChildError> {
        self.program.run(self.work, name, args, self.left(), hears)
    }

    /// All files below `dir` as blobs; those that `counts` says are part of what the artifact is.
    pub fn keep_all(&self, dir: &Path, counts: impl Fn(&str) -> bool) -> Result<Vec<Blob>> {
        let mut blobs = Vec::new();
        for name in files_below(dir)? {
            blobs.push(self.workspace.keep(&dir.join(&name), &name, counts(&name))?);
        }
        Ok(blobs)
    }
}

/// Paths relative to `dir`, sorted.
pub fn files_below(dir: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![(dir.to_path_buf(), String::new())];
    while let Some((folder, prefix)) = folders.pop() {
        let entries = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("read {}", folder.display()))?;
            let name = entry.file_name().into_string().map_err(|name| anyhow!("{name:?} is no text"))?;
            let name = format!("{prefix}{name}");
            match entry.path().is_dir() {
                true => folders.push((entry.path(), format!("{name}/"))),
                false => found.push(name),
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A path as an argument.
pub fn text(path: &Path) -> String {
    path.display().to_string()
}
