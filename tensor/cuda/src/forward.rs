//! The forward pass alone on a GPU: what a server runs. The weights are copied once, a call copies its rows in and its scores
//! out, and runs as one graph. In f32 all bits are those of the processor.

use crate::call;
use crate::driver::{Arena, Graph, PinnedBytes, Stream};
use crate::error::{CudaError, Result};
use crate::gpu::Gpu;
use crate::lower::Region;
use crate::plain;
use crate::program::{Bound, Program};
use elastic_spec::batch::DataShape;
use elastic_spec::job::Dtype;
use elastic_tensor::backend::DeviceLost;
use elastic_tensor::nn::Module;
use elastic_tensor::{Forward, ForwardPlans, Rows, StateLayout};
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A state, and its copy on the GPU.
type Copied = (Weak<Vec<f32>>, Weak<Arena>);

pub struct CudaForward {
    gpu: Arc<Gpu>,
    plans: ForwardPlans,
    /// One for each plan.
    programs: Vec<Program>,
    /// The state that was copied last. Whoever computes with it keeps it there.
    copied: Mutex<Option<Copied>>,
}

/// What a call runs in. Fields are dropped in this order: what runs goes before the memory that it runs in.
struct Run {
    /// One for each plan, once it was asked for.
    ready: Vec<Option<Ready>>,
    stream: Stream,
    staging: PinnedBytes,
    regions: BTreeMap<Region, Arc<Arena>>,
    /// By which it is known that the GPU's copy is still that of this state.
    _state: Arc<Vec<f32>>,
}

/// A plan that is bound to the run's memory. Its second call is recorded, and all others replay it.
struct Ready {
    graph: Option<Graph>,
    bound: Bound,
    runs: u64,
}

impl CudaForward {
    /// Plans and lowers; compiles nothing yet. The error names what does not fit, or the op without a kernel.
    pub fn new(
        gpu: &Arc<Gpu>,
        dtype: Dtype,
        module: &dyn Module,
        data: &DataShape,
    ) -> std::result::Result<CudaForward, String> {
        let plans = ForwardPlans::new(module, data).map_err(|error| error.to_string())?;
        let programs =
            (0..).zip(&plans.plans).map(|(level, (plan, _))| Program::of(plan, dtype, 1 << level, 1 << level));
        let programs = programs.collect::<std::result::Result<_, _>>().map_err(|error| error.to_string())?;
        Ok(CudaForward { gpu: gpu.clone(), plans, programs, copied: Mutex::new(None) })
    }

