//! The engine's networks on a GPU: the plans of `elastic_tensor::passes` as programs, and the memory that they run in.
//!
//! Batch and leaf are the host's: a call copies in what has changed, runs its pass as one graph, and copies out the leaf
//! and the scores. The state is the host's too, or, where the caller holds versions of it, the GPU's, and the optimizer
//! runs there. In f32 all bits are those of the processor.

mod held;
mod run;
mod segments;

use crate::call;
use crate::device::Device;
use crate::error::{CudaError, Result};
use crate::gpu::Gpu;
use crate::lower::{NoKernel, Region};
use crate::plain;
use crate::program::Program;
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Dtype, Optimizer};
use elastic_spec::layout::Tail;
use elastic_tensor::backend::DeviceLost;
use elastic_tensor::exec::Watch;
use elastic_tensor::nn::Module;
use elastic_tensor::passes::{self, Pass, Passes, Scores};
use elastic_tensor::{DeviceMemory, LeafKey, Network, StateLayout, Update, UpdateReport, ema, optim};
use run::{BatchBytes, Inputs, Kept, Run, Which};
use std::any::Any;
use std::sync::Arc;

pub struct CudaNetwork {
    gpu: Arc<Gpu>,
    passes: Passes,
    train: Vec<Program>,
    evaluate: Vec<Program>,
}

/// A unit's working memory may take this share of the GPU's.
const UNIT_SHARE: u64 = 8;
const OWN_SCRATCH: &str = "the scratch is from `new_scratch`";

impl CudaNetwork {
    /// Plans and lowers; compiles nothing yet. The error names what does not fit, or the op without a kernel.
    pub fn new(
        gpu: &Arc<Gpu>,
        dtype: Dtype,
        module: &dyn Module,
        data: &DataShape,
        samples: usize,
    ) -> std::result::Result<CudaNetwork, String> {
        let unit_floats = (gpu.device.memory_bytes / UNIT_SHARE / 4) as usize;
        let passes = Passes::new(module, data, samples, unit_floats).map_err(|error| error.to_string())?;
        let lower = |all: &[Pass]| -> std::result::Result<Vec<Program>, NoKernel> {
            (0..).zip(all).map(|(level, pass)| Program::of(&pass.plan, dtype, 1 << level, samples << level)).collect()
        };
        let (train, evaluate) = (lower(&passes.train), lower(&passes.evaluate));
        let text = |error: NoKernel| error.to_string();
        Ok(CudaNetwork { gpu: Arc::clone(gpu), train: train.map_err(text)?, evaluate: evaluate.map_err(text)?, passes })
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    pub(crate) fn passes(&self) -> &Passes {
        &self.passes
    }

    /// The training pass of a unit of so many shards.
    pub(crate) fn training(&self, shards: usize) -> (&Pass, &Program) {
        self.pass(Which::Train, shards)
    }

    fn pass(&self, which: Which, shards: usize) -> (&Pass, &Program) {
        let (passes, programs) = match which {
            Which::Train => (&self.passes.train, &self.train),
            Which::Evaluate => (&self.passes.evaluate, &self.evaluate),
        };
        (passes::of(passes, shards), &programs[shards.ilog2() as usize])
    }

    /// Bytes of each region for a pass.
    fn regions(&self, (pass, program): (&Pass, &Program), samples: usize, batch: BatchBytes) -> [(Region, u64); 9] {
        [
            (Region::Arena, 4 * pass.plan.arena as u64),
            (Region::State, 4 * self.passes.layout.floats() as u64),
            (Region::Out, 4 * self.passes.layout.reduced_floats() as u64),
            (Region::Features, batch.features),
            (Region::Tokens, batch.tokens),
            (Region::Targets, batch.targets),
            (Region::Slots, 8 * samples as u64),
            (Region::Call, call::BYTES as u64),
            (Region::Room, program.room_bytes()),
        ]
    }

    /// Runs a pass over a batch; the scores of its rows are kept in the run.
    fn run(&self, run: &mut Run, which: Which, given: Inputs<'_>, watch: Option<&mut dyn Watch>) -> Result<usize> {
        let shards = self.passes.shards(given.state, given.batch);
        let (pass, program) = self.pass(which, shards);
        for (region, bytes) in self.regions((pass, program), given.batch.slots.len(), BatchBytes::of(given.batch)) {
            run.grow(region, bytes)?;
        }
        if which == Which::Train {
            run.make_leaf_room(self.passes.layout.reduced_floats())?;
        }
        run.copy_in(&given)?;
        let place = (which, shards);
        if !run.is_bound(place) {
            let bucket = (self.gpu.bucket_bytes / 4) as usize;
            let cut = segments::segments(&pass.plan, self.passes.layout.reduced_floats(), bucket);
            run.bind(place, &cut, (program, &self.gpu.loaded))?;
        }
        match watch {
            None => run.launch(place)?,
            Some(watch) => run.step_by_step(place, (pass, program), watch)?,
        }
        for (kept, value) in [(Kept::Loss, pass.loss), (Kept::Correct, pass.correct)] {
            run.copy_scores(kept, pass.plan.kept_range(value))?;
        }
        Ok(shards)
    }

    fn sum_of(&self, run: &mut Run, given: Inputs<'_>, watch: Option<&mut dyn Watch>, out: &mut [f32]) -> Tail {
        assert_eq!(out.len(), self.passes.layout.reduced_floats(), "a leaf has the layout's length");
        let batch = given.batch;
        let is_seen = watch.is_some();
        let done = self.run(run, Which::Train, given, watch).and_then(|shards| {
            let whole = run.span(Region::Out, 0..out.len());
            match is_seen {
                true => run.stream.copy_out(plain::bytes_mut(out), &whole)?,
                false => run.take_leaf(out)?,
            }
            Ok(shards)
        });
        let shards = done.unwrap_or_else(|error| lost(&self.gpu, &error));
        let scores = Scores { loss: &run.loss, correct: &run.correct };
        passes::tail_of(0..shards, &|shard| scores.tail(batch, shards, shard))
    }
}

/// A failure in the middle of training ends the process; which GPU, what failed and the cure are said.
fn lost(gpu: &Gpu, error: &CudaError) -> ! {
    DeviceLost::unwind(format!("GPU {}, {}: {error}", gpu.device.ordinal, gpu.device.name))
}

impl Network for CudaNetwork {
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
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        self.sum_of(run, Inputs { state, batch, key }, None, out)
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
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        Some(self.sum_of(run, Inputs { state, batch, key }, Some(watch), out))
    }

