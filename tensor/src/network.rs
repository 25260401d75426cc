//! A module compiled for one shard's shape, run on the processor: the plans of `passes`, and the flat state.
//!
//! The state is one vector: parameters from 0 in the reverse of the order in which the forward pass first
//! used them (the order in which their gradients are finished), then buffers. Who computes which shard, and
//! how leaves are summed, is the worker's business; what is done with the sum, `optim`'s.

use crate::backend;
use crate::ema;
use crate::exec::{Bound, Scratch, Watch, run, run_seen};
use crate::float_mode::Ieee;
use crate::graph::ShapeError;
use crate::groups::GroupRates;
use crate::mixed::Mixed;
use crate::nn::Module;
use crate::ops::Key;
use crate::optim::{self, Update, UpdateReport};
use crate::passes::{self, Pass, Passes, Scores};
use crate::real::Single;
use crate::team::Team;
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Dtype, Optimizer};
use elastic_spec::layout::Tail;
use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;

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

/// The plan of a device's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// The device, for people.
    pub device: String,
    /// Name and bytes.
    pub parts: Vec<(&'static str, u64)>,
    /// What the device has left now; or why it does not say.
    pub free_bytes: Result<u64, String>,
}

/// A step on state that a network may hold on its device; the fields are those of [`Update`].
#[derive(Debug)]
pub struct Held<'a> {
    pub from: u64,
    pub to: u64,
    pub optimizer: &'a Optimizer,
    /// The decay of the average of the weights, whose vector is then the last of `moments`.
    pub ema: Option<f64>,
    pub reduced: &'a [f32],
    pub state: &'a [f32],
    pub moments: &'a [Vec<f32>],
    pub step: u64,
    pub lr: f64,
    pub correction: f32,
    pub clip_norm: Option<f64>,
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

    /// Says that the state of the calls from now on is that of `version`: two calls with the same have the same state, so
    /// that a device need not be given it twice. None: every call may have another.
    fn hold(&self, scratch: &mut dyn Any, version: Option<u64>) {
        let _ = (scratch, version);
    }

    /// One step of the optimizer, and of the average of the weights if there is one, on state that the network holds on its
    /// device: what [`hold`](Network::hold) called `held.from` becomes `held.to`. The host's vectors are read if the device
    /// has others than `held.from`, and stay as they are: [`read_back`](Network::read_back) makes them current. None: this
    /// network keeps no state, or none was held, and nothing was done.
    fn advance(&self, scratch: &mut dyn Any, held: Held<'_>) -> Option<UpdateReport> {
        let _ = (scratch, held);
        None
    }

    /// Says that version `to` is the state of version `from`: what lies between them moved nothing.
    fn carry(&self, scratch: &mut dyn Any, from: u64, to: u64) {
        let _ = (scratch, from, to);
    }

    /// Makes the host's vectors those that the last [`advance`](Network::advance) left on the device.
    fn read_back(&self, scratch: &mut dyn Any, state: &mut [f32], moments: &mut [Vec<f32>]) {
        let _ = (scratch, state, moments);
    }

    /// What the network holds in its device's memory where calls have up to `shards` shards and the optimizer (with the
    /// average) has so many vectors. None on the processor, whose memory is the host's.
    fn device_memory(&self, shards: usize, moments: usize) -> Option<DeviceMemory> {
        let _ = (shards, moments);
        None
    }

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

/// Floats of the largest arena of a unit of several shards: 256 MiB. Larger units gain nothing that shows, since what
/// calls cost by themselves is spread over enough rows long before.
const UNIT_FLOATS_MAX: usize = 64 << 20;
const OWN_SCRATCH: &str = "the scratch is from `new_scratch`";
/// Compiles a module for shards of `samples`, computed in f32. The error names the op, its place and the axes.
pub fn compile(module: &dyn Module, data: &DataShape, samples: usize) -> Result<Box<dyn Network>, String> {
    compile_in(Dtype::F32, module, data, samples)
}

/// The same, with products in `dtype`. State, leaves and sums are f32 in each. It runs on the device that the process has
/// taken ([`crate::backend`]), else on the processor.
pub fn compile_in(
    dtype: Dtype,
    module: &dyn Module,
    data: &DataShape,
    samples: usize,
) -> Result<Box<dyn Network>, String> {
    match backend::taken() {
        Some(device) => device.compile(dtype, module, data, samples),
        None => compile_on_processor(dtype, module, data, samples),
    }
}

/// The same, whatever device was taken.
pub fn compile_on_processor(
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

struct Compiled<F> {
    float: PhantomData<F>,
    passes: Passes,
}

impl<F: Single> Compiled<F> {
    fn new(module: &dyn Module, data: &DataShape, samples: usize) -> Result<Compiled<F>, ShapeError> {
        Ok(Compiled { float: PhantomData, passes: Passes::new(module, data, samples, UNIT_FLOATS_MAX)? })
    }

    /// Zeros where no op writes, then the pass.
    fn sum_of(&self, scratch: &mut dyn Any, call: Call<'_>, out: &mut [f32]) -> Tail {
        let _ieee = Ieee::enter();
        self.passes.zero_unwritten(out);
        self.pass(&self.passes.train, scratch, call, out, passes::tail_of)
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
        let shards = self.passes.shards(state, batch);
        let pass = passes::of(passes, shards);
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
        let scores = Scores { loss: kept(pass.loss), correct: kept(pass.correct) };
        ask(0..shards, &|shard| scores.tail(batch, shards, shard))
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
        &self.passes.layout
    }

    fn layout_mut(&mut self) -> &mut StateLayout {
        &mut self.passes.layout
    }

    fn init(&self, seed: u64) -> Vec<f32> {
        self.passes.init(seed)
    }

    fn shards_max(&self) -> usize {
        self.passes.shards_max()
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
        self.pass(&self.passes.evaluate, scratch, Call { state, batch, key, watch: None }, &mut [], |shards, tail| {
            shards.map(tail).collect()
        })
    }

    fn arena_floats(&self, shards: usize) -> usize {
        self.passes.arena_floats(shards)
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
