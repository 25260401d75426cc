//! The files of a trained run: those of its directory, or, where its checkpoints lie in a bucket, those of the bucket.
//!
//! Nodes that share no folder leave all that a model is made of in the bucket; the run's directory on this machine then
//! holds nothing, or only what one node wrote.

use super::Place;
use anyhow::{Context, Result};
use elastic_objects::Address;
use elastic_objects::blocking::Store;
use elastic_spec::job::JobSpec;
use std::path::{Path, PathBuf};

/// Files beside the checkpoints, and whether each is part of what a model is.
pub const BESIDE: [(&str, bool); 4] =
    [("tokenizer.json", true), ("events.jsonl", true), ("job.json", false), ("views.jsonl", false)];

const MANIFEST: &str = "manifest.json";
const OBJECTS_MAX: usize = 100_000;
const FILE_BYTES_MAX: u64 = 64 << 30;

/// A finished run on this machine.
pub struct States {
    /// Holds what is beside the checkpoints.
    pub dir: PathBuf,
    /// The newest one.
    pub checkpoint: PathBuf,
}

/// Finds the newest checkpoint of the run; one in a bucket is fetched.
pub fn find(place: &Place, spec: &JobSpec, run_dir: &Path) -> Result<States> {
    let run = run_dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let states = match &spec.checkpoint.dir {
        Some(dir) if Address::is_remote(dir) => {
            let address = format!("{}/{run}", dir.trim_end_matches('/'));
            return fetched(place, &address).with_context(|| format!("read the run at {address}"));
        }
        Some(dir) => PathBuf::from(dir).join(&run),
        None => run_dir.join("checkpoints"),
    };
    let found = newest_in(&states);
    let checkpoint =
        found.with_context(|| format!("read the run {}; are its files on this machine?", run_dir.display()))?;
    Ok(States { dir: run_dir.to_path_buf(), checkpoint })
}

fn fetched(place: &Place, address: &str) -> Result<States> {
    let store = Store::at(address)?;
    let names: Vec<String> = store.list("", OBJECTS_MAX)?.into_iter().map(|entry| entry.name).collect();
    let whole = names.iter().filter_map(|name| name.strip_suffix(MANIFEST)?.strip_suffix('/'));
    let newest = newest(whole).context("there is no checkpoint")?;
    let dir = place.folder("from-bucket")?;
    let of_newest = names.iter().filter(|name| name.starts_with(&format!("{newest}/")));
    let beside = names.iter().filter(|name| BESIDE.iter().any(|(beside, _)| beside == name));
    for name in of_newest.chain(beside) {
        let path = dir.join(name);
        let folder = path.parent().unwrap_or(&dir);
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let bytes = store.get(name, FILE_BYTES_MAX)?;
        std::fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(States { checkpoint: dir.join(newest), dir })
}

fn newest_in(states: &Path) -> Result<PathBuf> {
    let reading = || format!("read {}", states.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(states).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.join(MANIFEST).exists() {
            names.extend(path.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    let newest = newest(names.iter().map(String::as_str));
    Ok(states.join(newest.with_context(|| format!("there is no checkpoint in {}", states.display()))?))
}

/// The published checkpoint of the highest step, and of those the one of the latest view.
fn newest<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names.filter_map(|name| Some((order_of(name)?, name))).max().map(|(_, name)| name)
}

/// `step-00000040.t3.g2`
fn order_of(name: &str) -> Option<[u64; 3]> {
    let (step, rest) = name.strip_prefix("step-")?.split_once(".t")?;
    let (term, gen_) = rest.split_once(".g")?;
    Some([step.parse().ok()?, term.parse().ok()?, gen_.parse().ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checkpoints_are_ordered_by_step_then_by_view() {
        assert_eq!(order_of("step-00000040.t3.g2"), Some([40, 3, 2]));
        assert!(order_of("step-00000050.t3.g2.tmp-1").is_none());
        let names = ["step-00000050.t9.g7", "step-00000050.t10.g2", "step-00000040.t11.g1", "events.jsonl"];
        assert_eq!(newest(names.into_iter()), Some("step-00000050.t10.g2"));
    }
}
