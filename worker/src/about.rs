//! What a run's directory says about the run: the job as it was resolved, its tokenizer, and the views that it lived through.
//!
//! Left for whoever reads the directory later; training reads none of it, and goes on where it cannot be written. Of a run
//! whose checkpoints lie in a bucket the same lies there too: then no node is needed to make something of it.

use crate::aside;
use crate::boot::Order;
use crate::bucket::Bucket;
use crate::job::Job;
use anyhow::{Context, Result};
use elastic_spec::about::{About, JOB, Lived, TOKENIZER, VIEWS};
use elastic_spec::job::DataSource;
use elastic_spec::view::View;
use elastic_spec::{Round, WorkerId};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Leaves the job and its tokenizer, if nobody has yet.
pub fn leave(order: &Order, worker: &WorkerId, job: &Job) {
    let about = About { spec: order.spec.clone(), data: job.data.shape() };
    let dir = order.run_dir();
    let by = |name: &str| format!("{name}-{worker}");
    let left = (|| -> Result<()> {
        put(&dir.join(JOB), &by(JOB), about.to_json().as_bytes())?;
        match &order.spec.data.source {
            DataSource::Text { tokenizer: Some(path), .. } => put(
                &dir.join(TOKENIZER),
                &by(TOKENIZER),
                &fs::read(order.file(path)).with_context(|| format!("read {path}"))?,
            ),
            _ => Ok(()),
        }
    })();
    if let Err(error) = left {
        tracing::warn!(dir = %dir.display(), error = format!("{error:#}"), "what the run is was not written beside it");
    }
}

/// All write the same, but for a job that is resumed with other keys: the newest stands.
fn put(path: &Path, by: &str, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|found| found == bytes) {
        return Ok(());
    }
    aside::replace_by(path, by, bytes).with_context(|| format!("write {}", path.display()))
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

/// What was left in the run's directory, as it lies beside the checkpoints in a bucket.
#[derive(Debug)]
pub struct Beside {
    run_dir: PathBuf,
    /// Written by this worker already.
    known: BTreeMap<&'static str, Vec<u8>>,
}

impl Beside {
    pub fn of(run_dir: &Path) -> Beside {
        Beside { run_dir: run_dir.to_path_buf(), known: BTreeMap::new() }
    }

    /// Puts there what is new in the directory. Each writer has noted the views of its own time: theirs are added up.
    pub fn write(&mut self, bucket: &Bucket) -> Result<(), elastic_objects::Error> {
        for name in [JOB, TOKENIZER, VIEWS] {
            let Ok(bytes) = fs::read(self.run_dir.join(name)) else { continue };
            if self.known.get(name) == Some(&bytes) {
                continue;
            }
            let there = bucket.beside(name)?.unwrap_or_default();
            let wanted = if name == VIEWS { added_up(&there, &bytes) } else { bytes.clone() };
            if wanted != there {
                bucket.put_beside(name, wanted)?;
            }
            self.known.insert(name, bytes);
        }
        Ok(())
    }
}

/// Lines of both, each once, in the order of their times. What a killed writer left of a line is left out.
fn added_up(there: &[u8], ours: &[u8]) -> Vec<u8> {
    let (mut lines, mut seen) = (Vec::new(), BTreeSet::new());
    for line in there.split_inclusive(|byte| *byte == b'\n').chain(ours.split_inclusive(|byte| *byte == b'\n')) {
        let Ok(lived) = serde_json::from_slice::<Lived>(line) else { continue };
        if line.ends_with(b"\n") && seen.insert(line) {
            lines.push((lived.at, line));
        }
    }
    lines.sort_by_key(|(at, _)| *at);
    lines.into_iter().flat_map(|(_, line): (u64, &[u8])| line.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_of_several_writers_are_added_up_once_each_in_the_order_of_their_times() {
        let line = |gen_: u64, at: u64| {
            let lived = Lived { term: 1, gen_, round: Round(3), members: vec!["w1@n1".into()], at };
            serde_json::to_string(&lived).unwrap() + "\n"
        };
        let there = [line(1, 10), line(3, 30)].concat();
        let ours = [line(2, 20), line(3, 30), "{\"term\":1,".into()].concat();
        let both = String::from_utf8(added_up(there.as_bytes(), ours.as_bytes())).unwrap();
        assert_eq!(both, [line(1, 10), line(2, 20), line(3, 30)].concat());
        assert_eq!(added_up(both.as_bytes(), ours.as_bytes()), both.as_bytes());
    }
}
