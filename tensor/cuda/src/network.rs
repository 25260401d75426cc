//! The engine's networks on a GPU: the plans of `elastic_tensor::passes` as programs, and the memory that they run in.
//!
//! State, batch and leaf are the host's; a call copies in what has changed, runs its pass as one graph, and copies out the
//! leaf and the scores. What the optimizer does is the host's too. In f32 all bits are those of the processor.

use crate::call;
use crate::driver::{Arena, Graph, PinnedBytes, Span, Stream};
use crate::error::{CudaError, Result};
use crate::gpu::Gpu;
use crate::lower::{NoKernel, Region};
use crate::plain;
use crate::program::{Bound, Program};
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Dtype, Optimizer};
use elastic_spec::layout::Tail;
use elastic_tensor::backend::DeviceLost;
use elastic_tensor::exec::{At, Phase, Watch};
use elastic_tensor::nn::Module;
use elastic_tensor::ops::Op;
use elastic_tensor::passes::{self, Pass, Passes, Scores};
use elastic_tensor::plan::Place;
use elastic_tensor::team::Team;
use elastic_tensor::{LeafKey, Network, StateLayout, Update, UpdateReport, ema, optim};
use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
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
        run.copy_in(&given)?;
        let place = (which, shards);
        if !run.ready.contains_key(&place) {
            let bound = program.bind(&self.gpu.loaded, |region| run.address(region))?;
            run.ready.insert(place, Ready { bound, graph: None, runs: 0 });
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
        let done = self.run(run, Which::Train, given, watch).and_then(|shards| {
            let all = run.span(Region::Out, 0..out.len());
            run.stream.copy_out(plain::bytes_mut(out), &all)?;
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
        scratch.downcast_mut::<Run>().expect(OWN_SCRATCH).held = version;
    }

    fn device_memory(&self, shards: usize) -> Vec<(&'static str, u64)> {
        let largest = |of: &dyn Fn(&Pass, &Program) -> u64| {
            let levels = 0..=shards.max(1).ilog2().min(self.passes.shards_max().ilog2());
            let both =
                levels.flat_map(|level| [self.pass(Which::Train, 1 << level), self.pass(Which::Evaluate, 1 << level)]);
            both.map(|(pass, program)| of(pass, program)).max().unwrap_or(0)
        };
        vec![
            ("state", 4 * self.passes.layout.floats() as u64),
            ("leaf", 4 * self.passes.layout.reduced_floats() as u64),
            ("arena", largest(&|pass, _| 4 * pass.plan.arena as u64)),
            ("room of kernels", largest(&|_, program| program.room_bytes())),
            ("constants", largest(&|_, program| program.constant_bytes())),
        ]
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
        let stream = Stream::new(self.gpu.loaded.context()).unwrap_or_else(|error| lost(&self.gpu, &error));
        Box::new(Run {
            ready: BTreeMap::new(),
            stream,
            regions: BTreeMap::new(),
            staging: None,
            held: None,
            copied: None,
            loss: Vec::new(),
            correct: Vec::new(),
            team: Team::new(threads),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Which {
    Train,
    Evaluate,
}

#[derive(Clone, Copy)]
enum Kept {
    Loss,
    Correct,
}

/// What a call is given.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    state: &'a [f32],
    batch: &'a Batch,
    key: LeafKey,
}

#[derive(Clone, Copy)]
struct BatchBytes {
    features: u64,
    tokens: u64,
    targets: u64,
}

impl BatchBytes {
    fn of(batch: &Batch) -> BatchBytes {
        let bytes = |len: usize| 4 * len as u64;
        BatchBytes {
            features: bytes(batch.features.len()),
            tokens: bytes(batch.tokens.len()),
            targets: bytes(batch.targets.len()),
        }
    }
}

/// A pass that is bound to the run's memory; from its second call on, one graph.
struct Ready {
    bound: Bound,
    graph: Option<Graph>,
    runs: u64,
}

/// The GPU's memory for one call at a time, and the host's threads. Fields are dropped in this order: what runs goes before the
/// memory that it runs in.
struct Run {
    ready: BTreeMap<(Which, usize), Ready>,
    stream: Stream,
    regions: BTreeMap<Region, Arc<Arena>>,
    staging: Option<PinnedBytes>,
    /// The version of the state that calls have now, and that of the GPU's.
    held: Option<u64>,
    copied: Option<u64>,
    loss: Vec<f32>,
    correct: Vec<f32>,
    team: Team,
}

impl Run {
    /// At least so many bytes of a region. What was bound to a smaller one is bound anew.
    fn grow(&mut self, region: Region, bytes: u64) -> Result<()> {
        if self.regions.get(&region).is_some_and(|arena| arena.bytes() >= bytes) {
            return Ok(());
        }
        self.ready.clear();
        self.regions.remove(&region);
        let arena = Arena::new(self.stream.context(), bytes)?;
        if region == Region::Out {
            // Places that no op writes stay 0.
            // SAFETY: the arena outlives the wait.
            unsafe { self.stream.set_bytes(&arena.whole(), 0) }?;
            self.stream.wait()?;
        }
        if region == Region::State {
            self.copied = None;
        }
        self.regions.insert(region, arena);
        Ok(())
    }

    fn address(&self, region: Region) -> u64 {
        self.regions.get(&region).map_or(0, |arena| arena.whole().address())
    }

    /// Some floats of a region.
    fn span(&self, region: Region, floats: Range<usize>) -> Span {
        let arena = self.regions.get(&region).expect("a pass has all of its regions");
        arena.span(4 * floats.start as u64, 4 * floats.len() as u64).expect("a region holds what its pass needs")
    }

    /// Copies the batch, the call and, if it is another one, the state.
    fn copy_in(&mut self, given: &Inputs<'_>) -> Result<()> {
        let Inputs { state, batch, key } = *given;
        let call = call::bytes(key.seed, key.step, key.scale, key.label_smoothing);
        let pieces = [
            (Region::Call, &call[..]),
            (Region::Slots, plain::bytes(&batch.slots)),
            (Region::Targets, plain::bytes(&batch.targets)),
            (Region::Tokens, plain::bytes(&batch.tokens)),
            (Region::Features, plain::bytes(&batch.features)),
        ];
        let bytes: usize = pieces.iter().map(|(_, piece)| piece.len()).sum();
        if self.staging.as_ref().is_none_or(|staging| staging.as_slice().len() < bytes) {
            self.staging = Some(PinnedBytes::new(self.stream.context(), bytes)?);
        }
        let staging = self.staging.as_mut().expect("just made");
        let mut at = 0;
        for (region, piece) in pieces {
            let range = at..at + piece.len();
            at = range.end;
            staging.as_mut_slice()[range.clone()].copy_from_slice(piece);
            let arena = &self.regions[&region];
            // SAFETY: staging is written again only by the next call, and this one waits before it ends.
            unsafe { self.stream.copy_in_later(&arena.span(0, piece.len() as u64)?, staging, range) }?;
        }
        if self.held.is_none() || self.held != self.copied {
            self.copied = None;
            self.stream.copy_in(&self.regions[&Region::State].span(0, 4 * state.len() as u64)?, plain::bytes(state))?;
            self.copied = self.held;
        }
        Ok(())
    }

    /// The first call runs launch by launch, which loads what is loaded late; the second records, and all others replay.
    fn launch(&mut self, place: (Which, usize)) -> Result<()> {
        let ready = self.ready.get_mut(&place).expect("it was bound before");
        ready.runs += 1;
        if ready.runs == 1 {
            // SAFETY: the regions are those that it was bound to, and the caller waits before they change.
            return unsafe { ready.bound.run(&self.stream) };
        }
        if ready.graph.is_none() {
            let bound = &ready.bound;
            // SAFETY: as above; a graph goes with its bound launches when a region grows.
            ready.graph = Some(Graph::capture(&self.stream, |stream| unsafe { bound.run(stream) })?);
        }
        let graph = ready.graph.as_ref().expect("just recorded");
        // SAFETY: as above.
        unsafe { self.stream.replay(graph) }
    }

    /// Waits after each of the plan's steps, and shows what it wrote.
    fn step_by_step(
        &mut self,
        place: (Which, usize),
        (pass, program): (&Pass, &Program),
        watch: &mut dyn Watch,
    ) -> Result<()> {
        let mut phase = Phase::Forward;
        for (index, (step, launches)) in pass.plan.steps.iter().zip(program.steps()).enumerate() {
            if matches!(step.op, Op::Seed(_)) {
                phase = Phase::Backward;
            }
            let at = At { index, step, phase };
            watch.before(at);
            // SAFETY: the regions are those that it was bound to, and the wait comes before they change.
            unsafe { self.ready[&place].bound.run_some(&self.stream, launches.clone()) }?;
            self.stream.wait()?;
            let written = step.outputs.iter().map(|(_, place)| {
                let span = match place {
                    Place::Arena(range) => self.span(Region::Arena, range.clone()),
                    Place::Out(range) => self.span(Region::Out, range.clone()),
                    other => unreachable!("a node writes to the arena or the output, not {other:?}"),
                };
                let mut floats = vec![0.0; span.bytes() as usize / 4];
                self.stream.copy_out(plain::bytes_mut(&mut floats), &span).map(|()| floats)
            });
            let written: Vec<Vec<f32>> = written.collect::<Result<_>>()?;
            watch.after(at, &mut written.iter().map(|floats| &floats[..]));
        }
        Ok(())
    }

    fn copy_scores(&mut self, kept: Kept, range: Range<usize>) -> Result<()> {
        let span = self.span(Region::Arena, range);
        let to = match kept {
            Kept::Loss => &mut self.loss,
            Kept::Correct => &mut self.correct,
        };
        to.resize(span.bytes() as usize / 4, 0.0);
        self.stream.copy_out(plain::bytes_mut(to), &span)
    }
}
