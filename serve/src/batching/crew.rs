//! Those who compute one version of a model, and the way for callers to wait for them.
//!
//! A model that takes its time has threads of its own. A quick one is computed by the thread that read the request, once
//! that has read what else is there: on an idle server an answer then costs no hand-over between threads, on a busy
//! one requests still form batches. Its threads stay for requests larger than a batch.
//!
//! Who leaves (a client that went away, a deadline that passed) is taken out of the queue at once. When the crew is
//! dropped its threads compute what is still queued and end: nobody who was admitted is left without an answer.

use super::Policy;
use super::queue::{Entry, Full, New, Queue, Take};
use crate::clock::now_us;
use crate::model::{Model, Predict};
use crate::quiet;
use crate::refusal::Refusal;
use crate::stats::Stats;
use crate::tensor::Rows;
use elastic_tensor::backend::DeviceLost;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// What one request got, and where its time went.
#[derive(Debug)]
pub struct Done {
    pub logits: Vec<f32>,
    pub times: Times,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    pub queue_us: u64,
    pub input_us: u64,
    pub infer_us: u64,
    pub output_us: u64,
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Threads,
    /// Tasks of the runtime that reads requests.
    Readers,
}

pub struct Crew {
    shared: Arc<Shared>,
}

struct Shared {
    model: Arc<dyn Model>,
    policy: Policy,
    by: By,
    stats: Arc<Stats>,
    state: Mutex<State>,
    wake: Condvar,
}

struct State {
    queue: Queue<Waiting>,
    /// Predictors that nobody computes with.
    idle: Vec<Box<dyn Predict>>,
    lead: Lead,
    closed: bool,
}

/// The task that computes on the runtime; there is one at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lead {
    None,
    /// It will look at the queue.
    Coming,
    Computing,
}

struct Waiting {
    rows: Rows,
    reply: oneshot::Sender<Result<Done, Refusal>>,
}

/// Requests that are computed together.
type Batch = Vec<Entry<Waiting>>;

impl Crew {
    /// Starts a thread for each predictor.
    pub fn start(
        model: Arc<dyn Model>,
        predictors: Vec<Box<dyn Predict>>,
        policy: Policy,
        by: By,
        stats: Arc<Stats>,
    ) -> std::io::Result<Crew> {
        let threads = predictors.len();
        let state = State { queue: Queue::new(policy), idle: predictors, lead: Lead::None, closed: false };
        let state = Mutex::new(state);
        let crew = Crew { shared: Arc::new(Shared { model, policy, by, stats, state, wake: Condvar::new() }) };
        for _ in 0..threads {
            let shared = crew.shared.clone();
            std::thread::Builder::new().name("compute".into()).spawn(move || shared.work())?;
        }
        Ok(crew)
    }

    /// Waits for the logits of these rows until `deadline_us`. Dropped before that, the request leaves the queue.
    pub async fn infer(&self, rows: Rows, deadline_us: u64) -> Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        let now_us = now_us();
        let new = New {
            rows: rows.count(),
            length: rows.length(),
            bytes: rows.bytes(),
            now_us,
            deadline_us,
            item: Waiting { rows, reply },
        };
        let id = self.admit(new)?;
        self.shared.stats.pending(1);
        let mut place = Place { shared: &self.shared, id, answered: false };
        let left = Duration::from_micros(deadline_us.saturating_sub(now_us));
        let answer = tokio::time::timeout(left, answer).await;
        place.answered = matches!(answer, Ok(Ok(_)));
        match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Refusal::Internal("the thread that computed the answer ended".into())),
            Err(_) => Err(late()),
        }
    }
}

impl Crew {
    /// Puts a request into the queue and sees to it that somebody will look there.
    fn admit(&self, new: New<Waiting>) -> Result<u64, Refusal> {
        let mut state = self.shared.lock();
        let rows = new.rows;
        let id = state.queue.admit(new).map_err(|full| self.shared.full(full))?;
        if self.shared.by == By::Threads || rows > self.shared.policy.rows_max {
            drop(state);
            self.shared.wake.notify_one();
            return Ok(id);
        }
        match state.lead {
            Lead::None => {
                state.lead = Lead::Coming;
                drop(state);
                drop(tokio::spawn(lead(self.shared.clone())));
            }
            Lead::Coming => {}
            // Another instance may have hands free.
            Lead::Computing if !state.idle.is_empty() => self.shared.wake.notify_one(),
            Lead::Computing => {}
        }
        Ok(id)
    }
}

/// Computes on the runtime until the queue is empty. It steps back before each batch, so that what has come is read first.
async fn lead(shared: Arc<Shared>) {
    loop {
        tokio::task::yield_now().await;
        if !shared.lead_once() {
            return;
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
    }
}

fn late() -> Refusal {
    Refusal::Late("the deadline passed before the model answered".into())
}

/// A caller's place in the queue, which it leaves when it is dropped.
struct Place<'a> {
    shared: &'a Shared,
    id: u64,
    answered: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.stats.pending(-1);
        if !self.answered {
            drop(self.shared.lock().queue.remove(self.id));
        }
    }
}

