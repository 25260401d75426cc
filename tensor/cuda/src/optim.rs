//! One step of the optimizer where parameters, moments and gradient are: in the GPU's memory, with the processor's bits.
//!
//! What `elastic_tensor::apply_on` and `elastic_tensor::ema::follow` do, as a few launches over the flat vectors. The
//! launches never change, since what differs from step to step lies in the GPU's memory; so they can be recorded in a
//! graph. The host writes that (made in f64 by the same code as for the processor) to pinned memory before each step and
//! reads a small report from it afterwards.

mod tables;

use crate::driver::{Arena, Argument, Function, LaunchShape, PinnedBytes, Span, Stream};
use crate::error::Result;
use crate::loaded::Loaded;
use elastic_spec::job::Optimizer;
use elastic_tensor::optim::{RateClass, StepRates};
use elastic_tensor::{StateLayout, UpdateReport, ema, moments_of};
use std::sync::Arc;
use tables::{CHUNK, PIECE, RATES_BYTES, SCALARS_BYTES, Tables, piece_bytes, pool_bytes, rate_bytes, scalar_bytes};

/// What stays the same in all steps of a job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rule {
    pub optimizer: Optimizer,
    pub clip_norm: Option<f64>,
    /// The decay of an average of the weights, if there is one.
    pub ema: Option<f64>,
}

/// Where the flat vectors begin in the GPU's memory: at multiples of 16 bytes, each.
#[derive(Clone, Debug, PartialEq)]
pub struct Vectors {
    /// Parameters and buffers.
    pub state: u64,
    /// The optimizer's moments ([`moments_of`]), as long as the parameters.
    pub moments: Vec<u64>,
    /// The average of the weights, as long as the parameters; where the rule has one.
    pub average: Option<u64>,
    /// Gradients and statistics of all shards: used up.
    pub reduced: u64,
}

/// What differs from step to step; as in `elastic_tensor::Update`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Now {
    /// Steps done before this one.
    pub step: u64,
    pub lr: f64,
    pub correction: f32,
}

/// The launches of a step, with their tables in the GPU's memory.
pub struct OptimizerStep {
    rule: Rule,
    classes: Vec<RateClass>,
    launches: Vec<(Function, LaunchShape, Vec<Argument>)>,
    scalars: Span,
    scalars_here: PinnedBytes,
    found: Span,
    found_here: PinnedBytes,
}

/// Of `struct Found`.
const FOUND_BYTES: usize = 24;
const THREADS: u32 = 256;
/// Tables begin at multiples of it.
const ALIGN: u64 = 256;

impl OptimizerStep {
    /// Makes the tables and copies them to the GPU; the stream is waited for.
    pub fn new(
        loaded: &Loaded,
        stream: &Stream,
        layout: &StateLayout,
        rule: Rule,
        vectors: &Vectors,
    ) -> Result<OptimizerStep> {
        assert_eq!(vectors.moments.len(), moments_of(&rule.optimizer), "the optimizer's moments");
        assert_eq!(vectors.average.is_some(), rule.ema.is_some(), "a place for the average that the rule has");
        let Vectors { state, moments, average, reduced } = vectors;
        let all = moments.iter().chain(average).chain([state, reduced]);
        all.for_each(|at| assert!(at.is_multiple_of(16), "a vector begins at a multiple of 16 bytes"));
        let tables = Tables::of(layout);
        let room = Room::new(loaded, stream, layout, &tables)?;
        let scalars_here = PinnedBytes::new(loaded.context(), room.scalars.bytes() as usize)?;
        let found_here = PinnedBytes::new(loaded.context(), FOUND_BYTES)?;
        let mut steps = Steps { loaded, layout, room: &room, out: Vec::new() };
        steps.look(tables.frozen.len(), &Argument::Address(*reduced))?;
        steps.move_on(&tables, rule, vectors)?;
        let launches = steps.out;
        let Room { scalars, found, .. } = room;
        Ok(OptimizerStep { rule, classes: tables.classes, launches, scalars, scalars_here, found, found_here })
    }

