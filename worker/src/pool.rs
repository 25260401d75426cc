//! Sums the leaves under one tree node on a few threads; the result does not depend on how many.
//!
//! Shards are handed out one by one. Whoever finishes a node looks whether its sibling is there: if so it
//! adds the two and goes on upwards, if not it leaves the value and takes the next shard. So every sum is
//! the tree's, and a thread holds one value while at most one a level waits. Which leaf costs what, and
//! what a leaf is, is the job's business ([`crate::job`]).

use crate::fail;
use crate::job::Job;
use crate::state::State;
use elastic_spec::layout::{Tail, canonical};
use elastic_spec::tree::TreeNode;
use elastic_spec::{Round, Shard};
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, RwLock};

/// What the training thread and those that help it share.
pub struct Shared {
    pub job: Job,
    pub state: RwLock<State>,
    /// Rises with each leaf: the hang watchdog looks at it.
    pub progress: AtomicU64,
    spare: Mutex<Vec<Vec<f32>>>,
}

/// The value of a tree node.
pub struct Sum {
    pub floats: Vec<f32>,
    pub tail: Tail,
}

/// The training thread's own seat and the threads that help it.
pub struct Pool {
    pub shared: Arc<Shared>,
    scratch: Box<dyn Any + Send>,
    helpers: Vec<SyncSender<Arc<Unit>>>,
}

struct Unit {
    round: Round,
    node: TreeNode,
    next: AtomicU32,
    held: Mutex<BTreeMap<TreeNode, Sum>>,
    /// None while it runs; then the sum, or what went wrong.
    end: Mutex<Option<Result<Sum, String>>>,
    ended: Condvar,
}

impl Shared {
    pub fn new(job: Job, state: State) -> Arc<Shared> {
        Arc::new(Shared { job, state: RwLock::new(state), progress: AtomicU64::new(0), spare: Mutex::new(Vec::new()) })
    }

    /// A vector of this length whose contents are to be overwritten.
    pub fn vector(&self, floats: usize) -> Vec<f32> {
        let mut spare = self.spare.lock().expect("no one panics with this lock");
        match spare.iter().position(|v| v.len() == floats) {
            Some(i) => spare.swap_remove(i),
            None => vec![0.0; floats],
        }
    }

    pub fn give_back(&self, vector: Vec<f32>) {
        let mut spare = self.spare.lock().expect("no one panics with this lock");
        if !vector.is_empty() && spare.len() < SPARE_MAX {
            spare.push(vector);
        }
    }
}

impl Pool {
    pub fn new(shared: Arc<Shared>, threads: usize) -> Pool {
        let helpers = (1..threads.max(1)).map(|i| helper(i, shared.clone())).collect();
        Pool { scratch: shared.job.network.new_scratch(1), shared, helpers }
    }

    /// The sum of the leaves of `round` under `node`, from the state that is held.
    pub fn sum(&mut self, round: Round, node: TreeNode) -> Sum {
        let unit = Arc::new(Unit {
            round,
            node,
            next: AtomicU32::new(node.range().start.into()),
            held: Mutex::default(),
            end: Mutex::default(),
            ended: Condvar::new(),
        });
        let shards = node.range().len();
        for helper in self.helpers.iter().take(shards - 1) {
            helper.send(unit.clone()).expect("a helper lives as long as the pool");
        }
        unit.work(&self.shared, self.scratch.as_mut());
        let mut end = unit.end.lock().expect("no one panics with this lock");
        loop {
            match end.take() {
                Some(Ok(sum)) => return sum,
                Some(Err(what)) => panic!("{what}"),
                None => end = unit.ended.wait(end).expect("no one panics with this lock"),
            }
        }
    }
}

fn helper(i: usize, shared: Arc<Shared>) -> SyncSender<Arc<Unit>> {
    let (units, inbox): (_, Receiver<Arc<Unit>>) = sync_channel(1);
    let run = move || {
        let mut scratch = shared.job.network.new_scratch(1);
        for unit in inbox {
            let work = catch_unwind(AssertUnwindSafe(|| unit.work(&shared, scratch.as_mut())));
            if let Err(panic) = work {
                unit.finish(Err(crate::fault::words_of(&*panic)));
            }
        }
    };
    std::thread::Builder::new().name(format!("compute-{i}")).spawn(run).expect("the system starts a thread");
    units
}

impl Unit {
    fn work(&self, shared: &Shared, scratch: &mut (dyn Any + Send)) {
        let state = shared.state.read().expect("no one panics while writing the state");
        let layout = shared.job.layout_of(self.round);
        loop {
            let shard = self.next.fetch_add(1, Ordering::Relaxed);
            if shard >= self.node.range().end.into() {
                return;
            }
            let shard = Shard(shard as u16);
            let mut floats = shared.vector(layout.floats);
            let tail = shared.job.leaf(scratch, &state.floats, self.round, shard, &mut floats);
            shared.progress.fetch_add(1, Ordering::Relaxed);
            fail::point_in_training("after-leaf");
            self.climb(shared, TreeNode::leaf(shard), Sum { floats, tail });
        }
    }

    /// Adds `value` to its sibling, and the sum to its sibling, as far as siblings are there.
    fn climb(&self, shared: &Shared, mut at: TreeNode, mut value: Sum) {
        while at != self.node {
            let sibling = TreeNode { level: at.level, index: at.index ^ 1 };
            let mut held = self.held.lock().expect("no one panics with this lock");
            let Some(other) = held.remove(&sibling) else {
                held.insert(at, value);
                return;
            };
            drop(held);
            let (left, right) = if sibling.index < at.index { (other, value) } else { (value, other) };
            value = add(left, &right);
            shared.give_back(right.floats);
            at = TreeNode { level: at.level + 1, index: at.index / 2 };
        }
        self.finish(Ok(value));
    }

    fn finish(&self, end: Result<Sum, String>) {
        *self.end.lock().expect("no one panics with this lock") = Some(end);
        self.ended.notify_all();
    }
}

/// The same sums as [`elastic_spec::layout::Layout::add`], on vectors.
fn add(mut left: Sum, right: &Sum) -> Sum {
    for (a, b) in left.floats.iter_mut().zip(&right.floats) {
        *a = canonical(*a + *b);
    }
    Sum { floats: left.floats, tail: left.tail.add(right.tail) }
}

/// Vectors kept for the next leaves: one a thread and one a level are in use at once.
const SPARE_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::layout::Layout;

    #[test]
    fn sums_of_vectors_have_the_bits_of_sums_of_chunks() {
        let layout = Layout::new(5);
        let left = vec![1e30, -0.0, f32::from_bits(0xffc1_2345), 0.1, f32::INFINITY];
        let right = vec![-1.0, 0.0, 1.0, 0.2, f32::NEG_INFINITY];
        let tail = Tail { loss: 0.1, count: 3, correct: 1 };
        let chunks = [&left, &right].map(|v| layout.cut(v, tail).remove(0));
        let sum = add(Sum { floats: left, tail }, &Sum { floats: right, tail });
        assert_eq!(layout.cut(&sum.floats, sum.tail)[0], layout.add(0, &chunks[0], &chunks[1]));
    }
}
