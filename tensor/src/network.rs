//! A module compiled for one shard's shape: the plans for units of 1, 2, 4, … shards, and the flat state.
//!
//! The state is one vector: parameters from 0 in the reverse of the order in which the forward pass first
//! used them (the order in which their gradients are finished), then buffers. Who computes which shard, and
//! how leaves are summed, is the worker's business; what is done with the sum, `optim`'s.

use crate::ema;
use crate::exec::{Bound, Scratch, Watch, run, run_seen};
use crate::float_mode::Ieee;
use crate::fuse::fuse;
use crate::graph::{Graph, Role, ShapeError, Source, Type, Value};
use crate::groups::GroupRates;
use crate::init::Init;
use crate::mixed::Mixed;
use crate::nn::{Mode, Module, Running, Scope};
use crate::ops::{CrossEntropy, Key, Op, Seed};
use crate::optim::{self, Update, UpdateReport};
use crate::plan::{Goal, Plan};
use crate::real::Single;
use crate::recompute::recompute;
use crate::team::Team;
use crate::tensor::Tensor;
use crate::units::{self, Asked};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::{Dtype, Optimizer};
use elastic_spec::layout::Tail;
use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

/// A named tensor in the flat state.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    pub name: String,
    pub shape: Vec<usize>,
    pub offset: usize,
    pub len: usize,
    /// Whether weight decay applies: to tensors of two and more axes, not to biases and norms.
    pub decay: bool,
    pub trainable: bool,
    pub group: GroupRates,
}

/// The flat vectors on which everything runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateLayout {
    /// Trainable parameters, contiguous from 0; tied tensors once.
    pub params: Vec<ParamInfo>,
    /// Running means and variances, behind the parameters.
    pub buffers: Vec<ParamInfo>,
    /// Which buffers are whose running statistics.
    pub running: Vec<RunningPair>,
}

/// Where one batch norm's running statistics lie, in the state and, as moments, in the reduced vector.
#[derive(Clone, Debug, PartialEq)]
pub struct RunningPair {
    pub mean: Range<usize>,
    pub var: Range<usize>,
    pub momentum: f64,
}

impl StateLayout {
    pub fn param_floats(&self) -> usize {
        self.params.iter().map(|p| p.len).sum()
    }

    /// Parameters and buffers.
    pub fn floats(&self) -> usize {
        self.param_floats() + self.buffers.iter().map(|b| b.len).sum::<usize>()
    }

    /// The tensor that a place of the state, or of the reduced vector, belongs to.
    pub fn tensor_at(&self, at: usize) -> Option<&ParamInfo> {
        self.params.iter().chain(&self.buffers).find(|info| (info.offset..info.offset + info.len).contains(&at))
    }

    /// Gradients, then the shards' batch-norm moments in the places of the buffers.
    pub fn reduced_floats(&self) -> usize {
        self.floats()
    }
}

/// What a sum of leaves depends on besides state and batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeafKey {
    pub seed: u64,
    pub step: u64,
    /// 1/B: the weight of each valid loss.
    pub scale: f32,
    pub label_smoothing: f32,
}

/// A model compiled for a fixed shard of m samples.
pub trait Network: Send + Sync {
    fn layout(&self) -> &StateLayout;

    /// For flags that are set after compiling: `freeze`, `set_groups`.
    fn layout_mut(&mut self) -> &mut StateLayout;

    /// Parameters and buffers, by name from Philox.
    fn init(&self, seed: u64) -> Vec<f32>;

    /// Most shards that `sum` and `evaluate` take in one call: a power of two.
    fn shards_max(&self) -> usize;

    /// Writes the sum of the leaves of 1, 2, 4, … shards (`reduced_floats`). A shard's leaf is the gradient of the sum
    /// of its valid losses times `scale`, then its batch-norm moments; leaves are added along the tree, and so are
    /// their tails. `batch` holds the shards' samples one behind the other, m of each. The bits depend on the arguments
    /// alone, and are those of leaves that were made one by one and added afterwards.
    fn sum(&self, scratch: &mut dyn Any, state: &[f32], batch: &Batch, key: LeafKey, out: &mut [f32]) -> Tail;

    /// [`sum`](Network::sum), with a look at each op that ran; the bits are the same. None: this network cannot show
    /// its ops, and nothing was computed.
    fn sum_seen(
        &self,
        scratch: &mut dyn Any,
        state: &[f32],
        batch: &Batch,
        key: LeafKey,
        out: &mut [f32],
        watch: &mut dyn Watch,
    ) -> Option<Tail> {
        let _ = (scratch, state, batch, key, out, watch);
        None
    }

    /// Loss and hits with running statistics, without dropout and label smoothing, of each m samples by themselves;
    /// 1, 2, 4, … times m samples.
    fn evaluate(&self, scratch: &mut dyn Any, state: &[f32], batch: &Batch) -> Vec<Tail>;

    /// Floats of the working memory of the largest call of up to `shards` shards: the arena of its plan. 0 where the
    /// network does not plan.
    fn arena_floats(&self, shards: usize) -> usize {
        let _ = shards;
        0
    }

