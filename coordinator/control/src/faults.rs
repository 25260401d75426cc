//! What follows when a worker is lost: another attempt, going on without it, or the end of the job.

use crate::job::{Cluster, Job};
use crate::note::{Cause, Note};
use elastic_spec::api::{Fault, JobState};
use elastic_spec::facts::{End, Phase, WorkerStatus};
use elastic_spec::view::exit;
use elastic_spec::{NodeId, WorkerId};

/// Where the next attempt is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// On the same node, after the wait.
    Here,
    /// On the same node and now, because this also kills the process that is there.
    HereAtOnce,
    /// Wherever there is room, after the wait.
    Elsewhere,
}

/// A worker that left unasked is not started again before, in ms.
const LEFT_UNASKED_MS: u64 = 1_000;

impl Job {
    /// The process in a slot has ended.
    pub(crate) fn ended(&mut self, index: u16, end: &End, status: Option<&WorkerStatus>, cluster: &mut Cluster) {
        let slot = self.slots.get(&index).expect("the caller found it");
        let is_leaving = slot.is_leaving() || cluster.nodes.get(&slot.node).is_some_and(|n| n.is_draining());
        let error = status.and_then(|s| s.error.clone());
        match (end, error) {
            // The others train on this job, so what is wrong is on that node: a mount or a disk, not the job.
            (End::Code(code @ exit::USER_ERROR), error) if self.trains_without(index) => {
                let error = error.unwrap_or_else(|| "no reason was given".to_string());
                self.fault(index, Cause::Error { code: *code, error }, After::Elsewhere, cluster)
            }
            (End::Code(exit::USER_ERROR), error) => {
                let why = error.unwrap_or_else(|| "the worker reported a mistake in the job and no more".to_string());
                self.blame(index, Cause::Error { code: exit::USER_ERROR, error: why.clone() }, cluster);
                self.end(JobState::Failed, why, cluster);
            }
            // Any other worker comes to this end, too, at the same step.
            (End::Code(code @ exit::JOB_ERROR), error) => {
                let why =
                    error.unwrap_or_else(|| "the worker reported that the job cannot go on and no more".to_string());
                self.blame(index, Cause::Error { code: *code, error: why.clone() }, cluster);
                self.end(JobState::Failed, why, cluster);
            }
            (end, _) if is_leaving => {
                let why = match end {
                    End::Code(exit::DRAINED | exit::DONE) => Cause::Left,
                    end => Cause::Ended(end.clone()),
                };
                self.free(index, why.to_string(), cluster);
            }
            (End::Code(exit::DRAINED), _) => {
                self.hold_until = self.hold_until.max(cluster.now.plus(LEFT_UNASKED_MS));
                self.free(index, Cause::Ended(end.clone()).to_string(), cluster);
            }
            (End::Code(code), Some(error)) if *code != exit::DONE => {
                self.fault(index, Cause::Error { code: *code, error }, After::Here, cluster)
            }
            (End::Unstartable(_), _) => self.fault(index, Cause::Ended(end.clone()), After::Elsewhere, cluster),
            _ => self.fault(index, Cause::Ended(end.clone()), After::Here, cluster),
        }
    }

    /// Whether another member than that of this slot is in a view with a state.
    fn trains_without(&self, index: u16) -> bool {
        let is_other = |id| self.slot_of(id).is_some_and(|(i, slot)| i != index && slot.fit().is_some());
        self.has_begun && self.view.iter().flat_map(|v| v.active()).any(|m| is_other(m.worker))
    }

    /// Gives a slot up; nothing is charged.
    pub(crate) fn free(&mut self, index: u16, why: String, cluster: &mut Cluster) {
        let Some(slot) = self.slots.get(&index) else { return };
        cluster.note(Note::Freed { job: self.id.clone(), slot: index, node: slot.node.clone(), why });
        self.drop_slot(index);
    }

    /// Charges a fault and decides what comes after it.
    pub(crate) fn fault(&mut self, index: u16, cause: Cause, after: After, cluster: &mut Cluster) {
        let slot = self.slots.get(&index).expect("a fault is some slot's");
        if slot.is_leaving() {
            return self.free(index, cause.to_string(), cluster);
        }
        let began = slot.since;
        let is_unstartable = matches!(cause, Cause::Ended(End::Unstartable(_)));
        self.blame(index, cause, cluster);
        self.is_changed = true;
        self.budget.refill(cluster.config, self.seen.step, self.published_round());
        // A command's budget is for its processes; what becomes of nodes and agents costs it nothing.
        let is_free = self.is_command() && !is_unstartable;
        if !is_free && !self.budget.charge(cluster.now, began, cluster.config, self.spec.elastic.restarts) {
            return self.go_on_without(index, cluster);
        }
        self.restarts += u32::from(!is_free);
        let wait = self.budget.backoff(cluster.config);
        let (wait, after) = match after {
            After::HereAtOnce => (0, After::Here),
            after => (wait, after),
        };
        let not_before = cluster.now.plus(wait);
        let slot = self.slots.get_mut(&index).expect("a fault is some slot's");
        self.attempts.insert(index, slot.attempt);
        if after == After::Elsewhere {
            self.hold_until = self.hold_until.max(not_before);
            return self.free(index, "started elsewhere".to_string(), cluster);
        }
        let last_words = slot.worker.as_ref().and_then(|w| w.status.clone());
        slot.restart(cluster.now, not_before);
        self.attempts.insert(index, slot.attempt);
        let (job, attempt, node) = (self.id.clone(), slot.attempt, slot.node.clone());
        let left = self.budget.left(self.spec.elastic.restarts);
        cluster.note(Note::Restart { job, slot: index, attempt, node, in_ms: wait, left });
        last_words.iter().for_each(|status| self.keep_stalls(status));
    }

