//! Decides what of a graph runs and where its values lie: dead nodes dropped, one arena by liveness.
//!
//! A value lies in the arena, in the caller's state or output vector, or in the batch. Reshapes share their
//! input's memory. Gradients are written straight into the output vector where nobody else reads them.
//! `exec` runs the plan; the plan itself never changes. Every plan is proved to keep values apart before it is used.

mod check;

use crate::graph::{Graph, OneByOne, Source, Type, Value};
use crate::ops::{Copy, IO_MAX, Op};
use std::ops::Range;

/// Where a value lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Arena(Range<usize>),
    State(Range<usize>),
    Out(Range<usize>),
    Features,
    Tokens,
    Targets,
    /// Of the tokens.
    Integers(Range<usize>),
}

#[derive(Clone, Debug)]
pub struct Step {
    pub op: Op,
    pub path: String,
    pub inputs: Vec<Place>,
    pub types: Vec<Type>,
    /// Sorted by place: arena ranges, then output ranges, each ascending. With the kernel's own index.
    pub outputs: Vec<(usize, Place)>,
    pub out_types: Vec<Type>,
    /// Run once a shard, with its part of the places.
    pub one_by_one: Option<OneByOne>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// Floats of the arena.
    pub arena: usize,
    /// Floats of the output vector that are written; the rest is the caller's to fill.
    pub written: Vec<Range<usize>>,
    kept: Vec<(Value, Range<usize>)>,
}

/// What a plan is to compute.
#[derive(Clone, Debug)]
pub struct Goal<'a> {
    /// Offset of each of the graph's states in the state vector.
    pub states: &'a [usize],
    /// Values to write into the output vector, and where.
    pub out: &'a [(Value, usize)],
    /// Values to find in the arena afterwards.
    pub keep: &'a [Value],
}

impl Plan {
    pub fn new(graph: &Graph, goal: &Goal<'_>) -> Plan {
        let mut graph = graph.clone();
        let (out, keep) = second_places(&mut graph, goal);
        let names = Names::of(&graph);
        let live = live_nodes(&graph, &names, &goals(&out, &keep));
        let mut places: Vec<Option<Place>> = (0..graph.values.len()).map(|v| given(&graph, goal, Value(v))).collect();
        for (value, at) in &out {
            places[names.root(*value).0] = Some(Place::Out(*at..at + graph.ty(*value).len()));
        }
        let last = last_uses(&graph, &names, &live, &keep);
        let mut arena = Arena::default();
        for &node in &live {
            for value in &graph.nodes[node].outputs {
                if places[value.0].is_none() {
                    places[value.0] = Some(Place::Arena(arena.take(graph.ty(*value).len())));
                }
            }
            for value in &last[node] {
                if let Some(Place::Arena(range)) = &places[value.0] {
                    arena.give(range.clone());
                }
            }
        }
        let place = |v: Value| places[names.root(v).0].clone().expect("a live value has its place");
        let steps: Vec<Step> = live.iter().map(|node| step(&graph, *node, &place)).collect();
        let kept = goal.keep.iter().zip(&keep).map(|(asked, v)| match place(*v) {
            Place::Arena(range) => (*asked, range),
            other => unreachable!("a kept value was copied into the arena, not {other:?}"),
        });
        let kept: Vec<(Value, Range<usize>)> = kept.collect();
        let kept_places: Vec<_> = kept.iter().map(|(_, range)| range.clone()).collect();
        if let Err(mistake) = check::check(&steps, arena.size, &kept_places) {
            panic!("a plan keeps values apart: {mistake}");
        }
        let mut written: Vec<_> = out.iter().map(|(v, at)| *at..at + graph.ty(*v).len()).collect();
        written.sort_by_key(|range| range.start);
        Plan { steps, arena: arena.size, written, kept }
    }

    /// A kept value's elements, after a run.
    pub fn kept<'a, F>(&self, arena: &'a [F], value: Value) -> &'a [F] {
        &arena[self.kept_range(value)]
    }

    /// Where a kept value's elements lie in the arena.
    pub fn kept_range(&self, value: Value) -> Range<usize> {
        let (_, range) = self.kept.iter().find(|(v, _)| *v == value).expect("the value was to be kept");
        range.clone()
    }
}

/// Reshapes are second names; every other value is its own root.
struct Names(Vec<Value>);

impl Names {
    fn of(graph: &Graph) -> Names {
        let mut roots: Vec<Value> = (0..graph.values.len()).map(Value).collect();
        for node in &graph.nodes {
            if let Op::Reshape(_) = node.op {
                roots[node.outputs[0].0] = roots[node.inputs[0].0];
            }
        }
        Names(roots)
    }

    fn root(&self, value: Value) -> Value {
        self.0[value.0]
    }
}

fn goals(out: &[(Value, usize)], keep: &[Value]) -> Vec<Value> {
    out.iter().map(|(v, _)| *v).chain(keep.iter().copied()).collect()
}

/// A goal that others read, that is wanted twice, or that no node makes gets a copy of its own.
fn second_places(graph: &mut Graph, goal: &Goal<'_>) -> (Vec<(Value, usize)>, Vec<Value>) {
    let names = Names::of(graph);
    let mut taken = vec![false; graph.values.len()];
    for node in live_nodes(graph, &names, &goals(goal.out, goal.keep)) {
        graph.nodes[node].inputs.iter().for_each(|v| taken[names.root(*v).0] = true);
    }
    let mut own = |graph: &mut Graph, value: Value, others_may_read: bool| {
        let root = names.root(value);
        let is_made = matches!(graph.source(root), Source::Node { .. });
        if is_made && (others_may_read || !taken[root.0]) {
            taken[root.0] = true;
            return value;
        }
        graph.apply1(Op::Copy(Copy), "plan", &[value]).expect("any value can be copied")
    };
    let out: Vec<_> = goal.out.iter().map(|(v, at)| (own(graph, *v, false), *at)).collect();
    let in_out: Vec<Value> = out.iter().map(|(v, _)| names_root(&names, *v)).collect();
    let keep = goal.keep.iter().map(|v| own(graph, *v, !in_out.contains(&names.root(*v)))).collect();
    (out, keep)
}