    /// Says which step is the next. Not between [`OptimizerStep::start`] and the wait for its stream.
    pub fn set(&mut self, now: Now) {
        let Rule { optimizer, clip_norm, .. } = &self.rule;
        let rates = StepRates::new(optimizer, now.step, now.lr);
        let (scalars, table) = self.scalars_here.as_mut_slice().split_at_mut(SCALARS_BYTES);
        scalars.copy_from_slice(&scalar_bytes(*clip_norm, now.correction));
        for (bytes, class) in table.chunks_exact_mut(RATES_BYTES).zip(&self.classes) {
            bytes.copy_from_slice(&rate_bytes(rates.of(*class)));
        }
    }

    /// Gives the step that was set to the stream, which may be recording: each replay then takes what was set last.
    ///
    /// # Safety
    /// The vectors are as long as the layout says, their memory and this value are not dropped before the stream was
    /// waited for, and neither `set` nor `report` is called until then.
    pub unsafe fn start(&mut self, stream: &Stream) -> Result<()> {
        let bytes = self.scalars_here.as_slice().len();
        // SAFETY: the caller leaves both sides alone until the stream was waited for.
        unsafe { stream.copy_in_later(&self.scalars, &self.scalars_here, 0..bytes) }?;
        for (function, shape, arguments) in &self.launches {
            // SAFETY: `Steps` gives each kernel the parameters of its source and tables made of the layout, which the
            // caller's vectors are as long as.
            unsafe { stream.launch(function, *shape, arguments) }?;
        }
        // SAFETY: as for the copy to the GPU.
        unsafe { stream.copy_out_later(&mut self.found_here, 0..FOUND_BYTES, &self.found) }
    }

    /// Kernels that a step launches.
    pub fn launches(&self) -> usize {
        self.launches.len()
    }

    /// What the last step found, once its stream was waited for.
    pub fn report(&self) -> UpdateReport {
        let bytes = self.found_here.as_slice();
        let eight = |at: usize| bytes[at..at + 8].try_into().expect("eight bytes");
        let is_bad = bytes[16..20] != [0; 4];
        match is_bad {
            true => UpdateReport { grad_norm: f64::NAN, not_finite: Some(u64::from_ne_bytes(eight(8)) as usize) },
            false => UpdateReport { grad_norm: f64::from_ne_bytes(eight(0)), not_finite: None },
        }
    }
}

/// What the kernels go by, in the GPU's memory.
struct Room {
    trained: Span,
    frozen: Span,
    pools: Span,
    /// f64 for each chunk.
    sums: Span,
    scalars: Span,
    found: Span,
}

impl Room {
    fn new(loaded: &Loaded, stream: &Stream, layout: &StateLayout, tables: &Tables) -> Result<Room> {
        let (trained, frozen) = (piece_bytes(&tables.trained), piece_bytes(&tables.frozen));
        let pools = pool_bytes(&tables.pools);
        let (grads, stats) = chunks(layout);
        let scalars = SCALARS_BYTES + RATES_BYTES * tables.classes.len();
        let sizes = [trained.len(), frozen.len(), pools.len(), 8 * (grads + stats), scalars, FOUND_BYTES];
        let mut ends = sizes.iter().scan(0u64, |end, bytes| {
            let at = *end;
            *end = (at + *bytes as u64).next_multiple_of(ALIGN);
            Some((at, *bytes as u64, *end))
        });
        let places: Vec<(u64, u64, u64)> = ends.by_ref().collect();
        let arena: Arc<Arena> = Arena::new(loaded.context(), places.last().map_or(0, |(_, _, end)| *end))?;
        let span = |i: usize| arena.span(places[i].0, places[i].1);
        let room = Room {
            trained: span(0)?,
            frozen: span(1)?,
            pools: span(2)?,
            sums: span(3)?,
            scalars: span(4)?,
            found: span(5)?,
        };
        stream.copy_in(&room.trained, &trained)?;
        stream.copy_in(&room.frozen, &frozen)?;
        stream.copy_in(&room.pools, &pools)?;
        Ok(room)
    }
}

