//! All deadlines in one table, read off the state: no timer can be lost, and a stuck job is explained by
//! printing the table.

use crate::machine::Machine;
use crate::slot::Slot;
use crate::time::Millis;
use elastic_spec::{JobId, NodeId, WorkerId};

/// What is due at a deadline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Timer {
    /// While there are workers the machine looks at the time at least so often, so that it notices when
    /// it could not.
    Pace,
    /// Changes of the membership that came close together become one view.
    View(JobId),
    /// The next generation of a command is due, or a failure is to be judged.
    Generation(JobId),
    /// A first view is made without those that are still coming.
    Gather(JobId),
    /// A wait before a restart is over.
    Restart(JobId, u16),
    /// A wait before slots are filled is over.
    Hold(JobId),
    /// A new leader has heard long enough.
    Recovered(JobId),
    /// A worker has been silent long enough to be suspected, without and with evidence, or replaced.
    Silence(JobId, WorkerId),
    NodeSilence(NodeId),
    /// Silence counts again, after the leader was new or stood still.
    Grace,
}

impl Machine {
    /// What is still to come, earliest first. What was due by the last step has had its turn.
    pub fn timers(&self) -> Vec<(Millis, Timer)> {
        let mut all = Vec::new();
        let config = &self.config;
        for job in self.jobs.values().filter(|j| j.is_live()) {
            let id = || job.id.clone();
            all.extend(job.change_since.map(|since| (since.plus(config.coalesce_ms), Timer::View(id()))));
            all.extend(job.gather_since.map(|since| (since.plus(config.gather_ms), Timer::Gather(id()))));
            all.extend(job.recovers_until.map(|until| (until, Timer::Recovered(id()))));
            if job.is_command() {
                all.extend(job.generation_due(config).into_iter().map(|at| (at, Timer::Generation(id()))));
            }
            all.push((job.hold_until, Timer::Hold(id())));
            for (index, slot) in &job.slots {
                all.push((slot.not_before, Timer::Restart(id(), *index)));
                self.silence_timers(&job.id, slot, &mut all);
            }
        }
        for node in self.nodes.values().filter(|n| n.is_known() && !n.is_silent) {
            let at = node.heard.max(self.trusted_from).plus(config.suspect_ms + 1);
            all.push((at, Timer::NodeSilence(node.id.clone())));
        }
        all.push((self.grace_until, Timer::Grace));
        if self.jobs.values().any(|j| j.is_live()) {
            all.push((self.now.plus(config.suspect_ms / 4), Timer::Pace));
        }
        all.retain(|(at, _)| *at > self.now);
        all.sort();
        all
    }

    fn silence_timers(&self, job: &JobId, slot: &Slot, all: &mut Vec<(Millis, Timer)>) {
        let Some(worker) = &slot.worker else { return };
        let job = &self.jobs[job];
        let alive = if job.is_active(worker.id) { job.seen.all_alive } else { Millis(0) };
        let from = worker.heard.max(self.trusted_from).max(alive);
        let config = &self.config;
        let limits = [config.suspect_with_evidence_ms, config.suspect_ms, config.replace_ms];
        all.extend(limits.map(|ms| (from.plus(ms + 1), Timer::Silence(job.id.clone(), worker.id))));
    }
}