    /// One step of the optimizer ([`optim::apply`]), on the scratch's threads where the network has such. The bits do not
    /// depend on it.
    fn update(&self, scratch: &mut dyn Any, optimizer: &Optimizer, update: Update<'_>) -> UpdateReport {
        let _ = scratch;
        optim::apply(optimizer, update)
    }

    /// One step of an average of the weights ([`ema::follow`]), on the scratch's threads where the network has such.
    fn follow(&self, scratch: &mut dyn Any, decay: f64, weights: &[f32], average: &mut [f32]) {
        let _ = scratch;
        ema::follow(&Team::new(1), decay, weights, average);
    }

    /// Memory and threads for all of these, for one call at a time. `threads` counts the caller's.
    fn new_scratch(&self, threads: usize) -> Box<dyn Any + Send>;
}

const OWN_SCRATCH: &str = "the scratch is from `new_scratch`";
/// Floats of the largest arena of a unit of several shards: 256 MiB. Larger units gain nothing that shows, since what
/// calls cost by themselves is spread over enough rows long before.
const UNIT_FLOATS_MAX: usize = 64 << 20;
/// Most shards of a unit. A plan takes some tens of microseconds to make and some kilobytes to hold.
const UNIT_SHARDS_MAX: usize = 1 << 10;

/// Compiles a module for shards of `samples`, computed in f32. The error names the op, its place and the axes.
pub fn compile(module: &dyn Module, data: &DataShape, samples: usize) -> Result<Box<dyn Network>, String> {
    compile_in(Dtype::F32, module, data, samples)
}

/// The same, with products in `dtype`. State, leaves and sums are f32 in each.
pub fn compile_in(
    dtype: Dtype,
    module: &dyn Module,
    data: &DataShape,
    samples: usize,
) -> Result<Box<dyn Network>, String> {
    Ok(match dtype {
        Dtype::F32 => Box::new(Compiled::<f32>::new(module, data, samples).map_err(|e| e.to_string())?),
        Dtype::Bf16 => Box::new(Compiled::<Mixed>::new(module, data, samples).map_err(|e| e.to_string())?),
    })
}

/// One trace: graph, scores' loss, and what the module left in its scope.
pub(crate) struct Trace {
    pub graph: Graph,
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
    Ok(Trace { graph, loss: loss[0], correct: loss[2], running })
}

struct Compiled<F> {
    float: PhantomData<F>,
    layout: StateLayout,
    inits: Vec<(String, Init, Range<usize>)>,
    data: DataShape,
    samples: usize,
    /// For 1, 2, 4, … shards: made before they are needed, so that nothing is compiled while a fault is mended.
    train: Vec<Pass>,
    evaluate: Vec<Pass>,
}

/// A plan, and where its metrics are found.
struct Pass {
    plan: Plan,
    loss: Value,
    correct: Value,
}

impl<F: Single> Compiled<F> {
    fn new(module: &dyn Module, data: &DataShape, samples: usize) -> Result<Compiled<F>, ShapeError> {
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
        let train = passes(&train, &out, &offsets, samples);
        let evaluate = passes(&evaluate, &[], &offsets, samples);
        Ok(Compiled { float: PhantomData, layout, inits, data: data.clone(), samples, train, evaluate })
    }

    /// Zeros where no op writes, then the pass.
    fn sum_of(&self, scratch: &mut dyn Any, call: Call<'_>, out: &mut [f32]) -> Tail {
        assert_eq!(out.len(), self.layout.reduced_floats(), "a leaf has the layout's length");
        let mut end = 0;
        for range in &self.train[0].plan.written {
            out[end..range.start].fill(0.0);
            end = range.end;
        }
        out[end..].fill(0.0);
        let _ieee = Ieee::enter();
        self.pass(&self.train, scratch, call, out, tail_of)
    }

