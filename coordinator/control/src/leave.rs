//! Lets workers go in order: a drained node's, and those that scaling down or sharing takes away.
//!
//! Who leaves is first out of the view (or, if it alone holds the state, hands over or publishes), then
//! told to go, then, if it does not, stopped. Nothing is charged for it.

use crate::job::{Cluster, Job};
use crate::note::Note;
use crate::slot::Leave;
use elastic_spec::NodeId;

impl Job {
    /// Workers on draining nodes shall leave.
    pub(crate) fn drain(&mut self, cluster: &mut Cluster) {
        let is_draining = |node: &NodeId| cluster.nodes.get(node).is_some_and(|n| n.is_draining());
        let due: Vec<u16> =
            self.slots.iter().filter(|(_, s)| !s.is_leaving() && is_draining(&s.node)).map(|(i, _)| *i).collect();
        due.into_iter().for_each(|index| self.let_go(index, "its node drains", cluster));
    }

    /// Asks for one worker less, this one.
    pub(crate) fn let_go(&mut self, index: u16, why: &'static str, cluster: &mut Cluster) {
        let Some(slot) = self.slots.get_mut(&index) else { return };
        if slot.worker.is_none() {
            return self.free(index, why.to_string(), cluster);
        }
        slot.leave = Leave::HandsOver { since: cluster.now };
        cluster.note(Note::Leaves { job: self.id.clone(), slot: index, node: slot.node.clone(), why });
    }

    /// Whoever shall leave and is needed no more is told so; whoever was told and stays is stopped.
    pub(crate) fn tell_leavers(&mut self, cluster: &mut Cluster) {
        let view = self.view.as_ref();
        let mut overdue = Vec::new();
        for (index, slot) in &mut self.slots {
            let Some(worker) = &slot.worker else { continue };
            let is_done = self.generation.done.contains(&worker.id);
            let is_needed = !is_done && view.is_some_and(|v| v.rank_of(worker.id).is_some());
            match slot.leave {
                Leave::HandsOver { .. } if !is_needed => slot.leave = Leave::Told { since: cluster.now },
                Leave::Told { since } if cluster.now.since(since) > cluster.config.leave_ms => overdue.push(*index),
                _ => {}
            }
        }
        overdue.into_iter().for_each(|index| self.free(index, "asked to leave and did not".to_string(), cluster));
    }
}
