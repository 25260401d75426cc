//! Adds up the parts of owned chunks along the tree, beside the training thread.
//!
//! Small sums are done where they are asked for: handing one over costs two thread switches, about what
//! adding 256 KiB costs. Others go to a few threads, the same chunk always to the same one.

use crate::fault::Alarm;
use bytes::Bytes;
use elastic_collectives::reduce;
use elastic_member::Event;
use elastic_spec::Round;
use elastic_spec::layout::Layout;
use elastic_spec::tree::TreeNode;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use tokio::sync::mpsc::Sender;

/// What [`elastic_member::Effect::Sum`] asks for.
#[derive(Debug)]
pub struct Sum {
    pub round: Round,
    pub chunk: u32,
    pub layout: Layout,
    pub parts: Vec<(TreeNode, Bytes)>,
}

pub struct Sums {
    threads: Vec<SyncSender<Sum>>,
}

impl Sums {
    pub fn start(threads: usize, shards: u16, alarm: &Alarm, events: &Sender<Event>) -> Sums {
        let thread = |i| {
            let (sums, inbox) = sync_channel::<Sum>(WAITING_MAX);
            let events = events.clone();
            let run = move || {
                for sum in inbox {
                    if events.blocking_send(sum.add_up(shards)).is_err() {
                        return;
                    }
                }
            };
            alarm.thread(&format!("sum-{i}"), run);
            sums
        };
        Sums { threads: (0..threads.max(1)).map(thread).collect() }
    }

    /// The answer, if it was quicker to add than to ask.
    pub fn add_up(&self, sum: Sum, shards: u16) -> Option<Event> {
        let bytes: usize = sum.parts.iter().map(|(_, part)| part.len()).sum();
        if sum.parts.len() == 1 || bytes <= SMALL_BYTES {
            return Some(sum.add_up(shards));
        }
        let thread = &self.threads[sum.chunk as usize % self.threads.len()];
        match thread.try_send(sum) {
            Ok(()) => None,
            // So far behind that this thread may as well help.
            Err(TrySendError::Full(sum) | TrySendError::Disconnected(sum)) => Some(sum.add_up(shards)),
        }
    }
}

impl Sum {
    fn add_up(self, shards: u16) -> Event {
        let Sum { round, chunk, layout, parts } = self;
        let payload = reduce::sum(layout, chunk, shards, &parts).expect("the parts cover the tree");
        Event::Summed { round, chunk, payload }
    }
}

const SMALL_BYTES: usize = 256 << 10;
/// Chunks of a few rounds.
const WAITING_MAX: usize = 128;
