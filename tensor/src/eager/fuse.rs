//! Makes one loop of elementwise nodes that follow one another, and drops nodes that nothing wanted needs.
//!
//! A group is open while nodes of its shape join it. A node that is not elementwise and needs nothing of the group goes
//! before it; one that needs something closes it. So nodes only move ahead of what they do not depend on.

use crate::graph::{Graph, Node, Source, Value};
use crate::ops::{Each, FUSED_OUTPUTS_MAX, FUSED_STEPS_MAX, Fused, FusedInput, FusedStep, IO_MAX, Op};

/// The graph with fewer loops, and the wanted values in it.
pub(super) fn fused(graph: &Graph, wanted: &[Value]) -> (Graph, Vec<Value>) {
    let live = live_nodes(graph, wanted);
    let mut uses = vec![0; graph.values.len()];
    wanted.iter().chain(live.iter().flat_map(|at| &graph.nodes[*at].inputs)).for_each(|v| uses[v.0] += 1);
    let mut out = Graph { states: graph.states.clone(), ..Graph::default() };
    let mut new = vec![None; graph.values.len()];
    for (value, (ty, source)) in graph.values.iter().enumerate() {
        if !matches!(source, Source::Node { .. }) {
            new[value] = Some(out.push(ty.clone(), *source));
        }
    }
    let mut fusing = Fusing { old: graph, uses, out, new, group: Vec::new() };
    live.into_iter().for_each(|at| fusing.node(at));
    fusing.close();
    let wanted = wanted.iter().map(|v| fusing.place(*v)).collect();
    (fusing.out, wanted)
}

fn live_nodes(graph: &Graph, wanted: &[Value]) -> Vec<usize> {
    let mut needed = vec![false; graph.values.len()];
    wanted.iter().for_each(|v| needed[v.0] = true);
    let mut live = Vec::new();
    for (at, node) in graph.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|v| needed[v.0]) {
            node.inputs.iter().for_each(|v| needed[v.0] = true);
            live.push(at);
        }
    }
    live.reverse();
    live
}

/// The function that a node is, if it is elementwise.
fn function(op: &Op) -> Option<Each> {
    Some(match op {
        Op::Each(f) => *f,
        Op::Add(_) => Each::Add,
        Op::Mul(_) => Each::Mul,
        Op::Scale(op) => Each::Scale(op.factor),
        // The same numbers, repeated: a loop repeats what it reads anyway.
        Op::BroadcastTo(_) => Each::Detach,
        _ => return None,
    })
}

struct Fusing<'a> {
    old: &'a Graph,
    /// How many times a value is read or wanted.
    uses: Vec<usize>,
    out: Graph,
    new: Vec<Option<Value>>,
    /// Nodes of the open group, in order; all have outputs of one shape.
    group: Vec<usize>,
}

impl Fusing<'_> {
    fn place(&self, value: Value) -> Value {
        self.new[value.0].expect("values are placed before they are read")
    }

    fn shape(&self, at: usize) -> &[usize] {
        &self.old.ty(self.old.nodes[at].outputs[0]).shape
    }

    /// Whether it reads what the open group makes.
    fn follows(&self, at: usize) -> bool {
        self.old.nodes[at].inputs.iter().any(|v| self.new[v.0].is_none())
    }

    fn node(&mut self, at: usize) {
        if function(&self.old.nodes[at].op).is_none() {
            if self.follows(at) {
                self.close();
            }
            return self.emit(at);
        }
        let first = self.group.first().copied();
        let joins = first.is_some_and(|first| self.shape(first) == self.shape(at) && self.is_near(at));
        let mut larger = self.group.clone();
        larger.push(at);
        if !joins || larger.len() > FUSED_STEPS_MAX || self.given(&larger).len() > IO_MAX {
            self.close();
        }
        self.group.push(at);
    }

    /// Whether it reads what the group makes, or something that the group reads: else a common loop saves nothing.
    fn is_near(&self, at: usize) -> bool {
        let given = self.given(&self.group);
        self.follows(at) || self.old.nodes[at].inputs.iter().any(|v| given.contains(v))
    }

    /// What a group reads from outside, each once.
    fn given(&self, group: &[usize]) -> Vec<Value> {
        let mut given = Vec::new();
        let made: Vec<Value> = group.iter().map(|at| self.old.nodes[*at].outputs[0]).collect();
        for value in group.iter().flat_map(|at| &self.old.nodes[*at].inputs) {
            if !made.contains(value) && !given.contains(value) {
                given.push(*value);
            }
        }
        given
    }

    /// Numbers of the members that others than members read.
    fn outputs(&self, group: &[usize]) -> Vec<usize> {
        let reads =
            |value: Value| group.iter().flat_map(|at| &self.old.nodes[*at].inputs).filter(|v| **v == value).count();
        let is_read_outside = |at: usize| {
            let value = self.old.nodes[at].outputs[0];
            self.uses[value.0] > reads(value)
        };
        (0..group.len()).filter(|i| is_read_outside(group[*i])).collect()
    }

    /// Writes the group's loops: one, or several if it has too many outputs.
    fn close(&mut self) {
        let mut rest = std::mem::take(&mut self.group);
        while !rest.is_empty() {
            let fits = |len: &usize| self.outputs(&rest[..*len]).len() <= FUSED_OUTPUTS_MAX;
            let len = (1..=rest.len()).rev().find(fits).expect("one node has one output");
            let tail = rest.split_off(len);
            self.write(&rest);
            rest = tail;
        }
    }

    fn write(&mut self, group: &[usize]) {
        if let [one] = group {
            return self.emit(*one);
        }
        let (old, given) = (self.old, self.given(group));
        let input = |value: Option<&Value>| match value {
            None => FusedInput::Nothing,
            Some(v) => match group.iter().position(|at| old.nodes[*at].outputs[0] == *v) {
                Some(step) => FusedInput::Step(step),
                None => FusedInput::Given(given.iter().position(|g| g == v).expect("given or made")),
            },
        };
        let step = |at: &usize| {
            let Node { op, inputs, .. } = &old.nodes[*at];
            let f = function(op).expect("groups are of elementwise nodes");
            FusedStep { f, x: std::array::from_fn(|i| input(inputs.get(i))) }
        };
        let outputs = self.outputs(group);
        let shape = self.shape(group[0]).to_vec();
        let op = Op::Fused(Fused { shape, steps: group.iter().map(step).collect(), outputs: outputs.clone() });
        let inputs: Vec<Value> = given.iter().map(|v| self.place(*v)).collect();
        let made = self.out.apply(op, "graph", &inputs).expect("what broadcast alone does so together");
        for (member, value) in outputs.into_iter().zip(made) {
            self.new[old.nodes[group[member]].outputs[0].0] = Some(value);
        }
    }

    /// A node as it is.
    fn emit(&mut self, at: usize) {
        let Node { op, inputs, outputs, path, .. } = &self.old.nodes[at];
        let inputs: Vec<Value> = inputs.iter().map(|v| self.place(*v)).collect();
        let types = outputs.iter().map(|v| self.old.ty(*v).clone()).collect();
        let made = self.out.push_node(op.clone(), path, &inputs, types, None);
        outputs.iter().zip(made).for_each(|(old, new)| self.new[old.0] = Some(new));
    }
}