/// How many chunks gradients and running statistics have.
fn chunks(layout: &StateLayout) -> (usize, usize) {
    let params = layout.param_floats();
    (params.div_ceil(CHUNK), (layout.reduced_floats() - params).div_ceil(CHUNK))
}

/// Launches as they come to a step.
struct Steps<'a> {
    loaded: &'a Loaded,
    layout: &'a StateLayout,
    room: &'a Room,
    out: Vec<(Function, LaunchShape, Vec<Argument>)>,
}

impl Steps<'_> {
    fn push(&mut self, kernel: (&'static str, &'static str), blocks: usize, arguments: Vec<Argument>) -> Result<()> {
        let blocks = u32::try_from(blocks).expect("a vector of less than 2^43 numbers");
        let shape = LaunchShape { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 };
        self.out.push((self.loaded.function(kernel.0, kernel.1, 0)?, shape, arguments));
        Ok(())
    }

    /// The norm of the gradient, and whether all that was reduced is finite.
    fn look(&mut self, frozen: usize, reduced: &Argument) -> Result<()> {
        let (params, floats) = (self.layout.param_floats() as u64, self.layout.reduced_floats() as u64);
        let (grads, stats) = chunks(self.layout);
        let [of_grads, all, each] = [grads, grads + stats, CHUNK].map(|count| Argument::U32(count as u32));
        let [sums, scalars, found] = [&self.room.sums, &self.room.scalars, &self.room.found].map(address);
        let (params, floats) = (Argument::U64(params), Argument::U64(floats));
        self.push(("optim", "clear"), frozen, vec![reduced.clone(), address(&self.room.frozen)])?;
        let mut of_chunks = vec![sums, reduced.clone(), scalars, params, floats, of_grads];
        let mut of_find = of_chunks.clone();
        of_chunks.push(each.clone());
        self.push(("norm", "chunk_squares"), grads + stats, of_chunks)?;
        of_find.insert(0, found);
        of_find.extend([all, each]);
        self.push(("norm", "find"), 1, of_find)
    }

    /// What moves if all is finite: running statistics, parameters and moments, their average.
    fn move_on(&mut self, tables: &Tables, rule: Rule, vectors: &Vectors) -> Result<()> {
        let Vectors { state, moments, average, reduced } = vectors;
        let [trained, pools, scalars, found] =
            [&self.room.trained, &self.room.pools, &self.room.scalars, &self.room.found].map(address);
        let rates = Argument::Address(self.room.scalars.address() + SCALARS_BYTES as u64);
        let (state, reduced) = (Argument::Address(*state), Argument::Address(*reduced));
        let of_pool = vec![state.clone(), reduced.clone(), pools, scalars.clone(), found.clone()];
        self.push(("optim", "pool"), tables.pools.len(), of_pool)?;
        let mut of_update = vec![state.clone()];
        of_update.extend(moments.iter().map(|at| Argument::Address(*at)));
        of_update.extend([reduced, trained, scalars, rates, found.clone()]);
        self.push(("optim", function(&rule.optimizer)), tables.trained.len(), of_update)?;
        let (Some(decay), Some(average)) = (rule.ema, average) else { return Ok(()) };
        let count = self.layout.param_floats();
        let (each, rate) = (Argument::U32(PIECE as u32), Argument::F32(ema::rate(decay)));
        let of_follow = vec![Argument::Address(*average), state, Argument::U64(count as u64), each, rate, found];
        self.push(("optim", "follow"), count.div_ceil(PIECE), of_follow)
    }
}

fn address(span: &Span) -> Argument {
    Argument::Address(span.address())
}

/// The kernel of `optim.cu`.
fn function(optimizer: &Optimizer) -> &'static str {
    match optimizer {
        Optimizer::Sgd { momentum: 0.0, .. } => "sgd",
        Optimizer::Sgd { nesterov: false, .. } => "momentum",
        Optimizer::Sgd { nesterov: true, .. } => "nesterov",
        Optimizer::Adam { .. } | Optimizer::AdamW { .. } => "adam",
    }
}
