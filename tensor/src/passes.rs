//! The plans of a module for units of 1, 2, 4, … shards, and what any device that runs them has to know.
//!
//! Traced and planned once, when a job starts. `network` runs the plans on the processor; other devices have crates of
//! their own.

use crate::fuse::fuse;
use crate::graph::{Graph, Role, ShapeError, Source, Type, Value};
use crate::groups::GroupRates;
use crate::init::Init;
use crate::network::{ParamInfo, RunningPair, StateLayout};
use crate::nn::{Mode, Module, Running, Scope};
use crate::ops::{CrossEntropy, Op, Seed};
use crate::plan::{Goal, Plan};
use crate::recompute::recompute;
use crate::tensor::Tensor;
use crate::units::{self, Asked};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::layout::Tail;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// Most shards of a unit. A plan takes some tens of microseconds to make and some kilobytes to hold.
const UNIT_SHARDS_MAX: usize = 1 << 10;

pub struct Passes {
    pub layout: StateLayout,
    inits: Vec<(String, Init, Range<usize>)>,
    data: DataShape,
    /// Of a shard.
    pub samples: usize,
    /// For 1, 2, 4, … shards: made before they are needed, so that nothing is compiled while a fault is mended.
    pub train: Vec<Pass>,
    pub evaluate: Vec<Pass>,
}

/// A plan, and where its metrics are found.
pub struct Pass {
    pub plan: Plan,
    /// Of each row, among the plan's kept values.
    pub loss: Value,
    pub correct: Value,
}

impl Passes {
    /// `unit_floats_max` bounds the arenas of units of several shards.
    pub fn new(
        module: &dyn Module,
        data: &DataShape,
        samples: usize,
        unit_floats_max: usize,
    ) -> Result<Passes, ShapeError> {
        let mut train = trace(module, data, samples, Mode::Train)?;
        let evaluate = trace(module, data, samples, Mode::Evaluate)?;
        if train.graph.states() != evaluate.graph.states() {
            let message = "training and evaluation use different parameters".into();
            return Err(ShapeError { op: "module", path: "model".into(), message });
        }
        let (layout, offsets) = lay_out(&train);
        let out = leaf_outputs(&mut train, &offsets)?;
        let inits = train.graph.states().iter().zip(&offsets);
        let inits =
            inits.map(|(s, at)| (s.name.clone(), s.init, *at..at + s.shape.iter().product::<usize>())).collect();
        let train = passes(&train, &out, &offsets, (samples, unit_floats_max));
        let evaluate = passes(&evaluate, &[], &offsets, (samples, unit_floats_max));
        Ok(Passes { layout, inits, data: data.clone(), samples, train, evaluate })
    }

    /// Parameters and buffers, by name from Philox.
    pub fn init(&self, seed: u64) -> Vec<f32> {
        let mut state = vec![0.0; self.layout.floats()];
        for (name, init, range) in &self.inits {
            init.fill(seed, name, &mut state[range.clone()]);
        }
        state
    }

    pub fn shards_max(&self) -> usize {
        1 << (self.train.len().min(self.evaluate.len()) - 1)
    }

    /// Of the largest plan of up to so many shards.
    pub fn arena_floats(&self, shards: usize) -> usize {
        let fits = |pass: &(usize, &Pass)| 1 << pass.0 <= shards.max(1);
        let all = self.train.iter().enumerate().chain(self.evaluate.iter().enumerate());
        all.filter(fits).map(|(_, pass)| pass.plan.arena).max().unwrap_or(0)
    }

    /// The places of a leaf that no op writes: zeros.
    pub fn unwritten(&self) -> Vec<Range<usize>> {
        let (mut out, mut end) = (Vec::new(), 0);
        for range in &self.train[0].plan.written {
            out.push(end..range.start);
            end = range.end;
        }
        out.push(end..self.layout.reduced_floats());
        out.retain(|range| !range.is_empty());
        out
    }

