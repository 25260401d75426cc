//! Brings what a job's workers need to this node before they start: its inputs, by digest, and its launch.
//!
//! Inputs lie in one cache for all jobs, each under its digest and checked against it whenever it is
//! used, so that a damaged copy is fetched again and never trained on.

use crate::AgentConfig;
use crate::backoff::Backoff;
use anyhow::{Context, Result};
use elastic_proto::client::Coordinator;
use elastic_spec::facts::Launch;
use elastic_spec::{Digest, JobId};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tracing::warn;

/// How far a job's files are.
#[derive(Debug)]
pub enum Inputs {
    Coming,
    Ready(Files),
    /// They cannot be had, and why.
    Refused(String),
}

/// A job's files on this node.
#[derive(Clone, Debug)]
pub struct Files {
    pub launch: Launch,
    pub launch_path: PathBuf,
    /// Inputs by digest.
    pub blobs: PathBuf,
}

/// Fetches what is missing. Tries until it is here; only what trying again cannot cure is an error.
pub async fn fetch(config: AgentConfig, job: JobId, launch: Launch) -> Result<Files> {
    let blobs = config.state_dir.join("blobs");
    std::fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
    for (path, digest) in &launch.blobs {
        let kept = blobs.join(digest.to_string());
        if !is_whole(&kept, *digest).await {
            fetch_one(&config, *digest, &kept).await.with_context(|| format!("fetch the input {path}"))?;
        }
    }
    let dir = config.state_dir.join("jobs").join(job.as_str());
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.with_context(|| format!("make {}", dir.display()))?;
    let launch_path = dir.join("launch.json");
    let json = serde_json::to_vec(&launch).context("write the launch as JSON")?;
    replace(&launch_path, &json).with_context(|| format!("write {}", launch_path.display()))?;
    Ok(Files { launch, launch_path, blobs })
}

async fn fetch_one(config: &AgentConfig, digest: Digest, kept: &Path) -> Result<()> {
    let mut backoff = Backoff::default();
    loop {
        let got = async {
            let coordinator = Coordinator::connect_leader(&config.coordinators, &config.credentials).await?;
            coordinator.get_blob(digest).await
        };
        match got.await {
            Ok(bytes) => return replace(kept, &bytes).with_context(|| format!("write {}", kept.display())),
            Err(refusal) if refusal.is_passing() => {
                if backoff.is_first() {
                    warn!(%digest, %refusal, "an input cannot be fetched yet");
                }
                backoff.wait().await;
            }
            Err(refusal) => return Err(refusal.into()),
        }
    }
}

async fn is_whole(path: &Path, digest: Digest) -> bool {
    let path = path.to_path_buf();
    let whole =
        tokio::task::spawn_blocking(move || std::fs::read(path).is_ok_and(|bytes| Digest::of(&bytes) == digest));
    whole.await.unwrap_or(false)
}

/// All or nothing, and for this user's eyes only: a launch holds the job's secret.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension(format!("new{:016x}", crate::random().map_err(std::io::Error::other)?));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(bytes).and_then(|()| std::fs::rename(&new, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}
