//! Where a job's checkpoints lie: which nodes see one run directory, who holds the newest, whether the writer can write.
//!
//! Nothing is decided by it. It is for a person, who would otherwise look for a checkpoint on the wrong node, or
//! wait for one that a full disk keeps from being written.

use crate::job::{Cluster, Job};
use crate::note::Note;
use crate::time::Millis;
use elastic_spec::facts::{Unpublished, WorkerStatus};
use elastic_spec::{NodeId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

impl Job {
    /// Says it once when the first node is seen that has another run directory than the others.
    pub(crate) fn observe_run_dir(&mut self, node: &NodeId, status: &WorkerStatus, cluster: &mut Cluster) {
        let Some(id) = status.run_dir_id else { return };
        let did_differ = self.run_dirs_differ();
        self.seen.run_dirs.insert(node.clone(), id);
        if let Some(words) = self.run_dir_differs().filter(|_| !did_differ) {
            cluster.note(Note::RunDirDiffers { job: self.id.clone(), words });
        }
    }

    /// As `observe`. One that finished and sees another directory than the writer cannot know what the checkpoint is called
    /// there: it names the directory, and that is on the writer's node.
    pub(crate) fn observe_finished(&mut self, now: Millis, node: &NodeId, worker: WorkerId, status: &WorkerStatus) {
        let writer = self.view.as_ref().and_then(|view| view.members.first());
        let writer = writer.filter(|m| m.worker != worker && self.sees_another(&m.node, node));
        let on = writer.map_or(node, |m| &m.node).clone();
        self.observe(now, &on, status);
    }

    fn sees_another(&self, a: &NodeId, b: &NodeId) -> bool {
        let id = |node| self.seen.run_dirs.get(node);
        id(a).zip(id(b)).is_some_and(|(a, b)| a != b)
    }

    fn run_dirs_differ(&self) -> bool {
        self.seen.run_dirs.values().collect::<BTreeSet<_>>().len() > 1
    }

    pub(crate) fn run_dir_differs(&self) -> Option<String> {
        if !self.run_dirs_differ() {
            return None;
        }
        let mut groups: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
        for (node, id) in &self.seen.run_dirs {
            groups.entry(*id).or_default().push(node.as_str());
        }
        let mut groups: Vec<String> = groups.into_values().map(|nodes| nodes.join(" and ")).collect();
        // By name: the numbers are random.
        groups.sort();
        let (dir, nodes) = (&self.launch.run_dir, groups.join(", "));
        Some(format!(
            "run directory {dir} is not shared: {nodes} see different ones; what a node writes lies on that node"
        ))
    }

    /// Only the lowest rank writes, and what was published since is no trouble any more.
    pub(crate) fn unpublished(&self) -> Option<(NodeId, Unpublished)> {
        let writer = self.view.as_ref()?.members.first()?;
        let (_, slot) = self.slot_of(writer.worker)?;
        let why = slot.worker.as_ref()?.status.as_ref()?.unpublished.clone()?;
        (why.round > self.published_round()).then(|| (writer.node.clone(), why))
    }
}
