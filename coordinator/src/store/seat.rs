//! The leader's seat of a store that only one process has open: taken, or free.

use super::{Leadership, StoreError};
use elastic_spec::Term;
use std::sync::Mutex;
use tokio::sync::{Notify, watch};

#[derive(Debug, Default)]
pub(super) struct Seat {
    holder: Mutex<Option<Holder>>,
    freed: Notify,
}

#[derive(Debug)]
struct Holder {
    term: Term,
    address: String,
    over: watch::Sender<bool>,
}

impl Seat {
    fn holder(&self) -> std::sync::MutexGuard<'_, Option<Holder>> {
        self.holder.lock().expect("nobody panics while holding the seat's lock")
    }

    /// Returns when nobody leads; somebody may be faster to take the seat.
    pub async fn free(&self) {
        loop {
            let freed = self.freed.notified();
            if self.holder().is_none() {
                return;
            }
            freed.await;
        }
    }

    /// Takes the seat, if it is free.
    pub fn take(&self, term: Term, address: &str) -> Option<Leadership> {
        let mut holder = self.holder();
        if holder.is_some() {
            return None;
        }
        let (over, watched) = watch::channel(false);
        *holder = Some(Holder { term, address: address.to_string(), over });
        Some(Leadership { term, over: watched })
    }

    pub fn leave(&self, term: Term) {
        let mut holder = self.holder();
        if let Some(left) = holder.take_if(|h| h.term == term) {
            left.over.send_replace(true);
            self.freed.notify_waiters();
        }
    }

    pub fn check(&self, term: Term) -> Result<(), StoreError> {
        match self.holder().as_ref().is_some_and(|h| h.term == term) {
            true => Ok(()),
            false => Err(StoreError::Fenced(term)),
        }
    }

    pub fn address(&self) -> Option<String> {
        self.holder().as_ref().map(|h| h.address.clone())
    }
}