    fn evaluate(&self, scratch: &mut dyn Any, state: &[f32], batch: &Batch) -> Vec<Tail> {
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        let key = LeafKey { seed: 0, step: 0, scale: 0.0, label_smoothing: 0.0 };
        let done = self.run(run, Which::Evaluate, Inputs { state, batch, key }, None);
        let shards = done.unwrap_or_else(|error| lost(&self.gpu, &error));
        let scores = Scores { loss: &run.loss, correct: &run.correct };
        (0..shards).map(|shard| scores.tail(batch, shards, shard)).collect()
    }

    fn hold(&self, scratch: &mut dyn Any, version: Option<u64>) {
        scratch.downcast_mut::<Run>().expect(OWN_SCRATCH).version = version;
    }

    fn advance(&self, scratch: &mut dyn Any, step: elastic_tensor::Held<'_>) -> Option<UpdateReport> {
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        if run.version != Some(step.from) {
            return None;
        }
        Some(held::advance(&self.gpu.loaded, &self.passes.layout, run, step).unwrap_or_else(|e| lost(&self.gpu, &e)))
    }

    fn carry(&self, scratch: &mut dyn Any, from: u64, to: u64) {
        held::carry(scratch.downcast_mut::<Run>().expect(OWN_SCRATCH), from, to);
    }

    fn read_back(&self, scratch: &mut dyn Any, state: &mut [f32], moments: &mut [Vec<f32>]) {
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        held::read_back(run, state, moments).unwrap_or_else(|error| lost(&self.gpu, &error));
    }

    fn device_memory(&self, shards: usize, moments: usize) -> Option<DeviceMemory> {
        let largest = |of: &dyn Fn(&Pass, &Program) -> u64| {
            let levels = 0..=shards.max(1).ilog2().min(self.passes.shards_max().ilog2());
            let both =
                levels.flat_map(|level| [self.pass(Which::Train, 1 << level), self.pass(Which::Evaluate, 1 << level)]);
            both.map(|(pass, program)| of(pass, program)).max().unwrap_or(0)
        };
        let layout = &self.passes.layout;
        let parts = vec![
            ("state", 4 * layout.floats() as u64),
            ("optimizer", 4 * (layout.param_floats() * moments) as u64),
            ("gradients", 2 * 4 * layout.reduced_floats() as u64),
            ("arena", largest(&|pass, _| 4 * pass.plan.arena as u64)),
            ("room of kernels", largest(&|_, program| program.room_bytes())),
            ("constants", largest(&|_, program| program.constant_bytes())),
        ];
        let Device { ordinal, name, .. } = &self.gpu.device;
        Some(DeviceMemory { device: format!("GPU {ordinal}, {name}"), parts, free_bytes: self.gpu.free_bytes() })
    }

    fn update(&self, scratch: &mut dyn Any, optimizer: &Optimizer, update: Update<'_>) -> UpdateReport {
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        optim::apply_on(&run.team, optimizer, update)
    }

    fn follow(&self, scratch: &mut dyn Any, decay: f64, weights: &[f32], average: &mut [f32]) {
        let run = scratch.downcast_mut::<Run>().expect(OWN_SCRATCH);
        ema::follow(&run.team, decay, weights, average);
    }

    fn new_scratch(&self, threads: usize) -> Box<dyn Any + Send> {
        Box::new(Run::new(self.gpu.loaded.context(), threads).unwrap_or_else(|error| lost(&self.gpu, &error)))
    }
}