    pub(crate) fn zero_unwritten(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.layout.reduced_floats(), "a leaf has the layout's length");
        let mut end = 0;
        for range in &self.train[0].plan.written {
            out[end..range.start].fill(0.0);
            end = range.end;
        }
        out[end..].fill(0.0);
    }

    /// How many shards the batch holds.
    pub fn shards(&self, state: &[f32], batch: &Batch) -> usize {
        let (features, tokens, targets) = match self.data {
            DataShape::Features { features, .. } => (features, 0, 1),
            DataShape::Tokens { context, .. } => (0, context, context),
        };
        let sizes = (batch.features.len(), batch.tokens.len(), batch.targets.len(), batch.slots.len());
        let (m, n) = (self.samples, batch.slots.len());
        assert_eq!(sizes, (n * features, n * tokens, n * targets, n), "a batch has the shape compiled for");
        let shards = n / m;
        assert!(shards * m == n && shards.is_power_of_two(), "a batch of {n} samples is no unit of shards of {m}");
        assert_eq!(state.len(), self.layout.floats(), "the state has the layout's length");
        shards
    }
}

/// The pass of a unit of so many shards.
pub fn of(passes: &[Pass], shards: usize) -> &Pass {
    let pass = passes.get(shards.ilog2() as usize);
    pass.unwrap_or_else(|| panic!("units have at most {} shards, not {shards}", 1 << (passes.len() - 1)))
}

/// What a pass found of each row.
#[derive(Clone, Copy)]
pub struct Scores<'a> {
    pub loss: &'a [f32],
    pub correct: &'a [f32],
}

impl Scores<'_> {
    pub fn tail(&self, batch: &Batch, shards: usize, shard: usize) -> Tail {
        let rows = batch.targets.len() / shards;
        let rows = shard * rows..(shard + 1) * rows;
        Tail {
            loss: self.loss[rows.clone()].iter().map(|x| *x as f64).sum(),
            count: batch.targets[rows.clone()].iter().filter(|t| **t != IGNORE).count() as u64,
            correct: self.correct[rows].iter().filter(|x| **x != 0.0).count() as u64,
        }
    }
}

/// One trace: graph, scores' loss, and what the module left in its scope.
pub(crate) struct Trace {
    pub graph: Graph,
    /// What the module returns.
    pub scores: Value,
    pub loss: Value,
    pub correct: Value,
    pub running: Vec<Running>,
}

pub(crate) fn trace(module: &dyn Module, data: &DataShape, samples: usize, mode: Mode) -> Result<Trace, ShapeError> {
    let mut graph = Graph::default();
    let (input, targets, outputs) = match *data {
        DataShape::Features { features, classes } => {
            let input = graph.input(Source::Features, Type::float(&[samples, features]));
            (input, graph.input(Source::Targets, Type::int(&[samples])), classes)
        }
        DataShape::Tokens { vocab, context } => {
            let input = graph.input(Source::Tokens, Type::int(&[samples, context]));
            (input, graph.input(Source::Targets, Type::int(&[samples, context])), vocab)
        }
    };
    let graph = Rc::new(RefCell::new(graph));
    let scope = Scope::new(graph.clone(), targets, mode, outputs);
    let scores = module.forward(&scope, Tensor { graph: graph.clone(), value: input, path: "model".into() })?;
    let mut wanted = graph.borrow().ty(targets).shape.clone();
    wanted.push(outputs);
    if scores.shape() != wanted {
        let message = format!("the module returns {:?}, but the data wants scores {wanted:?}", scores.shape());
        return Err(ShapeError { op: "cross entropy", path: "model".into(), message });
    }
    let loss = graph.borrow_mut().apply(Op::CrossEntropy(CrossEntropy), "loss", &[scores.value, targets])?;
    let running = scope.running.take();
    let mut graph = graph.borrow().clone();
    fuse(&mut graph, &loss);
    Ok(Trace { graph, scores: scores.value, loss: loss[0], correct: loss[2], running })
}

