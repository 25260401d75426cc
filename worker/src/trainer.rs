//! The training thread: carries out what the member asks of it, strictly in order.
//!
//! It owns the state; nobody else writes it. What to do and when is decided by the member, links and
//! heartbeats live on another thread, so a computation that never ends does not silence this worker.

use crate::fail;
use crate::fault::{Alarm, Fault};
use crate::pool::{Pool, Shared};
use crate::publisher::{Copy, Publisher};
use crate::rows::Row;
use bytes::Bytes;
use elastic_member::Event;
use elastic_spec::facts::Metrics;
use elastic_spec::job::schedule::Kind;
use elastic_spec::layout::Tail;
use elastic_spec::tree::TreeNode;
use elastic_spec::{Epoch, Round, Step, WorkerId};
use std::collections::VecDeque;
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::mpsc::Sender;

/// The member's effects that touch the state.
#[derive(Debug)]
pub enum Task {
    Compute { round: Round, node: TreeNode },
    Apply { round: Round, chunks: Vec<Bytes> },
    TakeState { to: WorkerId, round: Round, part: u16, parts: u16 },
    Install { round: Round, parts: Vec<Bytes> },
    Publish { round: Round, epoch: Epoch },
}

pub struct Trainer {
    pool: Pool,
    publisher: Publisher,
    metrics: Arc<Mutex<Option<Metrics>>>,
    validation: Option<(Step, Tail)>,
    skipped: u64,
    pace: StepTimes,
}

impl Trainer {
    pub fn new(pool: Pool, publisher: Publisher, metrics: Arc<Mutex<Option<Metrics>>>) -> Trainer {
        let mut trainer =
            Trainer { pool, publisher, metrics, validation: None, skipped: 0, pace: StepTimes::default() };
        trainer.recall();
        trainer
    }

    /// Works until the member goes away, or the job cannot go on.
    pub fn run(mut self, tasks: Receiver<Task>, events: Sender<Event>, alarm: &Alarm) {
        for task in tasks {
            let event = match self.perform(task) {
                Ok(Some(event)) => event,
                Ok(None) => continue,
                Err(fault) => return alarm.raise(fault),
            };
            if events.blocking_send(event).is_err() {
                return;
            }
        }
    }

    /// The answer to a task; a publication is answered by the publisher.
    pub fn perform(&mut self, task: Task) -> Result<Option<Event>, Fault> {
        Ok(match task {
            Task::Compute { round, node } => Some(self.compute(round, node)),
            Task::Apply { round, chunks } => Some(self.apply(round, &chunks)?),
            Task::TakeState { to, round, part, parts } => {
                self.pool.bring_home();
                let state = self.shared().state.read().expect("the state is whole");
                assert!(state.round == round, "the state of round {round} is taken in its turn");
                let frames = state.frames(part, parts);
                fail::point_in_training("state-taken");
                Some(Event::StateTaken { to, round, frames })
            }
            Task::Install { round, parts } => Some(self.install(round, &parts)),
            Task::Publish { round, epoch } => {
                self.pool.bring_home();
                let state = self.shared().state.read().expect("the state is whole");
                assert!(state.round == round, "the state of round {round} is published in its turn");
                self.publisher.publish(Copy { state: state.clone(), epoch });
                None
            }
        })
    }

    fn compute(&mut self, round: Round, node: TreeNode) -> Event {
        fail::point_in_training("before-compute");
        assert!(self.round() == round, "round {round} is computed from its own state");
        let sum = self.pool.sum(round, node);
        let layout = self.shared().job.layout_of(round);
        let chunks = layout.cut(&sum.floats, sum.tail);
        self.shared().give_back(sum.floats);
        fail::point_in_training("after-compute");
        Event::Computed { round, node, chunks }
    }

