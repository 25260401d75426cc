//! The batches of steps: made ahead by a thread of their own, or on the spot.
//!
//! Bits do not depend on who makes a batch, nor on when. Which are made ahead is decided by `ahead`.

use crate::ahead::{Ahead, Asked};
use crate::fail;
use crate::job::Job;
use elastic_spec::Step;
use elastic_spec::batch::Batch;
use elastic_spec::tree::TreeNode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Instant;

#[derive(Debug)]
pub struct Inputs {
    ahead: Mutex<Ahead>,
    changed: Condvar,
    waited_us: AtomicU64,
}

impl Inputs {
    pub fn new(steps: u64) -> Inputs {
        Inputs { ahead: Mutex::new(Ahead::new(steps)), changed: Condvar::new(), waited_us: AtomicU64::new(0) }
    }

    /// The samples of a unit's shards, one behind the other. The time that it takes counts as waited.
    pub fn take(&self, job: &Job, step: Step, unit: TreeNode) -> Batch {
        let begin = Instant::now();
        let mut ahead = self.lock();
        let batch = loop {
            match ahead.ask((step, unit)) {
                Asked::Made(batch) => break batch,
                // If the other thread panics, its alarm ends this process.
                Asked::BeingMade => ahead = self.changed.wait(ahead).expect("no one panics with this lock"),
                Asked::Missing(mut batch) => {
                    drop(ahead);
                    self.changed.notify_all();
                    make(job, step, unit, &mut batch);
                    ahead = self.lock();
                    break batch;
                }
            }
        };
        drop(ahead);
        self.changed.notify_all();
        self.waited_us.fetch_add(begin.elapsed().as_micros() as u64, Ordering::Relaxed);
        batch
    }

    pub fn give_back(&self, batch: Batch) {
        self.lock().give_back(batch);
    }

    /// Makes what will be asked for, for as long as the process lives.
    pub fn make_ahead(&self, job: &Job) -> ! {
        let mut ahead = self.lock();
        loop {
            let Some(((step, unit), mut batch)) = ahead.next() else {
                ahead = self.changed.wait(ahead).expect("no one panics with this lock");
                continue;
            };
            drop(ahead);
            make(job, step, unit, &mut batch);
            ahead = self.lock();
            ahead.made(batch);
            self.changed.notify_all();
        }
    }

    /// What steps have waited for their batches since this process began.
    pub fn waited_us(&self) -> u64 {
        self.waited_us.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Ahead> {
        self.ahead.lock().expect("no one panics with this lock")
    }
}

fn make(job: &Job, step: Step, unit: TreeNode, batch: &mut Batch) {
    fail::point("before-input");
    job.batch_into(step, unit, batch);
}
