//! What must hold after every step, whatever happened.

use elastic_control::Effects;
use elastic_spec::facts::{NodeReport, NodeWant};
use elastic_spec::view::View;
use elastic_spec::{Epoch, JobId, NodeId, Term, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
pub struct Invariants {
    reported: BTreeSet<WorkerId>,
    newest: BTreeMap<JobId, (Epoch, View)>,
    orders: BTreeMap<NodeId, NodeWant>,
    slots: BTreeMap<NodeId, usize>,
}

impl Invariants {
    pub fn check(&mut self, report: Option<&NodeReport>, effects: &Effects) {
        if let Some(report) = report {
            self.reported.extend(report.workers.iter().map(|w| w.worker));
            self.slots.insert(report.node.clone(), usize::from(report.slots));
        }
        for (node, want) in &effects.then_send {
            for job in &want.jobs {
                job.view.iter().for_each(|view| self.check_view(&job.job, view, want.term));
            }
            self.check_order(node, want);
        }
        self.check_slots(effects.then_send.iter().map(|(_, w)| w.term).max());
    }

    fn check_view(&mut self, job: &JobId, view: &View, term: Term) {
        assert_eq!(view.check(), Ok(()), "{view:?}");
        assert_eq!(view.job, *job);
        // A new leader passes on the highest view that it has heard of, which need not be the last one made.
        let is_own = view.epoch.term == term;
        if let Some((epoch, old)) = self.newest.get(job).filter(|_| is_own) {
            assert!(view.epoch > *epoch || view == old, "epochs rise: {epoch} before {view:?}");
        }
        for member in &view.members {
            assert!(self.reported.contains(&member.worker), "{} was never reported", member.worker);
        }
        let world = usize::from(view.world_size());
        if world > 0 {
            let most = view.shard_map.len().div_ceil(world);
            for rank in 0..world {
                let load = view.shard_map.iter().filter(|r| usize::from(r.0) == rank).count();
                assert!(load <= most, "rank {rank} has {load} of at most {most} shards: {view:?}");
            }
        }
        if is_own {
            self.newest.insert(job.clone(), (view.epoch, view.clone()));
        }
    }

    fn check_order(&mut self, node: &NodeId, want: &NodeWant) {
        if let Some(old) = self.orders.get(node) {
            assert!((want.term, want.revision) >= (old.term, old.revision), "orders rise");
        }
        // A node that came back smaller may still have to let some go.
        let slots = want.jobs.iter().flat_map(|j| &j.slots).filter(|s| !s.leave).count();
        let most = self.slots.get(node).copied().unwrap_or(0);
        assert!(slots <= most, "node {node} has {most} slots and shall run {slots} workers: {want:?}");
        self.orders.insert(node.clone(), want.clone());
    }

    /// No slot of a job is wanted on two nodes by the same leader.
    fn check_slots(&self, term: Option<Term>) {
        let mut owners: BTreeMap<(JobId, u16), NodeId> = BTreeMap::new();
        for (node, want) in self.orders.iter().filter(|(_, w)| Some(w.term) == term) {
            for (job, slot) in want.jobs.iter().flat_map(|j| j.slots.iter().map(|s| (j.job.clone(), s.slot))) {
                let before = owners.insert((job.clone(), slot), node.clone());
                assert!(before.is_none(), "{job}/{slot} is wanted on {node} and on {before:?}");
            }
        }
    }
}