    fn apply(&mut self, round: Round, chunks: &[Bytes]) -> Result<Event, Fault> {
        let shared = self.pool.shared.clone();
        assert!(self.round() == round, "round {round} is applied to its own state");
        let layout = shared.job.layout_of(round);
        let mut reduced = shared.vector(layout.floats);
        let tail = layout.join(chunks, &mut reduced);
        fail::point_in_training("before-apply");
        let mut state = shared.state.write().expect("the state is whole");
        self.pool.apply(&mut state, &mut reduced, tail).map_err(Fault::Job)?;
        drop(state);
        shared.give_back(reduced);
        if self.round() == shared.job.schedule.rounds() {
            // Other threads read the last state: for its digests, and to write it again where it is missing.
            self.pool.bring_home();
        }
        match shared.job.schedule.kind(round) {
            Kind::Train(_) => {
                self.pace.step_done(shared.inputs.waited_us());
                let state = shared.state.read().expect("the state is whole");
                self.skipped += u64::from(state.rows.last().is_some_and(Row::was_skipped));
            }
            Kind::Validate(step) => self.validation = Some((step, tail)),
        }
        self.tell_metrics();
        fail::point_in_training("after-apply");
        Ok(Event::Applied { round })
    }

    fn install(&mut self, round: Round, parts: &[Bytes]) -> Event {
        fail::point_in_training("before-install");
        self.pool.bring_home();
        let mut state = self.pool.shared.state.write().expect("the state is whole");
        let refused = state.install(round, parts).err();
        drop(state);
        match &refused {
            Some(error) => tracing::warn!(%round, %error, "the peers' state is refused; it is fetched again"),
            None => self.recall(),
        }
        fail::point_in_training("after-install");
        Event::Installed { round, accepted: refused.is_none() }
    }

    /// What the status says of the last step.
    fn tell_metrics(&self) {
        let state = self.shared().state.read().expect("the state is whole");
        let Some(last) = state.rows.last() else { return };
        let metrics = Metrics {
            step: Step(state.rows.len() as u64),
            train: last.train,
            lr: last.lr,
            grad_norm: last.grad_norm,
            skipped: self.skipped,
            validation: self.validation,
            step_us: self.pace.median_us(),
            input_wait_us: self.pace.mean_wait_us(),
        };
        *self.metrics.lock().expect("no one panics with this lock") = Some(metrics);
    }

    /// Finds the last validation, and how many steps were skipped, in a state that was taken up from elsewhere.
    fn recall(&mut self) {
        let state = self.shared().state.read().expect("the state is whole");
        let last = state.rows.iter().rposition(|row| row.validation.count > 0);
        let validation = last.map(|i| (Step(i as u64 + 1), state.rows[i].validation));
        let skipped = state.rows.iter().filter(|row| row.was_skipped()).count();
        drop(state);
        (self.validation, self.skipped) = (validation, skipped as u64);
        self.tell_metrics();
    }

    fn round(&self) -> Round {
        self.shared().state.read().expect("the state is whole").round
    }

    fn shared(&self) -> &Shared {
        &self.pool.shared
    }
}

/// How long the latest steps took, and how long they waited for their batches.
#[derive(Debug, Default)]
struct StepTimes {
    last: Option<Instant>,
    waited_us: u64,
    lately: VecDeque<StepTime>,
}

#[derive(Clone, Copy, Debug)]
struct StepTime {
    us: u64,
    waited_us: u64,
}

impl StepTimes {
    /// `waited_us` counts from the beginning.
    fn step_done(&mut self, waited_us: u64) {
        let now = Instant::now();
        let waited_us = waited_us - std::mem::replace(&mut self.waited_us, waited_us);
        if let Some(last) = self.last.replace(now) {
            self.lately.truncate(STEPS_REMEMBERED - 1);
            self.lately.push_front(StepTime { us: now.duration_since(last).as_micros() as u64, waited_us });
        }
    }

    fn median_us(&self) -> u64 {
        let mut sorted: Vec<u64> = self.lately.iter().map(|step| step.us).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied().unwrap_or(0)
    }

    /// The mean: a stall every tenth step must show.
    fn mean_wait_us(&self) -> u64 {
        self.lately.iter().map(|step| step.waited_us).sum::<u64>() / self.lately.len().max(1) as u64
    }
}

const STEPS_REMEMBERED: usize = 33;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_of_the_latest_steps_are_told_as_their_mean() {
        let mut pace = StepTimes::default();
        assert_eq!(pace.mean_wait_us(), 0);
        // What the first step waited is not counted: nor is its time, which has no beginning.
        for total in [5_000, 5_000, 5_030, 5_040] {
            pace.step_done(total);
        }
        assert_eq!(pace.mean_wait_us(), (30 + 10) / 3);
        for _ in 0..STEPS_REMEMBERED {
            pace.step_done(5_040);
        }
        assert_eq!((pace.mean_wait_us(), pace.lately.len()), (0, STEPS_REMEMBERED));
    }
}