impl Shared {
    /// No code that can panic runs while it is held; a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn full(&self, full: Full) -> Refusal {
        let what = match full {
            Full::Requests(requests) => format!("{requests} requests wait for this model already"),
            Full::Bytes(bytes) => format!("requests of {bytes} bytes wait for this model already"),
        };
        Refusal::Full { what, retry_after_s: 1 }
    }

    fn work(&self) {
        while let Some((batch, predictor)) = self.next() {
            let predictor = self.computed(predictor, batch);
            self.lock().idle.extend(predictor);
        }
        // The last one frees what the version has.
        quiet::step_back();
    }

    /// Computes a batch and gives the predictor back, or another one if the model panicked.
    fn computed(&self, mut predictor: Box<dyn Predict>, batch: Batch) -> Option<Box<dyn Predict>> {
        let computed = catch_unwind(AssertUnwindSafe(|| self.compute(predictor.as_mut(), batch)));
        let Err(panic) = computed else { return Some(predictor) };
        if let Some(DeviceLost(why)) = panic.downcast_ref() {
            // Nothing that this process holds on the device can be used again; another process may do better.
            tracing::error!(%why, "the device failed; the server ends, so that it is started anew");
            std::process::exit(1);
        }
        // The callers see that their reply was dropped. What the panic left in the predictor is not used again.
        tracing::error!("a model panicked; its predictor is made anew");
        match self.model.predictor(1) {
            Ok(fresh) => Some(fresh),
            Err(why) => {
                tracing::error!(%why, "a predictor cannot be made anew; there is one less");
                None
            }
        }
    }

    /// The next batch, and what to compute it with; None once the crew is dropped and the queue is empty.
    fn next(&self) -> Option<(Batch, Box<dyn Predict>)> {
        let mut state = self.lock();
        loop {
            let now_us = now_us();
            tell_late(&mut state.queue, now_us);
            if state.closed && state.queue.is_empty() {
                return None;
            }
            let Some(predictor) = state.idle.pop() else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Nothing more will come to a closed queue: its batches do not wait.
            let take_us = if state.closed { u64::MAX } else { now_us };
            let taken = match state.queue.take(take_us) {
                Take::Batch(batch) => return Some((batch, predictor)),
                other => other,
            };
            state.idle.push(predictor);
            state = match taken {
                Take::WaitUntil(at_us) => {
                    let left = Duration::from_micros(at_us.saturating_sub(now_us).max(1));
                    self.wake.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// One batch on the runtime. False when nobody leads any more: nothing waits, or it is the threads' business.
    fn lead_once(&self) -> bool {
        let mut state = self.lock();
        let now_us = now_us();
        tell_late(&mut state.queue, now_us);
        let fits = state.queue.front_rows().is_some_and(|rows| rows <= self.policy.rows_max);
        let taken = match state.idle.pop() {
            Some(predictor) if fits => match state.queue.take(now_us) {
                Take::Batch(batch) => Some((batch, predictor)),
                _ => {
                    state.idle.push(predictor);
                    None
                }
            },
            Some(predictor) => {
                state.idle.push(predictor);
                None
            }
            None => None,
        };
        let Some((batch, predictor)) = taken else {
            state.lead = Lead::None;
            if !state.queue.is_empty() {
                self.wake.notify_one();
            }
            return false;
        };
        state.lead = Lead::Computing;
        drop(state);
        let predictor = self.computed(predictor, batch);
        let mut state = self.lock();
        state.idle.extend(predictor);
        let more = !state.queue.is_empty() && !state.closed;
        state.lead = if more { Lead::Coming } else { Lead::None };
        if state.closed {
            self.wake.notify_all();
        }
        more
    }

    fn compute(&self, predictor: &mut dyn Predict, batch: Batch) {
        let start_us = now_us();
        let count: usize = batch.iter().map(|entry| entry.rows).sum();
        let mut callers = Vec::with_capacity(batch.len());
        let mut rows: Option<Rows> = None;
        for Entry { rows: own, arrived_us, item: Waiting { rows: more, reply }, .. } in batch {
            match &mut rows {
                None => rows = Some(more),
                Some(rows) => rows.append(&more),
            }
            callers.push((own, arrived_us, reply));
        }
        let rows = rows.expect("a batch is never empty");
        let infer_us = now_us();
        let result = self.pieces(predictor, &rows);
        let done_us = now_us();
        let mut logits = match result {
            Ok(logits) => logits,
            Err(why) => {
                tracing::error!(%why, rows = count, "a model did not answer");
                let refusal = Refusal::Internal(why);
                callers.into_iter().for_each(|(_, _, reply)| drop(reply.send(Err(refusal.clone()))));
                return;
            }
        };
        let times = Times { queue_us: 0, input_us: infer_us - start_us, infer_us: done_us - infer_us, output_us: 0 };
        self.stats.executed(count, &times);
        let (one, width) = (callers.len() == 1, logits.len() / count);
        let mut from = 0;
        for (own, arrived_us, reply) in callers {
            let to = from + own * width;
            let own = if one { std::mem::take(&mut logits) } else { logits[from..to].to_vec() };
            from = to;
            let times = Times { queue_us: start_us.saturating_sub(arrived_us), output_us: now_us() - done_us, ..times };
            // Who left meanwhile does not want it any more.
            let _ = reply.send(Ok(Done { logits: own, times }));
        }
    }

    /// Rows in calls of at most the policy's size.
    fn pieces(&self, predictor: &mut dyn Predict, rows: &Rows) -> Result<Vec<f32>, String> {
        let (count, most) = (rows.count(), self.policy.rows_max);
        if count <= most {
            return predictor.logits(rows);
        }
        let mut out = Vec::with_capacity(self.model.face().logits_of(rows));
        for from in (0..count).step_by(most) {
            out.append(&mut predictor.logits(&rows.slice(from, (from + most).min(count)))?);
        }
        Ok(out)
    }
}

/// Those whose deadline has passed are told.
fn tell_late(queue: &mut Queue<Waiting>, now_us: u64) {
    for entry in queue.expired(now_us) {
        let _ = entry.item.reply.send(Err(late()));
    }
}

#[cfg(test)]
mod tests;
