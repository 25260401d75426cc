//! Frames that wait for one peer: bounded in bytes, in the order they were sent.

use crate::transport::Sent;
use elastic_spec::frame::{Body, Frame};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

pub struct Queue {
    bytes_max: usize,
    inner: Mutex<Inner>,
    filled: Notify,
}

#[derive(Default)]
struct Inner {
    frames: VecDeque<Frame>,
    bytes: usize,
}

/// What a frame is charged beside its payload: header, lists, and its place in the queue.
const FRAME_COST_BYTES: usize = 256;

impl Queue {
    pub fn new(bytes_max: usize) -> Queue {
        Queue { bytes_max, inner: Mutex::default(), filled: Notify::new() }
    }

    /// A frame is taken while the queue is below its bound, so one frame of any size always has a way through.
    pub fn push(&self, frame: Frame) -> Sent {
        let mut inner = self.inner();
        if inner.bytes < self.bytes_max {
            inner.bytes += cost(&frame);
            inner.frames.push_back(frame);
        } else if !is_at(&frame) {
            return Sent::Full;
        } else {
            inner.replace_last_at(frame);
        }
        drop(inner);
        self.filled.notify_one();
        Sent::Queued
    }

    /// Waits until there is something.
    pub async fn wait(&self) {
        while self.is_empty() {
            self.filled.notified().await;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.inner().frames.is_empty()
    }

    pub fn pop(&self) -> Option<Frame> {
        let mut inner = self.inner();
        let frame = inner.frames.pop_front()?;
        inner.bytes -= cost(&frame);
        Some(frame)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no one panics with the queue in hand")
    }
}

impl Inner {
    /// The newest `At` says all that the ones before it said, so one place beyond the bound is enough for it.
    fn replace_last_at(&mut self, frame: Frame) {
        self.bytes += cost(&frame);
        if let Some(last) = self.frames.iter().rposition(is_at) {
            let old = self.frames.remove(last).expect("the position was just found");
            self.bytes -= cost(&old);
        }
        self.frames.push_back(frame);
    }
}

fn is_at(frame: &Frame) -> bool {
    matches!(frame.body, Body::At { .. })
}

fn cost(frame: &Frame) -> usize {
    FRAME_COST_BYTES
        + match &frame.body {
            Body::Contribution { payload, .. } | Body::Reduced { payload, .. } | Body::State { payload, .. } => {
                payload.len()
            }
            Body::At { need, .. } => {
                need.reduced.len() * 4 + need.nodes.iter().map(|(_, n)| 32 + n.len() * 4).sum::<usize>()
            }
            Body::StateWanted { .. } | Body::Gone { .. } => 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use elastic_spec::frame::Need;
    use elastic_spec::{Epoch, Round};

    fn data(bytes: usize) -> Frame {
        Frame {
            epoch: Epoch::default(),
            body: Body::Reduced { round: Round(0), chunk: 0, payload: Bytes::from(vec![0; bytes]) },
        }
    }

    fn at(round: u64) -> Frame {
        let body = Body::At { round: Round(round), published: Round(0), need: Need::default() };
        Frame { epoch: Epoch::default(), body }
    }

    #[test]
    fn a_full_queue_refuses_data_and_keeps_the_newest_at() {
        let queue = Queue::new(1_000);
        assert_eq!(queue.push(data(2_000)), Sent::Queued, "one frame of any size is taken");
        assert_eq!(queue.push(data(1)), Sent::Full);
        for round in 1..100 {
            assert_eq!(queue.push(at(round)), Sent::Queued);
        }
        assert_eq!(queue.pop(), Some(data(2_000)));
        assert_eq!(queue.pop(), Some(at(99)));
        assert_eq!(queue.pop(), None);
        assert_eq!(queue.inner().bytes, 0, "what was charged was given back");
    }

    #[test]
    fn frames_leave_in_the_order_they_came() {
        let queue = Queue::new(1 << 20);
        (0..10).for_each(|round| assert_eq!(queue.push(at(round)), Sent::Queued));
        assert!((0..10).all(|round| queue.pop() == Some(at(round))));
    }
}
