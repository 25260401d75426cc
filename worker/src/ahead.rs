//! Decides which batches are made ahead of the steps that need them, and keeps those that were.
//!
//! A step asks for the units that the step before it asked for, but for changes of the view, so each unit that is asked
//! for is wanted for the next step as well. A batch is a pure function of step and unit: one that was made for nothing
//! costs time, and one that was not made is made when it is asked for. Making them is for `inputs`.

use elastic_spec::Step;
use elastic_spec::batch::Batch;
use elastic_spec::tree::TreeNode;
use std::collections::VecDeque;

/// A unit of a step.
pub type Key = (Step, TreeNode);

/// Batches that lie ready at once, at most.
pub const AHEAD_MAX: usize = 4;

#[derive(Debug, Default)]
pub struct Ahead {
    /// Of the whole job: none is made for a step behind the last.
    steps: u64,
    wanted: VecDeque<Key>,
    making: Option<Key>,
    made: Vec<(Key, Batch)>,
    /// Used ones, whose memory serves again.
    spare: Vec<Batch>,
}

/// What there is of a unit that a step asks for.
#[derive(Debug, PartialEq)]
pub enum Asked {
    Made(Batch),
    /// The other thread is at it.
    BeingMade,
    /// To be made now, into this.
    Missing(Batch),
}

impl Ahead {
    pub fn new(steps: u64) -> Ahead {
        Ahead { steps, ..Ahead::default() }
    }

    /// The step at hand needs a unit. What belongs neither to this step nor to the next is dropped.
    pub fn ask(&mut self, (step, unit): Key) -> Asked {
        let next = Step(step.0 + 1);
        let is_of_use = |key: &Key| key.0 == step || key.0 == next;
        self.wanted.retain(|key| is_of_use(key) && *key != (step, unit));
        let dropped: Vec<Batch> =
            self.made.extract_if(.., |(key, _)| !is_of_use(key)).map(|(_, batch)| batch).collect();
        dropped.into_iter().for_each(|batch| self.give_back(batch));
        if next.0 < self.steps && !self.knows((next, unit)) {
            self.wanted.push_back((next, unit));
        }
        match self.made.iter().position(|(key, _)| *key == (step, unit)) {
            Some(at) => Asked::Made(self.made.remove(at).1),
            None if self.making == Some((step, unit)) => Asked::BeingMade,
            None => Asked::Missing(self.spare.pop().unwrap_or_default()),
        }
    }

    fn knows(&self, key: Key) -> bool {
        self.making == Some(key) || self.wanted.contains(&key) || self.made.iter().any(|(made, _)| *made == key)
    }

    /// What the other thread is to make next, and into what; none while enough lies ready.
    pub fn next(&mut self) -> Option<(Key, Batch)> {
        if self.made.len() >= AHEAD_MAX {
            return None;
        }
        let key = self.wanted.pop_front()?;
        self.making = Some(key);
        Some((key, self.spare.pop().unwrap_or_default()))
    }

    /// The other thread has made what `next` gave it.
    pub fn made(&mut self, batch: Batch) {
        let key = self.making.take().expect("one is made at a time");
        self.made.push((key, batch));
    }

    /// A batch was used.
    pub fn give_back(&mut self, batch: Batch) {
        if self.spare.len() < SPARE_MAX {
            self.spare.push(batch);
        }
    }
}

/// One is in use, and one is being made.
const SPARE_MAX: usize = 2;

/// Batches of a unit in memory at once, at most, when a step has so many units.
pub fn batches_max(units: usize) -> usize {
    units.min(AHEAD_MAX) + SPARE_MAX
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::Shard;

    fn key(step: u64, shard: u16) -> Key {
        (Step(step), TreeNode::leaf(Shard(shard)))
    }

    fn batch(slot: u64) -> Batch {
        Batch { slots: vec![slot], ..Batch::default() }
    }

    /// Everything that can be made now.
    fn make_all(ahead: &mut Ahead) -> Vec<Key> {
        let mut keys = Vec::new();
        while let Some((key, _)) = ahead.next() {
            ahead.made(batch(key.0.0 * 100 + u64::from(key.1.range().start)));
            keys.push(key);
        }
        keys
    }

    #[test]
    fn what_a_step_asks_for_is_made_for_the_next_one() {
        let mut ahead = Ahead::new(10);
        for shard in [3, 5] {
            assert!(matches!(ahead.ask(key(0, shard)), Asked::Missing(_)));
        }
        assert_eq!(make_all(&mut ahead), [key(1, 3), key(1, 5)]);
        assert_eq!(ahead.ask(key(1, 3)), Asked::Made(batch(103)));
        // A unit that came with a change of the view, and one that is asked for twice.
        assert!(matches!(ahead.ask(key(1, 4)), Asked::Missing(_)));
        assert!(matches!(ahead.ask(key(1, 3)), Asked::Missing(_)));
        assert_eq!(ahead.ask(key(1, 5)), Asked::Made(batch(105)));
        assert_eq!(make_all(&mut ahead), [key(2, 3), key(2, 4), key(2, 5)]);
    }

    #[test]
    fn one_that_is_being_made_is_waited_for_and_not_made_twice() {
        let mut ahead = Ahead::new(10);
        ahead.ask(key(0, 1));
        assert_eq!(ahead.next().unwrap().0, key(1, 1));
        assert_eq!(ahead.ask(key(1, 1)), Asked::BeingMade);
        ahead.made(batch(7));
        assert_eq!(ahead.ask(key(1, 1)), Asked::Made(batch(7)));
        assert_eq!(make_all(&mut ahead), [key(2, 1)]);
    }

    #[test]
    fn no_more_lies_ready_than_there_is_room_for() {
        let mut ahead = Ahead::new(10);
        (0..9).for_each(|shard| _ = ahead.ask(key(0, shard)));
        assert_eq!(make_all(&mut ahead).len(), AHEAD_MAX);
        assert_eq!(ahead.next(), None);
        ahead.ask(key(1, 0));
        assert_eq!(ahead.next().unwrap().0, key(1, AHEAD_MAX as u16));
    }

    #[test]
    fn what_lies_behind_or_after_the_end_is_not_made() {
        let mut ahead = Ahead::new(7);
        ahead.ask(key(1, 0));
        ahead.ask(key(1, 1));
        assert_eq!(ahead.next().unwrap().0, key(2, 0));
        // The state of a peer was taken up: what was wanted, and what is made of it, is of no use.
        ahead.ask(key(5, 1));
        ahead.made(batch(1));
        assert_eq!(make_all(&mut ahead), [key(6, 1)]);
        assert_eq!(ahead.ask(key(6, 1)), Asked::Made(batch(601)));
        assert_eq!(make_all(&mut ahead), [], "step 6 is the last of 7");
        assert!(ahead.made.is_empty(), "{:?}", ahead.made);
    }

    #[test]
    fn used_batches_serve_again() {
        let mut ahead = Ahead::new(10);
        let Asked::Missing(mut used) = ahead.ask(key(0, 0)) else { panic!("nothing is made yet") };
        used.features.reserve_exact(1000);
        let room = used.features.as_ptr();
        ahead.give_back(used);
        assert_eq!(ahead.next().unwrap().1.features.as_ptr(), room);
    }
}
