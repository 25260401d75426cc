//! Runs a plan, one step after the other, out of one arena; kernels have a team of threads.
//!
//! No allocation happens in a step: the arena is made once, kernels' own room only grows. The result
//! depends on what is bound alone, never on what a scratch was used for before.

use crate::graph::{OneByOne, Part};
use crate::leaves::climb;
use crate::ops::{IO_MAX, Io, Key, Op, Work};
use crate::plan::{Place, Plan, Step};
use crate::real::{Real, Single};
use crate::team::Team;
use std::ops::Range;

/// What a run reads.
#[derive(Clone, Copy, Debug)]
pub struct Bound<'a, F> {
    pub state: &'a [F],
    pub features: &'a [F],
    pub tokens: &'a [i32],
    pub targets: &'a [i32],
    pub key: Key<'a>,
}

/// The memory and the threads of runs, one after the other; grows to the largest plan it served.
#[derive(Debug)]
pub struct Scratch<F: Real> {
    pub arena: Vec<F>,
    work: Work<F>,
    /// Left siblings of the outputs of an op that runs one shard after the other.
    sums: [Vec<F>; IO_MAX],
}

impl<F: Real> Scratch<F> {
    /// For runs on `threads`, the caller's among them. Bits do not depend on how many.
    pub fn new(threads: usize) -> Scratch<F> {
        Scratch { arena: Vec::new(), work: Work::new(threads), sums: std::array::from_fn(|_| Vec::new()) }
    }

    pub fn team(&self) -> &Team {
        &self.work.team
    }
}

pub fn run<F: Real>(plan: &Plan, scratch: &mut Scratch<F>, bound: &Bound<'_, F>, out: &mut [F]) {
    let _ieee = crate::float_mode::Ieee::enter();
    crate::memory::grow(&mut scratch.arena, plan.arena);
    for step in &plan.steps {
        run_step(step, scratch, bound, out);
    }
    scratch.work.level();
}

/// Sees each step of a plan as it runs. Looking changes no bit.
pub trait Watch {
    fn before(&mut self, at: At<'_>) {
        let _ = at;
    }

    /// What the step has written, in the order of its places.
    fn after(&mut self, at: At<'_>, written: &mut dyn Iterator<Item = &[f32]>);
}

/// One step of a plan.
#[derive(Clone, Copy, Debug)]
pub struct At<'a> {
    pub index: usize,
    pub step: &'a Step,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Forward,
    Backward,
}

impl Phase {
    pub fn word(self) -> &'static str {
        match self {
            Phase::Forward => "forward",
            Phase::Backward => "backward",
        }
    }
}

/// [`run`], and shows each step to `watch`.
pub fn run_seen<F: Single>(
    plan: &Plan,
    scratch: &mut Scratch<F>,
    bound: &Bound<'_, F>,
    out: &mut [F],
    watch: &mut dyn Watch,
) {
    let _ieee = crate::float_mode::Ieee::enter();
    crate::memory::grow(&mut scratch.arena, plan.arena);
    let mut phase = Phase::Forward;
    for (index, step) in plan.steps.iter().enumerate() {
        // The backward pass begins where the gradients of the losses are set.
        if matches!(step.op, Op::Seed(_)) {
            phase = Phase::Backward;
        }
        let at = At { index, step, phase };
        watch.before(at);
        run_step(step, scratch, bound, out);
        let mut written = step.outputs.iter().map(|(_, place)| match place {
            Place::Arena(range) => F::floats(&scratch.arena[range.clone()]),
            Place::Out(range) => F::floats(&out[range.clone()]),
            other => unreachable!("a node writes to the arena or the output, not {other:?}"),
        });
        watch.after(at, &mut written);
    }
    scratch.work.level();
}