/// Roots of values made after the names were taken are themselves.
fn names_root(names: &Names, value: Value) -> Value {
    names.0.get(value.0).copied().unwrap_or(value)
}

/// The nodes that `wanted` needs, in order, without the reshapes.
fn live_nodes(graph: &Graph, names: &Names, wanted: &[Value]) -> Vec<usize> {
    let mut needed = vec![false; graph.values.len()];
    wanted.iter().for_each(|v| needed[names.root(*v).0] = true);
    let mut live = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        if matches!(node.op, Op::Reshape(_)) || !node.outputs.iter().any(|v| needed[v.0]) {
            continue;
        }
        node.inputs.iter().for_each(|v| needed[names.root(*v).0] = true);
        live.push(at);
    }
    live.reverse();
    live
}

/// For each node, the values that nobody reads after it.
fn last_uses(graph: &Graph, names: &Names, live: &[usize], keep: &[Value]) -> Vec<Vec<Value>> {
    let mut last = vec![Vec::new(); graph.nodes.len()];
    let mut seen = vec![false; graph.values.len()];
    keep.iter().for_each(|v| seen[names.root(*v).0] = true);
    for &at in live.iter().rev() {
        let node = &graph.nodes[at];
        for value in node.inputs.iter().chain(&node.outputs) {
            let root = names.root(*value);
            if !std::mem::replace(&mut seen[root.0], true) {
                last[at].push(root);
            }
        }
    }
    last
}

/// The place of a value that no node makes.
fn given(graph: &Graph, goal: &Goal<'_>, value: Value) -> Option<Place> {
    match graph.source(value) {
        Source::Features => Some(Place::Features),
        Source::Tokens => Some(Place::Tokens),
        Source::Targets => Some(Place::Targets),
        Source::Integers(at) => Some(Place::Integers(at..at + graph.ty(value).len())),
        Source::State(index) => {
            let start = goal.states[index];
            Some(Place::State(start..start + graph.ty(value).len()))
        }
        Source::Node { .. } => None,
    }
}

fn step(graph: &Graph, node: usize, place: &impl Fn(Value) -> Place) -> Step {
    let node = &graph.nodes[node];
    assert!(node.inputs.len() <= IO_MAX && node.outputs.len() <= IO_MAX, "{} fits a kernel's slots", node.op.name());
    let types = |values: &[Value]| values.iter().map(|v| graph.ty(*v).clone()).collect();
    let mut outputs: Vec<(usize, Place)> = node.outputs.iter().map(|v| place(*v)).enumerate().collect();
    outputs.sort_by_key(|(_, place)| match place {
        Place::Arena(range) => (0, range.start, range.end),
        Place::Out(range) => (1, range.start, range.end),
        other => unreachable!("a node writes to the arena or the output, not {other:?}"),
    });
    Step {
        op: node.op.clone(),
        path: node.path.clone(),
        inputs: node.inputs.iter().map(|v| place(*v)).collect(),
        types: types(&node.inputs),
        outputs,
        out_types: types(&node.outputs),
        one_by_one: node.one_by_one.clone(),
    }
}

/// Gives out ranges, best fit first; ranges given back melt with their neighbours.
#[derive(Debug, Default)]
struct Arena {
    size: usize,
    /// Free ranges by start, none touching another.
    free: Vec<Range<usize>>,
}

/// A cache line: neighbours in the arena never share one.
const ALIGN: usize = 16;

impl Arena {
    fn take(&mut self, len: usize) -> Range<usize> {
        let room = len.next_multiple_of(ALIGN).max(ALIGN);
        let best = (0..self.free.len()).filter(|i| self.free[*i].len() >= room).min_by_key(|i| self.free[*i].len());
        let Some(best) = best else {
            self.size += room;
            return self.size - room..self.size - room + len;
        };
        let start = self.free[best].start;
        self.free[best].start += room;
        if self.free[best].is_empty() {
            self.free.remove(best);
        }
        start..start + len
    }

    fn give(&mut self, range: Range<usize>) {
        let end = range.start + range.len().next_multiple_of(ALIGN).max(ALIGN);
        let at = self.free.partition_point(|free| free.start < range.start);
        self.free.insert(at, range.start..end);
        if at + 1 < self.free.len() && self.free[at].end == self.free[at + 1].start {
            self.free[at].end = self.free.remove(at + 1).end;
        }
        if at > 0 && self.free[at - 1].end == self.free[at].start {
            self.free[at - 1].end = self.free.remove(at).end;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ranges_in_use_never_overlap(sizes in prop::collection::vec((0usize..200, any::<bool>()), 1..60)) {
            let mut arena = Arena::default();
            let mut used: Vec<Range<usize>> = Vec::new();
            for (size, is_taken) in sizes {
                if is_taken || used.is_empty() {
                    let new = arena.take(size);
                    prop_assert!(new.end <= arena.size);
                    prop_assert!(used.iter().all(|old| new.end <= old.start || old.end <= new.start || new.is_empty()));
                    used.push(new);
                } else {
                    arena.give(used.swap_remove(size % used.len()));
                }
            }
            used.drain(..).for_each(|range| arena.give(range));
            let whole = 0..arena.size;
            prop_assert!(whole.is_empty() || arena.free.iter().eq([&whole]));
        }
    }
}