    /// How many shards the batch holds.
    fn shards(&self, state: &[f32], batch: &Batch) -> usize {
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

    /// Runs the batch, and gives what `ask` makes of the shards' tails, each found by its number.
    fn pass<T>(
        &self,
        passes: &[Pass],
        scratch: &mut dyn Any,
        call: Call<'_>,
        out: &mut [f32],
        ask: impl FnOnce(Range<usize>, &dyn Fn(usize) -> Tail) -> T,
    ) -> T {
        let Call { state, batch, key, watch } = call;
        let shards = self.shards(state, batch);
        let pass = passes.get(shards.ilog2() as usize);
        let pass = pass.unwrap_or_else(|| panic!("units have at most {} shards, not {shards}", self.shards_max()));
        let scratch = scratch.downcast_mut::<Scratch<F>>().expect(OWN_SCRATCH);
        let LeafKey { seed, step, scale, label_smoothing } = key;
        let key = Key { seed, step, scale, label_smoothing, shards, slots: &batch.slots };
        let Batch { features, tokens, targets, .. } = batch;
        let (state, features, out) = (F::of_floats(state), F::of_floats(features), F::of_floats_mut(out));
        let bound = Bound { state, features, tokens, targets, key };
        match watch {
            None => run(&pass.plan, scratch, &bound, out),
            Some(watch) => run_seen(&pass.plan, scratch, &bound, out, watch),
        }
        let kept = |value| F::floats(pass.plan.kept(&scratch.arena, value));
        let rows = batch.targets.len() / shards;
        let tail = |shard: usize| {
            let rows = shard * rows..(shard + 1) * rows;
            Tail {
                loss: kept(pass.loss)[rows.clone()].iter().map(|x| *x as f64).sum(),
                count: batch.targets[rows.clone()].iter().filter(|t| **t != IGNORE).count() as u64,
                correct: kept(pass.correct)[rows].iter().filter(|x| **x != 0.0).count() as u64,
            }
        };
        ask(0..shards, &tail)
    }
}

/// The plans for 1, 2, 4, … shards, as far as their memory allows.
fn passes(trace: &Trace, out: &[(Value, usize)], offsets: &[usize], samples: usize) -> Vec<Pass> {
    let keep = [trace.loss, trace.correct];
    let plan = |graph: &Graph, out: &[(Value, usize)], keep: &[Value]| {
        let plan = Plan::new(graph, &Goal { states: offsets, out, keep });
        Pass { plan, loss: keep[0], correct: keep[1] }
    };
    let mut passes = vec![plan(&trace.graph, out, &keep)];
    while passes.len() <= UNIT_SHARDS_MAX.ilog2() as usize {
        let unit = units::unit(&trace.graph, Asked { out, keep: &keep }, samples, 1 << passes.len());
        let pass = plan(&unit.graph, &unit.out, &unit.keep);
        if pass.plan.arena > UNIT_FLOATS_MAX {
            break;
        }
        passes.push(pass);
    }
    passes
}

/// The tree's sum of the tails of 2^j shards.
fn tail_of(shards: Range<usize>, tail: &dyn Fn(usize) -> Tail) -> Tail {
    match shards.len() {
        1 => tail(shards.start),
        len => {
            let middle = shards.start + len / 2;
            tail_of(shards.start..middle, tail).add(tail_of(middle..shards.end, tail))
        }
    }
}

/// What changes from one pass to the next.
struct Call<'a> {
    state: &'a [f32],
    batch: &'a Batch,
    key: LeafKey,
    watch: Option<&'a mut dyn Watch>,
}

impl<F: Single> Network for Compiled<F> {
    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn layout_mut(&mut self) -> &mut StateLayout {
        &mut self.layout
    }

    fn init(&self, seed: u64) -> Vec<f32> {
        let mut state = vec![0.0; self.layout.floats()];
        for (name, init, range) in &self.inits {
            init.fill(seed, name, &mut state[range.clone()]);
        }
        state
    }

    fn shards_max(&self) -> usize {
        1 << (self.train.len().min(self.evaluate.len()) - 1)
    }

    fn sum(&self, scratch: &mut dyn Any, state: &[f32], batch: &Batch, key: LeafKey, out: &mut [f32]) -> Tail {
        self.sum_of(scratch, Call { state, batch, key, watch: None }, out)
    }

    fn sum_seen(
        &self,
        scratch: &mut dyn Any,
        state: &[f32],
        batch: &Batch,
        key: LeafKey,
        out: &mut [f32],
        watch: &mut dyn Watch,
    ) -> Option<Tail> {
        Some(self.sum_of(scratch, Call { state, batch, key, watch: Some(watch) }, out))
    }

    fn evaluate(&self, scratch: &mut dyn Any, state: &[f32], batch: &Batch) -> Vec<Tail> {
        let _ieee = Ieee::enter();
        let key = LeafKey { seed: 0, step: 0, scale: 0.0, label_smoothing: 0.0 };
        self.pass(&self.evaluate, scratch, Call { state, batch, key, watch: None }, &mut [], |shards, tail| {
            shards.map(tail).collect()
        })
    }

    fn arena_floats(&self, shards: usize) -> usize {
        let fits = |pass: &(usize, &Pass)| 1 << pass.0 <= shards.max(1);
        let all = self.train.iter().enumerate().chain(self.evaluate.iter().enumerate());
        all.filter(fits).map(|(_, pass)| pass.plan.arena).max().unwrap_or(0)
    }

    fn update(&self, scratch: &mut dyn Any, optimizer: &Optimizer, update: Update<'_>) -> UpdateReport {
        let scratch = scratch.downcast_mut::<Scratch<F>>().expect(OWN_SCRATCH);
        optim::apply_on(scratch.team(), optimizer, update)
    }

    fn follow(&self, scratch: &mut dyn Any, decay: f64, weights: &[f32], average: &mut [f32]) {
        let scratch = scratch.downcast_mut::<Scratch<F>>().expect(OWN_SCRATCH);
        ema::follow(scratch.team(), decay, weights, average);
    }

    fn new_scratch(&self, threads: usize) -> Box<dyn Any + Send> {
        Box::new(Scratch::<F>::new(threads))
    }
}

/// The layout, and each state's offset in the order of the graph's states.
fn lay_out(trace: &Trace) -> (StateLayout, Vec<usize>) {
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
