//! Runs a plan, one step after the other, on one thread and out of one arena.
//!
//! No allocation happens in a step: the arena is made once, kernels' own room only grows. The result
//! depends on what is bound alone, never on what a scratch was used for before.

use crate::ops::{IO_MAX, Io, Key, Work};
use crate::plan::{Place, Plan, Step};
use crate::real::Real;
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
pub struct Scratch<F> {
    pub arena: Vec<F>,
    work: Work<F>,
}

impl<F: Real> Scratch<F> {
    /// For runs on `threads`, the caller's among them. Bits do not depend on how many.
    pub fn new(threads: usize) -> Scratch<F> {
        Scratch { arena: Vec::new(), work: Work::new(threads) }
    }
}

pub fn run<F: Real>(plan: &Plan, scratch: &mut Scratch<F>, bound: &Bound<'_, F>, out: &mut [F]) {
    let _ieee = crate::float_mode::Ieee::enter();
    if scratch.arena.len() < plan.arena {
        scratch.arena.resize(plan.arena, F::ZERO);
    }
    for step in &plan.steps {
        run_step(step, scratch, bound, out);
    }
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
            Place::Out(_) => unreachable!("the planner copies an output that others read"),
        }
    }
    let (types, out_types) = (&step.types[..], &step.out_types[..]);
    step.op.run(Io { x, ints, y, types, out_types, key: &bound.key, path: &step.path, work: &mut scratch.work });
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
