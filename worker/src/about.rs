//! What a run's directory says about the run: the job as it was resolved, its tokenizer, and the views that it lived through.
//!
//! Left for whoever reads the directory later; training reads none of it, and goes on where it cannot be written.

use crate::boot::Order;
use crate::job::Job;
use anyhow::{Context, Result};
use elastic_spec::Round;
use elastic_spec::about::{About, JOB, Lived, TOKENIZER, VIEWS};
use elastic_spec::job::DataSource;
use elastic_spec::view::View;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Leaves the job and its tokenizer, if nobody has yet.
pub fn leave(order: &Order, job: &Job) {
    let about = About { spec: order.spec.clone(), data: job.data.shape() };
    let dir = order.run_dir();
    let left = (|| -> Result<()> {
        put(dir, JOB, about.to_json().as_bytes())?;
        match &order.spec.data.source {
            DataSource::Text { tokenizer: Some(path), .. } => {
                put(dir, TOKENIZER, &fs::read(order.file(path)).with_context(|| format!("read {path}"))?)
            }
            _ => Ok(()),
        }
    })();
    if let Err(error) = left {
        tracing::warn!(dir = %dir.display(), error = format!("{error:#}"), "what the run is was not written beside it");
    }
}

/// Written aside and renamed, so that nobody reads half of it. All write the same, but for a job that is resumed with
/// other keys: the newest stands.
fn put(dir: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = dir.join(name);
    if fs::read(&path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    let write = || -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let mut aside = tempname(&path);
        let mut file = loop {
            match File::create_new(&aside) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => aside = tempname(&aside),
                file => break file?,
            }
        };
        let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&aside, &path));
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// Process ids alone are the same in many containers that share a directory; a taken name is made longer.
fn tempname(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{}-{}.tmp", name.trim_start_matches('.'), std::process::id()))
}

/// The log of views, written by the lowest rank of each.
#[derive(Clone, Debug)]
pub struct Views(PathBuf);

impl Views {
    pub fn of(run_dir: &Path) -> Views {
        Views(run_dir.join(VIEWS))
    }

    /// Adds a line, off the event loop.
    pub fn lived(&self, view: &View, round: Round) {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let line = serde_json::to_string(&Lived::of(view, round, at)).expect("plain data has JSON") + "\n";
        let path = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let file = OpenOptions::new().create(true).append(true).open(&path);
            if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
                tracing::debug!(path = %path.display(), %error, "a view was not noted");
            }
        });
    }
}
