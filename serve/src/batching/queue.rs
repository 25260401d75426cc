//! Decides who is admitted to a model's queue, and which requests are computed together.
//!
//! First come, first served: a batch always has the request that has waited longest, and takes those behind it that fit
//! and have rows of the same length. A batch that is not full waits for more only while its oldest has not waited for
//! the delay. Pure: the time is an argument, in µs from any origin.

use super::Policy;
use std::collections::VecDeque;

/// One request that waits.
#[derive(Debug)]
pub struct Entry<T> {
    pub id: u64,
    pub rows: usize,
    /// Only rows of one length are computed together.
    pub length: usize,
    pub bytes: usize,
    pub arrived_us: u64,
    pub deadline_us: u64,
    pub item: T,
}

/// Why a request is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Requests(usize),
    Bytes(usize),
}

#[derive(Debug)]
pub enum Take<T> {
    /// Compute these in one call. Never empty.
    Batch(Vec<Entry<T>>),
    /// Nothing is ready before then, unless something comes.
    WaitUntil(u64),
    Empty,
}

pub struct Queue<T> {
    policy: Policy,
    waiting: VecDeque<Entry<T>>,
    bytes: usize,
    next_id: u64,
    /// No deadline passes before: a bound, so that the queue is not searched each time.
    soonest_us: u64,
}