    /// Nothing is left to pay with: go on without it if enough others are there, else give up.
    fn go_on_without(&mut self, index: u16, cluster: &mut Cluster) {
        let others = self.slots.iter().filter(|(i, slot)| {
            **i != index && !slot.is_leaving() && slot.worker.as_ref().is_none_or(|w| w.suspect_since.is_none())
        });
        if others.count() >= usize::from(self.min) {
            self.owed += 1;
            cluster.note(Note::GoesOnWithout { job: self.id.clone(), slot: index });
            self.drop_slot(index);
            return;
        }
        let name = |f: &Fault| format!("{} on {}: {}", f.worker, f.node, f.cause);
        let root = self.first_fault.as_ref().map(|(_, f)| name(f)).unwrap_or_default();
        let last = self.last_fault.as_ref().map(name).unwrap_or_default();
        let spent = self.spec.elastic.restarts;
        let reason = match root == last {
            true => format!("gave up after {spent} restarts without enough progress: {root}"),
            false => format!("gave up after {spent} restarts without enough progress: first {root}; last {last}"),
        };
        self.end(JobState::Failed, reason, cluster);
    }

    /// Progress has earned back a restart that an earlier loss still waits for.
    pub(crate) fn pay_what_is_owed(&mut self, cluster: &mut Cluster) {
        if self.owed == 0 {
            return;
        }
        self.budget.refill(cluster.config, self.seen.step, self.published_round());
        while self.owed > 0 && self.budget.pay(self.spec.elastic.restarts) {
            self.owed -= 1;
            self.restarts += 1;
            self.is_changed = true;
        }
    }

    /// Writes a loss down, here and at the node.
    fn blame(&mut self, index: u16, cause: Cause, cluster: &mut Cluster) {
        let slot = self.slots.get(&index).expect("a fault is some slot's");
        let node = slot.node.clone();
        let worker = slot.worker.as_ref().map_or(WorkerId(0), |w| w.id);
        let is_suspect = slot.worker.as_ref().is_some_and(|w| w.suspect_since.is_some());
        let is_jobs_own = matches!(cause, Cause::Error { code: exit::USER_ERROR | exit::JOB_ERROR, .. });
        // A suspicion was written down when it arose, and that was its time.
        if !is_suspect {
            self.remember_fault(&node, worker, cause.to_string(), cluster);
        }
        let (unix_ms, config) = (cluster.unix_ms, cluster.config);
        if let Some(node) = cluster.nodes.get_mut(&node).filter(|_| !is_jobs_own) {
            node.strike(unix_ms, config);
        }
        cluster.note(Note::Fault { job: self.id.clone(), worker, node, cause });
    }

    /// A worker says that all is done, whether it still runs or not.
    pub(crate) fn finish(&mut self, node: &NodeId, worker: WorkerId, status: &WorkerStatus, cluster: &mut Cluster) {
        assert_eq!(status.phase, Phase::Finished, "only a finished worker ends a job well");
        self.observe_finished(cluster.now, node, worker, status);
        let own = self.slots.values_mut().filter_map(|s| s.worker.as_mut()).find(|w| w.id == worker);
        match own {
            Some(own) => own.status = Some(status.clone()),
            None => self.keep_stalls(status),
        }
        let reason = format!("all {} steps are done", self.seen.steps_total.max(self.seen.step.0));
        self.end(JobState::Succeeded, reason, cluster);
    }

    /// The agent of a node was started again: what it ran is gone.
    pub(crate) fn lose_node(&mut self, node: &NodeId, cluster: &mut Cluster) {
        let lost: Vec<u16> =
            self.slots.iter().filter(|(_, s)| s.node == *node && s.worker.is_some()).map(|(index, _)| *index).collect();
        for index in lost {
            if self.slots.contains_key(&index) {
                self.fault(index, Cause::AgentRestarted, After::Here, cluster);
            }
        }
    }
}