    /// The GPU's copy of a state; the one that is there already, if it is.
    fn copy_of(&self, state: &Arc<Vec<f32>>, stream: &Stream) -> Result<Arc<Arena>> {
        let mut copied = self.copied.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, arena)) = copied.as_ref().and_then(|(of, arena)| Some((of.upgrade()?, arena.upgrade()?)))
            && Arc::ptr_eq(&of, state)
        {
            return Ok(arena);
        }
        let arena = Arena::new(self.gpu.loaded.context(), 4 * state.len() as u64)?;
        stream.copy_in(&arena.whole(), plain::bytes(state))?;
        *copied = Some((Arc::downgrade(state), Arc::downgrade(&arena)));
        Ok(arena)
    }

    /// Memory for the largest plan, so that nothing ever moves.
    fn make_run(&self, state: &Arc<Vec<f32>>) -> Result<Run> {
        let context = self.gpu.loaded.context();
        let stream = Stream::new(context)?;
        let rows_bytes = 4 * (self.plans.rows_max() * self.plans.input_len) as u64;
        let arena = self.plans.plans.iter().map(|(plan, _)| 4 * plan.arena as u64).max().unwrap_or(0);
        let room = self.programs.iter().map(Program::room_bytes).max().unwrap_or(0);
        let mut regions = BTreeMap::from([(Region::State, self.copy_of(state, &stream)?)]);
        let sizes = [
            (Region::Arena, arena),
            (Region::Features, rows_bytes),
            (Region::Tokens, rows_bytes),
            (Region::Slots, 8 * self.plans.rows_max() as u64),
            (Region::Call, call::BYTES as u64),
            (Region::Room, room),
        ];
        for (region, bytes) in sizes {
            regions.insert(region, Arena::new(context, bytes)?);
        }
        stream.copy_in(&regions[&Region::Call].whole(), &call::bytes(0, 0, 0.0, 0.0))?;
        // SAFETY: the arena outlives the wait.
        unsafe { stream.set_bytes(&regions[&Region::Slots].whole(), 0) }?;
        stream.wait()?;
        let ready = self.programs.iter().map(|_| None).collect();
        let staging = PinnedBytes::new(context, rows_bytes as usize)?;
        Ok(Run { ready, stream, staging, regions, _state: state.clone() })
    }

    /// A power of two of rows.
    fn run(&self, run: &mut Run, rows: Rows<'_>, out: &mut [f32]) -> Result<()> {
        let level = (out.len() / self.plans.scores_len).ilog2() as usize;
        let (region, bytes) = match rows {
            Rows::Features(features) => (Region::Features, plain::bytes(features)),
            Rows::Tokens(tokens) => (Region::Tokens, plain::bytes(tokens)),
        };
        run.staging.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        let to = run.regions[&region].span(0, bytes.len() as u64)?;
        // SAFETY: staging is written again only by the next call, and this one waits for its scores before it ends.
        unsafe { run.stream.copy_in_later(&to, &run.staging, 0..bytes.len()) }?;
        let Run { ready, stream, regions, .. } = run;
        let ready = match &mut ready[level] {
            Some(ready) => ready,
            none => {
                let address = |region| regions.get(&region).map_or(0, |arena| arena.whole().address());
                let bound = self.programs[level].bind(&self.gpu.loaded, address)?;
                none.insert(Ready { graph: None, bound, runs: 0 })
            }
        };
        ready.runs += 1;
        let (bound, all) = (&ready.bound, 0..ready.bound.len());
        // SAFETY: the memory is what the launches were bound to, and the copy below waits for them.
        unsafe {
            match (&ready.graph, ready.runs) {
                // It loads what is loaded late, which must not be recorded.
                (_, 1) => bound.run_some(stream, all)?,
                (Some(graph), _) => stream.replay(graph)?,
                (None, _) => {
                    let graph = Graph::capture(stream, |stream| bound.run_some(stream, all))?;
                    stream.replay(ready.graph.insert(graph))?;
                }
            }
        }
        let (plan, scores) = &self.plans.plans[level];
        let kept = plan.kept_range(*scores);
        let from = regions[&Region::Arena].span(4 * kept.start as u64, 4 * kept.len() as u64)?;
        stream.copy_out(plain::bytes_mut(out), &from)
    }

    fn said(&self, error: &CudaError) -> String {
        format!("GPU {}, {}: {error}", self.gpu.device.ordinal, self.gpu.device.name)
    }
}

impl Forward for CudaForward {
    fn layout(&self) -> &StateLayout {
        &self.plans.layout
    }

    fn input_len(&self) -> usize {
        self.plans.input_len
    }

    fn scores_len(&self) -> usize {
        self.plans.scores_len
    }

    fn rows_max(&self) -> usize {
        self.plans.rows_max()
    }

    fn scores(&self, scratch: &mut dyn Any, rows: Rows<'_>, out: &mut [f32]) {
        let run = scratch.downcast_mut::<Run>().expect("the scratch is from `new_scratch`");
        self.plans.in_parts(rows, out, |rows, out| {
            self.run(run, rows, out).unwrap_or_else(|error| DeviceLost::unwind(self.said(&error)));
        });
    }

    fn new_scratch(&self, state: &Arc<Vec<f32>>, _threads: usize) -> std::result::Result<Box<dyn Any + Send>, String> {
        assert_eq!(state.len(), self.plans.layout.floats(), "the state has the layout's length");
        Ok(Box::new(self.make_run(state).map_err(|error| self.said(&error))?))
    }
}