impl<T> Queue<T> {
    pub fn new(policy: Policy) -> Queue<T> {
        assert!(policy.rows_max > 0 && policy.requests_max > 0, "a queue has room for one request");
        Queue { policy, waiting: VecDeque::new(), bytes: 0, next_id: 0, soonest_us: u64::MAX }
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Rows of the request that has waited longest.
    pub fn front_rows(&self) -> Option<usize> {
        self.waiting.front().map(|entry| entry.rows)
    }

    /// Gives the id by which the request can be taken out again. A request that is too large for an empty queue is
    /// admitted when it is empty: it can only be computed alone.
    pub fn admit(&mut self, new: New<T>) -> Result<u64, Full> {
        if self.waiting.len() >= self.policy.requests_max {
            return Err(Full::Requests(self.waiting.len()));
        }
        if self.bytes + new.bytes > self.policy.bytes_max && !self.waiting.is_empty() {
            return Err(Full::Bytes(self.bytes));
        }
        let New { rows, length, bytes, now_us, deadline_us, item } = new;
        let id = self.next_id;
        self.next_id += 1;
        self.bytes += bytes;
        self.soonest_us = self.soonest_us.min(deadline_us);
        self.waiting.push_back(Entry { id, rows, length, bytes, arrived_us: now_us, deadline_us, item });
        Ok(id)
    }

    /// Takes out a request that nobody waits for any more. None if it is being computed already.
    pub fn remove(&mut self, id: u64) -> Option<Entry<T>> {
        let at = self.waiting.binary_search_by_key(&id, |entry| entry.id).ok()?;
        self.take_at(at)
    }

    fn take_at(&mut self, at: usize) -> Option<Entry<T>> {
        let entry = self.waiting.remove(at)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Those whose deadline has passed: to be told, not computed.
    pub fn expired(&mut self, now_us: u64) -> Vec<Entry<T>> {
        let mut out = Vec::new();
        if now_us < self.soonest_us {
            return out;
        }
        let mut at = 0;
        while at < self.waiting.len() {
            match self.waiting[at].deadline_us <= now_us {
                true => out.extend(self.take_at(at)),
                false => at += 1,
            }
        }
        self.soonest_us = self.waiting.iter().map(|entry| entry.deadline_us).min().unwrap_or(u64::MAX);
        out
    }

    /// What a free thread should do now.
    pub fn take(&mut self, now_us: u64) -> Take<T> {
        let Some(oldest) = self.waiting.front() else { return Take::Empty };
        let (length, ripe_us) = (oldest.length, oldest.arrived_us + self.policy.delay.as_micros() as u64);
        let mut rows = 0;
        let mut chosen = 0;
        let mut full = false;
        for entry in self.waiting.iter().filter(|entry| entry.length == length) {
            if chosen > 0 && rows + entry.rows > self.policy.rows_max {
                full = true;
                break;
            }
            rows += entry.rows;
            chosen += 1;
        }
        full |= rows >= self.policy.rows_max;
        if !full && now_us < ripe_us {
            return Take::WaitUntil(ripe_us);
        }
        let mut batch = Vec::with_capacity(chosen);
        let mut at = 0;
        while batch.len() < chosen {
            match self.waiting[at].length == length {
                true => batch.extend(self.take_at(at)),
                false => at += 1,
            }
        }
        Take::Batch(batch)
    }
}

/// A request that wants to be admitted.
#[derive(Debug)]
pub struct New<T> {
    pub rows: usize,
    pub length: usize,
    pub bytes: usize,
    pub now_us: u64,
    pub deadline_us: u64,
    pub item: T,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn policy(rows_max: usize, delay_us: u64) -> Policy {
        Policy {
            rows_max,
            delay: Duration::from_micros(delay_us),
            requests_max: 4,
            bytes_max: 1000,
            ..Policy::default()
        }
    }

    fn new(rows: usize, length: usize, now_us: u64) -> New<()> {
        New { rows, length, bytes: rows * 10, now_us, deadline_us: now_us + 100, item: () }
    }

    fn ids<T>(take: Take<T>) -> Vec<u64> {
        match take {
            Take::Batch(batch) => batch.into_iter().map(|entry| entry.id).collect(),
            _ => vec![],
        }
    }

    #[test]
    fn without_a_delay_a_free_thread_takes_what_is_there() {
        let mut queue = Queue::new(policy(8, 0));
        queue.admit(new(1, 1, 0)).unwrap();
        queue.admit(new(2, 1, 0)).unwrap();
        assert_eq!(ids(queue.take(0)), [0, 1]);
        assert!(matches!(queue.take(0), Take::Empty));
    }

    #[test]
    fn with_a_delay_a_batch_waits_until_it_is_full_or_its_oldest_has_waited() {
        let mut queue = Queue::new(policy(4, 50));
        queue.admit(new(2, 1, 10)).unwrap();
        assert!(matches!(queue.take(20), Take::WaitUntil(60)));
        queue.admit(new(2, 1, 20)).unwrap();
        assert_eq!(ids(queue.take(20)), [0, 1]);
        queue.admit(new(1, 1, 30)).unwrap();
        assert_eq!(ids(queue.take(80)), [2]);
    }

    #[test]
    fn a_request_that_does_not_fit_begins_the_next_batch() {
        let mut queue = Queue::new(policy(4, 50));
        queue.admit(new(3, 1, 0)).unwrap();
        queue.admit(new(2, 1, 0)).unwrap();
        assert_eq!(ids(queue.take(0)), [0]);
        assert!(matches!(queue.take(0), Take::WaitUntil(50)));
    }

    #[test]
    fn a_request_larger_than_a_batch_goes_alone() {
        let mut queue = Queue::new(policy(4, 50));
        queue.admit(new(9, 1, 0)).unwrap();
        queue.admit(new(1, 1, 0)).unwrap();
        assert_eq!(ids(queue.take(0)), [0]);
    }

    #[test]
    fn rows_of_another_length_wait_for_their_turn() {
        let mut queue = Queue::new(policy(4, 0));
        for length in [5, 6, 5] {
            queue.admit(new(1, length, 0)).unwrap();
        }
        assert_eq!(ids(queue.take(0)), [0, 2]);
        assert_eq!(ids(queue.take(0)), [1]);
    }

    #[test]
    fn a_full_queue_refuses() {
        let mut queue = Queue::new(policy(4, 0));
        (0..4).for_each(|_| assert!(queue.admit(new(1, 1, 0)).is_ok()));
        assert_eq!(queue.admit(new(1, 1, 0)).unwrap_err(), Full::Requests(4));
        let mut queue = Queue::new(policy(4, 0));
        queue.admit(new(99, 1, 0)).unwrap();
        assert_eq!(queue.admit(new(2, 1, 0)).unwrap_err(), Full::Bytes(990));
    }

    #[test]
    fn who_left_or_is_late_is_not_computed_and_leaves_room() {
        let mut queue = Queue::new(policy(4, 0));
        let gone = queue.admit(new(50, 1, 0)).unwrap();
        queue.admit(new(1, 1, 0)).unwrap();
        queue.admit(new(1, 1, 30)).unwrap();
        assert!(queue.remove(gone).is_some() && queue.remove(gone).is_none());
        assert_eq!(queue.expired(100).iter().map(|entry| entry.id).collect::<Vec<_>>(), [1]);
        assert_eq!(ids(queue.take(100)), [2]);
    }

    proptest! {
        /// Whatever comes: a batch is full or single, in order of arrival within its length, each request is taken
        /// once, and the oldest is always among those taken.
        #[test]
        fn every_request_is_taken_once_and_none_is_overtaken(
            requests in prop::collection::vec((1usize..6, 1usize..3, 0u64..40), 1..40), rows_max in 1usize..9,
        ) {
            let many = Policy { requests_max: 100, bytes_max: 1 << 20, ..policy(rows_max, 25) };
            let mut queue = Queue::new(many);
            let mut now_us = 0;
            let mut taken = Vec::new();
            let mut oldest: VecDeque<u64> = VecDeque::new();
            for (rows, length, pause_us) in &requests {
                now_us += pause_us;
                oldest.push_back(queue.admit(new(*rows, *length, now_us)).unwrap());
                while let Take::Batch(batch) = queue.take(now_us) {
                    prop_assert_eq!(batch[0].id, oldest[0]);
                    prop_assert!(batch.len() == 1 || batch.iter().map(|e| e.rows).sum::<usize>() <= rows_max);
                    prop_assert!(batch.windows(2).all(|w| w[0].id < w[1].id && w[0].length == w[1].length));
                    oldest.retain(|id| batch.iter().all(|entry| entry.id != *id));
                    taken.extend(batch.iter().map(|entry| entry.id));
                }
                // Nobody waits past the delay while a thread is free.
                prop_assert!(queue.waiting.iter().all(|entry| now_us < entry.arrived_us + 25));
            }
            while let Take::Batch(batch) = queue.take(now_us + 25) {
                taken.extend(batch.iter().map(|entry| entry.id));
            }
            taken.sort_unstable();
            prop_assert_eq!(taken, (0..requests.len() as u64).collect::<Vec<_>>());
            prop_assert!(queue.is_empty() && queue.bytes == 0);
        }
    }
}
