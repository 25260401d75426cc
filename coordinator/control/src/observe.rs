//! Takes in what a node reports: itself, and every worker process on it.

use crate::event::Effects;
use crate::faults::After;
use crate::job::{Cluster, Job};
use crate::machine::Machine;
use crate::node::{Drain, Node};
use crate::note::{Cause, Note};
use crate::slot::{Slot, Worker};
use elastic_spec::facts::{NodeReport, Phase, Process, WorkerReport, WorkerStatus};
use elastic_spec::{NodeId, Term};

impl Machine {
    pub(crate) fn report(&mut self, report: NodeReport, out: &mut Effects) {
        let seen = highest_term(&report);
        if seen > self.term {
            out.notes.push(Note::StandDown { ours: self.term, seen });
            self.surpassed_by = Some(seen);
            return;
        }
        if !self.observe_node(&report, out) {
            return;
        }
        let (jobs, mut cluster) = self.parts(out);
        for worker in &report.workers {
            if let Some(job) = jobs.get_mut(&worker.job).filter(|j| j.is_live()) {
                job.observe_worker(&report.node, worker, &mut cluster);
            }
        }
        for job in jobs.values_mut().filter(|j| j.is_live()) {
            job.adopt_numerics();
            job.miss_vanished(&report, &mut cluster);
        }
    }

    /// `false`: the report is of no account.
    fn observe_node(&mut self, report: &NodeReport, out: &mut Effects) -> bool {
        if !self.nodes.contains_key(&report.node) && self.nodes.len() >= self.config.nodes_max {
            out.notes.push(Note::NodeTurnedAway { node: report.node.clone() });
            return false;
        }
        let node = self.nodes.entry(report.node.clone()).or_insert_with(|| Node::new(report.node.clone()));
        if node.former == Some(report.incarnation) {
            return false;
        }
        let (was_known, was_silent, was_cut) = (node.is_known(), node.is_silent, node.is_cut);
        let (was_draining, was_drain) = (node.is_draining(), node.drain);
        let is_restarted = was_known && node.incarnation != report.incarnation;
        if is_restarted {
            node.former = Some(node.incarnation);
        }
        node.observe(self.now, report);
        node.is_silent = false;
        if is_restarted || was_cut || was_silent {
            // What was said meanwhile may not have arrived.
            node.told = None;
        }
        node.is_changed |= was_drain != node.drain && matches!(was_drain, Drain::Operator { .. });
        let id = || report.node.clone();
        match (was_known, is_restarted, was_silent) {
            (false, _, _) => out.notes.push(Note::NodeJoined { node: id(), slots: report.slots }),
            (_, true, _) => out.notes.push(Note::AgentRestarted { node: id() }),
            (_, _, true) => out.notes.push(Note::NodeBack { node: id() }),
            _ => {}
        }
        if node.is_draining() && !was_draining {
            out.notes.push(Note::NodeDrains { node: id() });
        }
        if is_restarted {
            let (jobs, mut cluster) = self.parts(out);
            for job in jobs.values_mut().filter(|j| j.is_live()) {
                job.lose_node(&report.node, &mut cluster);
            }
        }
        true
    }
}

/// Of all orders and views that the node and its workers have seen.
fn highest_term(report: &NodeReport) -> Term {
    let statuses = report.workers.iter().filter_map(|w| status_of(&w.process));
    let views = statuses.filter_map(|s| s.view.as_ref()).map(|v| v.epoch.term);
    views.chain([report.seen.term]).max().expect("there is at least one")
}

fn status_of(process: &Process) -> Option<&WorkerStatus> {
    match process {
        Process::Running { status, .. } | Process::Exited { status, .. } => status.as_ref(),
    }
}

impl Job {
    fn observe_worker(&mut self, node: &NodeId, report: &WorkerReport, cluster: &mut Cluster) {
        let status = status_of(&report.process);
        if let Some(status) = status.filter(|s| s.phase == Phase::Finished && !self.is_command()) {
            return self.finish(node, report.worker, status, cluster);
        }
        self.unheard.remove(&report.worker);
        self.adopt_slot(node, report, cluster);
        let now = cluster.now;
        let index = report.slot;
        let is_this = |s: &&mut Slot| s.node == *node && s.attempt == report.attempt && now >= s.not_before;
        let Some(slot) = self.slots.get_mut(&index).filter(is_this) else { return };
        if slot.worker.as_ref().map(|w| w.id) != Some(report.worker) {
            slot.worker = Some(Worker::new(report.worker, now));
            let (job, node) = (self.id.clone(), node.clone());
            cluster.note(Note::Started { job, slot: index, node, worker: report.worker });
        }
        let worker = slot.worker.as_mut().expect("it was just set");
        let silent_ms = match &report.process {
            Process::Running { silent_ms, .. } => *silent_ms,
            Process::Exited { .. } => 0,
        };
        worker.observe(now, silent_ms, &status.cloned());
        if let Some(status) = status {
            self.observe(now, node, status);
            self.observe_run_dir(node, status, cluster);
            if let Some(view) = &status.view {
                self.adopt(view, cluster);
            }
        }
        if let Process::Exited { end, .. } = &report.process {
            self.ended(index, end, status, cluster);
        }
    }

    /// A process that an earlier leader asked for is kept; where two claim one slot, the later attempt is it.
    fn adopt_slot(&mut self, node: &NodeId, report: &WorkerReport, cluster: &mut Cluster) {
        let is_later = |s: &Slot| report.attempt > s.attempt && (s.node == *node || self.is_recovering(cluster.now));
        let is_ours = match self.slots.get(&report.slot) {
            Some(slot) => is_later(slot),
            None => self.is_recovering(cluster.now),
        };
        if !is_ours {
            // Asked for by an earlier leader, and over: its number is not used again.
            let highest = self.attempts.entry(report.slot).or_insert(report.attempt);
            *highest = report.attempt.max(*highest);
            return;
        }
        // The record may be ahead of the process: then its end was charged, and its successor is due.
        let recorded = self.attempts.get(&report.slot).copied().unwrap_or(0);
        let attempt = report.attempt.max(recorded);
        self.attempts.insert(report.slot, attempt);
        self.slots.insert(report.slot, Slot::new(node.clone(), attempt, cluster.now));
        cluster.note(Note::SlotAdopted { job: self.id.clone(), slot: report.slot, attempt, node: node.clone() });
    }

    /// Processes that were seen on this node and that it speaks of no more.
    fn miss_vanished(&mut self, report: &NodeReport, cluster: &mut Cluster) {
        let is_there = |s: &Slot| {
            s.worker.as_ref().is_none_or(|w| report.workers.iter().any(|r| r.worker == w.id && r.job == self.id))
        };
        let gone: Vec<u16> =
            self.slots.iter().filter(|(_, s)| s.node == report.node && !is_there(s)).map(|(i, _)| *i).collect();
        for index in gone {
            if self.is_live() {
                self.fault(index, Cause::Vanished, After::Here, cluster);
            }
        }
    }
}
