//! Who this node is, over restarts of its agent: its name and the highest term it has seen.
//!
//! Both lie in the state directory, which a lock keeps to one agent at a time.

use crate::random;
use anyhow::{Context, Result, bail};
use elastic_spec::{Epoch, NodeId, Term};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

#[derive(Debug)]
pub struct Identity {
    pub node: NodeId,
    /// Of this agent process: its former workers are gone.
    pub incarnation: u64,
    seen: Term,
    seen_path: PathBuf,
    _lock: File,
}

impl Identity {
    /// Takes the state directory and reads, or first makes, what is kept there.
    pub fn take(state_dir: &Path, name: Option<&NodeId>) -> Result<Identity> {
        std::fs::create_dir_all(state_dir)
            .with_context(|| format!("make the state directory {}", state_dir.display()))?;
        let lock = File::create(state_dir.join("lock"))
            .with_context(|| format!("write in the state directory {}", state_dir.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!(
                "another agent uses the state directory {}: stop it, or give this one its own with --state-dir",
                state_dir.display()
            );
        }
        let node = match name {
            Some(name) => name.clone(),
            None => kept_name(&state_dir.join("name"))?,
        };
        let seen_path = state_dir.join("term");
        let seen = match std::fs::read_to_string(&seen_path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Term(0),
            text => Term(text?.trim().parse().with_context(|| format!("read {}", seen_path.display()))?),
        };
        Ok(Identity { node, incarnation: random()?, seen, seen_path, _lock: lock })
    }

    /// No order of a lower term is obeyed.
    pub fn seen(&self) -> Epoch {
        Epoch { term: self.seen, ..Epoch::default() }
    }

    pub fn see(&mut self, term: Term) {
        if term <= self.seen {
            return;
        }
        self.seen = term;
        if let Err(error) = write_whole(&self.seen_path, &term.to_string()) {
            // It only matters if this agent restarts and meets a leader from before.
            tracing::warn!(%error, %term, "cannot keep the term that was seen");
        }
    }
}

/// The name of the first start, or a new one: the host's, made unique.
fn kept_name(path: &Path) -> Result<NodeId> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        text => return NodeId::parse(text?.trim()).with_context(|| format!("read {}", path.display())),
    }
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = NodeId::parse(&format!("{}-{:04x}", host_part(&host), random()? as u16))?;
    write_whole(path, name.as_str()).with_context(|| format!("write {}", path.display()))?;
    Ok(name)
}

fn host_part(host: &str) -> String {
    let good: String = host
        .trim()
        .split('.')
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
        .take(50)
        .collect();
    let good = good.trim_matches('-');
    if good.is_empty() { "node".into() } else { good.into() }
}

/// Synced before it gets its name: after a power failure an empty file would keep the agent from starting.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_name_and_the_term_that_it_saw() {
        let dir = tempfile::tempdir().unwrap();
        let mut first = Identity::take(dir.path(), None).unwrap();
        first.see(Term(7));
        first.see(Term(3));
        let (name, incarnation) = (first.node.clone(), first.incarnation);
        drop(first);
        let second = Identity::take(dir.path(), None).unwrap();
        assert_eq!((second.node.clone(), second.seen().term), (name, Term(7)));
        assert_ne!(second.incarnation, incarnation);
    }

    #[test]
    fn two_agents_cannot_share_a_state_directory() {
        let dir = tempfile::tempdir().unwrap();
        let _first = Identity::take(dir.path(), None).unwrap();
        let error = Identity::take(dir.path(), None).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn any_host_name_makes_a_node_name() {
        for (host, part) in [("Box-7.example.com\n", "box-7"), ("", "node"), ("-ÜÄ-", "node"), ("a_b", "ab")] {
            assert_eq!(host_part(host), part);
        }
    }
}