/// The plans for 1, 2, 4, … shards, as far as their memory allows.
fn passes(
    trace: &Trace,
    out: &[(Value, usize)],
    offsets: &[usize],
    (samples, unit_floats_max): (usize, usize),
) -> Vec<Pass> {
    let keep = [trace.loss, trace.correct];
    let plan = |graph: &Graph, out: &[(Value, usize)], keep: &[Value]| {
        let plan = Plan::new(graph, &Goal { states: offsets, out, keep });
        Pass { plan, loss: keep[0], correct: keep[1] }
    };
    let mut passes = vec![plan(&trace.graph, out, &keep)];
    while passes.len() <= UNIT_SHARDS_MAX.ilog2() as usize {
        let unit = units::unit(&trace.graph, Asked { out, keep: &keep }, samples, 1 << passes.len());
        let pass = plan(&unit.graph, &unit.out, &unit.keep);
        if pass.plan.arena > unit_floats_max {
            break;
        }
        passes.push(pass);
    }
    passes
}

/// The tree's sum of the tails of 2^j shards.
pub fn tail_of(shards: Range<usize>, tail: &dyn Fn(usize) -> Tail) -> Tail {
    match shards.len() {
        1 => tail(shards.start),
        len => {
            let middle = shards.start + len / 2;
            tail_of(shards.start..middle, tail).add(tail_of(middle..shards.end, tail))
        }
    }
}

/// The layout, and each state's offset in the order of the graph's states.
pub(crate) fn lay_out(trace: &Trace) -> (StateLayout, Vec<usize>) {
    let states = trace.graph.states();
    let mut offsets = vec![0; states.len()];
    let (mut layout, mut end) = (StateLayout::default(), 0);
    for role in [Role::Param, Role::Buffer] {
        for (index, state) in states.iter().enumerate().rev().filter(|(_, s)| s.role == role) {
            let len = state.shape.iter().product();
            let is_param = role == Role::Param;
            let (name, shape) = (state.name.clone(), state.shape.clone());
            let decay = is_param && shape.len() >= 2;
            let group = GroupRates::default();
            let info = ParamInfo { name, shape, offset: end, len, decay, trainable: is_param, group };
            if is_param { &mut layout.params } else { &mut layout.buffers }.push(info);
            offsets[index] = end;
            end += len;
        }
    }
    let range = |value| match trace.graph.source(value) {
        Source::State(index) => offsets[index]..offsets[index] + trace.graph.ty(value).len(),
        other => unreachable!("running statistics are states, not {other:?}"),
    };
    for r in &trace.running {
        layout.running.push(RunningPair { mean: range(r.mean), var: range(r.var), momentum: r.momentum });
    }
    (layout, offsets)
}

/// Adds the backward pass; the leaf's parts and their places.
fn leaf_outputs(trace: &mut Trace, offsets: &[usize]) -> Result<Vec<(Value, usize)>, ShapeError> {
    let shape = trace.graph.ty(trace.loss).shape.clone();
    let forward_end = trace.graph.nodes.len() - 1;
    let seed = trace.graph.apply1(Op::Seed(Seed { shape }), "loss", &[])?;
    let state_of = |graph: &Graph, value: usize| match graph.source(Value(value)) {
        Source::State(index) if graph.states()[index].role == Role::Param => Some((Value(value), offsets[index])),
        _ => None,
    };
    let params: Vec<_> = (0..trace.graph.values.len()).filter_map(|v| state_of(&trace.graph, v)).collect();
    let wrt: Vec<Value> = params.iter().map(|(v, _)| *v).collect();
    let grads = crate::autograd::backward(&mut trace.graph, trace.loss, seed, &wrt)?;
    recompute(&mut trace.graph, forward_end);
    // A parameter that the loss does not depend on keeps the zeros that `sum` fills in.
    let mut out: Vec<_> = grads.iter().zip(&params).filter_map(|(g, (_, at))| g.map(|g| (g, *at))).collect();
    for running in &trace.running {
        let Some(moments) = running.moments else { continue };
        for (buffer, moment) in [running.mean, running.var].into_iter().zip(moments) {
            let Source::State(index) = trace.graph.source(buffer) else { unreachable!("buffers are states") };
            out.push((moment, offsets[index]));
        }
    }
    Ok(out)
}
