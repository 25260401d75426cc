//! Sums the leaves under one tree node, unit by unit; the result depends neither on units nor on threads.
//!
//! A unit is a full subtree whose leaves the network computes and adds in one call, with all threads at work inside.
//! Larger nodes are the tree's sums of their units: one vector a level waits. What a leaf is, is the job's business
//! ([`crate::job`]).

use crate::fail;
use crate::inputs::Inputs;
use crate::job::{Job, Newest};
use crate::not_finite;
use crate::state::State;
use elastic_spec::Round;
use elastic_spec::job::schedule::Kind;
use elastic_spec::layout::{Tail, canonical};
use elastic_spec::tree::TreeNode;
use std::any::Any;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

/// What the training thread and those that ask it share.
pub struct Shared {
    pub job: Job,
    pub inputs: Inputs,
    pub state: RwLock<State>,
    /// Rises with each unit: the hang watchdog looks at it.
    pub progress: AtomicU64,
    spare: Mutex<Vec<Vec<f32>>>,
}

/// The value of a tree node.
pub struct Sum {
    pub floats: Vec<f32>,
    pub tail: Tail,
}

/// The training thread's seat: what the network works with.
pub struct Pool {
    pub shared: Arc<Shared>,
    scratch: Box<dyn Any + Send>,
    /// The network has a newer state than the host's vectors are.
    is_away: bool,
    /// The average of the weights that the latest validation evaluates.
    average: Option<(Round, Vec<f32>)>,
}

impl Shared {
    pub fn new(job: Job, state: State) -> Arc<Shared> {
        Arc::new(Shared {
            inputs: Inputs::new(job.schedule.steps),
            job,
            state: RwLock::new(state),
            progress: AtomicU64::new(0),
            spare: Mutex::new(Vec::new()),
        })
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
    /// A seat with `threads`, the caller's among them.
    pub fn new(shared: Arc<Shared>, threads: usize) -> Pool {
        Pool { scratch: shared.job.network.new_scratch(threads.max(1)), shared, is_away: false, average: None }
    }

    /// The sum of the leaves of `round` under `node`, from the state that is held.
    pub fn sum(&mut self, round: Round, node: TreeNode) -> Sum {
        let shared = self.shared.clone();
        if shared.job.spec.train.ema.is_some() && !matches!(shared.job.schedule.kind(round), Kind::Train(_)) {
            self.bring_home();
        }
        let state = shared.state.read().expect("no one panics while writing the state");
        // The state is a function of the round.
        shared.job.network.hold(self.scratch.as_mut(), Some(round.0));
        if let Kind::Train(_) = shared.job.schedule.kind(round) {
            return self.under(round, node, &state.floats);
        }
        let kept = self.average.take().filter(|(of, _)| *of == round).map(|(_, average)| average);
        match kept.or_else(|| shared.job.average(&state)) {
            None => self.under(round, node, &state.floats),
            Some(average) => {
                // It is not the state of the round, which the network may have.
                shared.job.network.hold(self.scratch.as_mut(), None);
                let sum = self.under(round, node, &average);
                self.average = Some((round, average));
                sum
            }
        }
    }

    /// Makes the host's state current, before anything but the network reads or replaces it.
    pub fn bring_home(&mut self) {
        if self.is_away {
            let shared = self.shared.clone();
            self.bring(&mut shared.state.write().expect("no one panics while writing the state"));
        }
    }

    fn bring(&mut self, state: &mut State) {
        if std::mem::take(&mut self.is_away) {
            self.shared.job.network.read_back(self.scratch.as_mut(), &mut state.floats, &mut state.moments);
        }
    }

    /// Makes the state of the next round. The error is what ends the job, with where it began.
    pub fn apply(&mut self, state: &mut State, reduced: &mut [f32], tail: Tail) -> Result<(), String> {
        let shared = self.shared.clone();
        let before = state.round.0;
        // Whether or not this member computed anything of the round.
        shared.job.network.hold(self.scratch.as_mut(), Some(before));
        let found = match shared.job.apply(self.scratch.as_mut(), state, reduced, tail) {
            Ok(newest) => {
                assert!(!(self.is_away && newest == Newest::Here), "a state that is away is moved where it is");
                self.is_away = newest == Newest::OnDevice || (newest == Newest::AsBefore && self.is_away);
                if newest == Newest::AsBefore {
                    shared.job.network.carry(self.scratch.as_mut(), before, state.round.0);
                }
                return Ok(());
            }
            Err(found) => found,
        };
        self.bring(state);
        let alive = || _ = shared.progress.fetch_add(1, Ordering::Relaxed);
        let origin = not_finite::origin(&shared.job, self.scratch.as_mut(), &state.floats, found.step, alive);
        Err(found.told(&origin))
    }

    fn under(&mut self, round: Round, node: TreeNode, state: &[f32]) -> Sum {
        let shared = self.shared.clone();
        match node.children() {
            Some((left, right)) if node.range().len() > shared.job.unit_max() => {
                let left = self.under(round, left, state);
                let right = self.under(round, right, state);
                let sum = add(left, &right);
                shared.give_back(right.floats);
                sum
            }
            _ => {
                let mut floats = shared.vector(shared.job.layout_of(round).floats);
                let tail = shared.job.sum(self.scratch.as_mut(), state, (round, node), &shared.inputs, &mut floats);
                shared.progress.fetch_add(1, Ordering::Relaxed);
                fail::point_in_training("after-leaf");
                Sum { floats, tail }
            }
        }
    }
}

/// The same sums as [`elastic_spec::layout::Layout::add`], on vectors.
fn add(mut left: Sum, right: &Sum) -> Sum {
    for (a, b) in left.floats.iter_mut().zip(&right.floats) {
        *a = canonical(*a + *b);
    }
    Sum { floats: left.floats, tail: left.tail.add(right.tail) }
}

/// Vectors kept for the next units: one a level is in use at once.
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