fn run_step<F: Real>(step: &Step, scratch: &mut Scratch<F>, bound: &Bound<'_, F>, out: &mut [F]) {
    let mut y: [&mut [F]; IO_MAX] = std::array::from_fn(|_| &mut [][..]);
    let in_arena = step.outputs.iter().filter_map(|(slot, place)| match place {
        Place::Arena(range) => Some((*slot, range)),
        _ => None,
    });
    let in_out = step.outputs.iter().filter_map(|(slot, place)| match place {
        Place::Out(range) => Some((*slot, range)),
        _ => None,
    });
    let rest = lend(&mut scratch.arena, in_arena, &mut y);
    lend(out, in_out, &mut y);
    let mut x: [&[F]; IO_MAX] = [&[]; IO_MAX];
    let mut ints: [&[i32]; IO_MAX] = [&[]; IO_MAX];
    for (slot, place) in step.inputs.iter().enumerate() {
        match place {
            Place::Arena(range) => x[slot] = find(&rest, range),
            Place::State(range) => x[slot] = &bound.state[range.clone()],
            Place::Features => x[slot] = bound.features,
            Place::Tokens => ints[slot] = bound.tokens,
            Place::Targets => ints[slot] = bound.targets,
            Place::Integers(range) => ints[slot] = &bound.tokens[range.clone()],
            Place::Out(_) => unreachable!("the planner copies an output that others read"),
        }
    }
    let (types, out_types) = (&step.types[..], &step.out_types[..]);
    let (key, path, work) = (&bound.key, &step.path[..], &mut scratch.work);
    let io = Io { x, ints, y, types, out_types, key, path, work };
    match &step.one_by_one {
        None => step.op.run(io),
        Some(one) => run_one_by_one(&step.op, one, io, &mut scratch.sums),
    }
}

/// Runs an op on each shard's part of the values, one after the other, and adds the sums' leaves along the tree.
fn run_one_by_one<F: Real>(op: &Op, one: &OneByOne, io: Io<'_, F>, sums: &mut [Vec<F>; IO_MAX]) {
    let Io { x, ints, mut y, key, path, work, .. } = io;
    let shards = one.shards;
    let samples = key.slots.len() / shards;
    for shard in 0..shards {
        let is_own = |slot: usize| one.x.get(slot) == Some(&true);
        let x = std::array::from_fn(|i| if is_own(i) { part(x[i], shards, shard) } else { x[i] });
        let ints = std::array::from_fn(|i| if is_own(i) { part(ints[i], shards, shard) } else { ints[i] });
        let mut slot = 0;
        let own = y.each_mut().map(|y| {
            slot += 1;
            match one.y.get(slot - 1) {
                Some(Part::OneBehindTheOther) => {
                    let len = y.len() / shards;
                    &mut y[shard * len..][..len]
                }
                _ => &mut y[..],
            }
        });
        let key = Key { shards: 1, slots: &key.slots[shard * samples..][..samples], ..*key };
        let (types, out_types) = (&one.types[..], &one.out_types[..]);
        op.run(Io { x, ints, y: own, types, out_types, key: &key, path, work });
        for ((y, _), sums) in y.iter_mut().zip(&one.y).zip(sums.iter_mut()).filter(|((_, y), _)| **y == Part::Sum) {
            climb(shards, shard, y, sums);
        }
    }
}

fn part<T>(whole: &[T], shards: usize, shard: usize) -> &[T] {
    let len = whole.len() / shards;
    &whole[shard * len..][..len]
}

/// The pieces of a buffer that are not lent for writing, with their starts.
type Pieces<'a, F> = [(usize, &'a [F]); IO_MAX + 1];

/// Lends ascending disjoint ranges for writing, and the pieces between them for reading.
fn lend<'a, 'r, F>(
    buffer: &'a mut [F],
    ranges: impl Iterator<Item = (usize, &'r Range<usize>)>,
    y: &mut [&'a mut [F]; IO_MAX],
) -> Pieces<'a, F> {
    let mut pieces: Pieces<'a, F> = [(0, &[]); IO_MAX + 1];
    let (mut rest, mut start, mut count) = (buffer, 0, 0);
    for (slot, range) in ranges {
        let (before, tail) = rest.split_at_mut(range.start - start);
        let (mine, tail) = tail.split_at_mut(range.len());
        pieces[count] = (start, before);
        y[slot] = mine;
        (rest, start, count) = (tail, range.end, count + 1);
    }
    pieces[count] = (start, rest);
    pieces
}

fn find<'a, F>(pieces: &Pieces<'a, F>, range: &Range<usize>) -> &'a [F] {
    let piece = pieces.iter().find(|(start, data)| *start <= range.start && range.end <= start + data.len());
    let (start, data) = piece.expect("the planner keeps inputs apart from outputs");
    &data[range.start - start..range.end - start]
}
