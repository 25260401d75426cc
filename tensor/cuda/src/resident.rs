//! Training by one process on one GPU: state, moments and sums stay in the GPU's memory, and a step is one graph.
//!
//! A step is what a job does: the leaves of all units, their sum along the tree, the optimizer's step. The host gives a
//! batch and a few scalars, and gets the scores of the batch's rows and a report. In f32 all bits are those of the processor.

use crate::call;
use crate::driver::{Arena, Graph, PinnedBytes, Span, Stream};
use crate::error::Result;
use crate::lower::Region;
use crate::network::CudaNetwork;
use crate::optim::{Now, OptimizerStep, Rule, Vectors};
use crate::plain;
use crate::program::{Bound, Program};
use elastic_spec::batch::Batch;
use elastic_spec::layout::Tail;
use elastic_tensor::passes::{self, Scores};
use elastic_tensor::{LeafKey, UpdateReport, moments_of};
use std::ops::Range;

/// How the shards of a step are taken: `units` full subtrees one after the other, each of `shards` shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    pub units: usize,
    pub shards: usize,
}

impl Units {
    /// As many shards at once as the network takes.
    pub fn of(shards: usize, at_once_max: usize) -> Units {
        let at_once = at_once_max.min(shards);
        Units { units: shards / at_once, shards: at_once }
    }
}

/// A job's state on a GPU, and its step. Fields are dropped in this order: what runs goes before the memory that it runs in.
pub struct Resident {
    graph: Option<Graph>,
    work: Work,
    stream: Stream,
    units: Units,
    steps: u64,
    memory: Memory,
}

/// What a step gives to the stream, and what it copies from and to.
struct Work {
    units: Vec<Unit>,
    optimizer: OptimizerStep,
    inputs: Span,
    inputs_here: PinnedBytes,
    scores_here: PinnedBytes,
    /// Places of the leaf that no op writes.
    unwritten: Vec<Span>,
}

struct Unit {
    pass: Bound,
    /// Takes the unit's sum up the tree; empty where it is the only one.
    climb: Bound,
    /// Of its rows' losses and hits.
    scores: [Span; 2],
    inputs: Inputs,
}

/// Where the parts of a unit's batch begin among the inputs of all.
#[derive(Clone, Debug, PartialEq)]
struct Inputs {
    call: Range<usize>,
    slots: Range<usize>,
    targets: Range<usize>,
    tokens: Range<usize>,
    features: Range<usize>,
}

/// Pieces of memory that kernels get begin at multiples of it.
const ALIGN: usize = 256;

impl Unit {
    fn bind(network: &CudaNetwork, units: Units, number: usize, inputs: Inputs, memory: &Memory) -> Result<Unit> {
        let ((pass, program), loaded) = (network.training(units.shards), &network.gpu().loaded);
        let base = |region| match (region, inputs.start_of(region)) {
            (_, Some(start)) => memory.inputs.address() + start as u64,
            (Region::Arena, None) => memory.arena.address(),
            (Region::State, None) => memory.state.address(),
            (Region::Out, None) => memory.out.address(),
            (_, None) => memory.room.address(),
        };
        let tree = |region| if region == Region::Out { memory.out.address() } else { memory.waiting.address() };
        let climb = Program::climb(network.passes().layout.reduced_floats(), (number, units.units));
        let scores = |value| part(&memory.arena, pass.plan.kept_range(value));
        Ok(Unit {
            pass: program.bind(loaded, base)?,
            climb: climb.bind(loaded, tree)?,
            scores: [scores(pass.loss)?, scores(pass.correct)?],
            inputs,
        })
    }
}

impl Inputs {
    /// One behind the other.
    fn of_units(units: usize, like: &Batch) -> Vec<Inputs> {
        let mut all: Vec<Inputs> = Vec::new();
        for _ in 0..units {
            all.push(Inputs::behind(all.last().map_or(0, |last| last.features.end), like));
        }
        all
    }

    /// Behind `end`, for batches as large as this one.
    fn behind(end: usize, like: &Batch) -> Inputs {
        let mut end = end;
        let mut next = |bytes: usize| {
            let at = end.next_multiple_of(ALIGN);
            end = at + bytes;
            at..end
        };
        Inputs {
            call: next(call::BYTES),
            slots: next(8 * like.slots.len()),
            targets: next(4 * like.targets.len()),
            tokens: next(4 * like.tokens.len()),
            features: next(4 * like.features.len()),
        }
    }

    fn write(&self, to: &mut [u8], batch: &Batch, key: LeafKey) {
        let LeafKey { seed, step, scale, label_smoothing } = key;
        let mut put = |range: &Range<usize>, bytes: &[u8]| to[range.clone()].copy_from_slice(bytes);
        put(&self.call, &call::bytes(seed, step, scale, label_smoothing));
        put(&self.slots, plain::bytes(&batch.slots));
        put(&self.targets, plain::bytes(&batch.targets));
        put(&self.tokens, plain::bytes(&batch.tokens));
        put(&self.features, plain::bytes(&batch.features));
    }

    fn start_of(&self, region: Region) -> Option<usize> {
        match region {
            Region::Call => Some(self.call.start),
            Region::Slots => Some(self.slots.start),
            Region::Targets => Some(self.targets.start),
            Region::Tokens => Some(self.tokens.start),
            Region::Features => Some(self.features.start),
            _ => None,
        }
    }
}

impl Resident {
    /// Takes a state to the GPU; moments begin with zeros. Every unit's batch will be as large as `like`.
    pub fn new(network: &CudaNetwork, rule: Rule, units: Units, like: &Batch, state: &[f32]) -> Result<Resident> {
        assert!(units.units.is_power_of_two(), "a step is a full tree of units, not {} of them", units.units);
        assert!(rule.ema.is_none(), "an average of the weights is kept by workers");
        let (layout, loaded) = (&network.passes().layout, &network.gpu().loaded);
        let stream = Stream::new(loaded.context())?;
        let inputs = Inputs::of_units(units.units, like);
        let memory = Memory::new(network, &rule, units, inputs.last().map_or(0, |last| last.features.end), &stream)?;
        stream.copy_in(&memory.state, plain::bytes(state))?;
        let places = inputs.into_iter().enumerate();
        let made = places.map(|(number, inputs)| Unit::bind(network, units, number, inputs, &memory));
        let made: Vec<Unit> = made.collect::<Result<_>>()?;
        let unwritten = network.passes().unwritten().into_iter().map(|range| part(&memory.out, range));
        let vectors = Vectors {
            state: memory.state.address(),
            moments: memory.moments.iter().map(Span::address).collect(),
            average: None,
            reduced: memory.out.address(),
        };
        let score_bytes: u64 = made.iter().flat_map(|unit| &unit.scores).map(Span::bytes).sum();
        let work = Work {
            units: made,
            optimizer: OptimizerStep::new(loaded, &stream, layout, rule, &vectors)?,
            inputs: memory.inputs.clone(),
            inputs_here: PinnedBytes::new(loaded.context(), memory.inputs.bytes() as usize)?,
            scores_here: PinnedBytes::new(loaded.context(), score_bytes as usize)?,
            unwritten: unwritten.collect::<Result<_>>()?,
        };
        Ok(Resident { graph: None, work, stream, units, steps: 0, memory })
    }

    /// One step on as many batches as there are units. The first runs launch by launch, which loads what is loaded late; the
    /// second is recorded, and all others replay it.
    pub fn step(&mut self, batches: &[Batch], key: LeafKey, now: Now) -> Result<(Tail, UpdateReport)> {
        assert_eq!(batches.len(), self.units.units, "a batch for each unit");
        for (unit, batch) in self.work.units.iter().zip(batches) {
            unit.inputs.write(self.work.inputs_here.as_mut_slice(), batch, key);
        }
        self.work.optimizer.set(now);
        self.steps += 1;
        let (work, stream) = (&mut self.work, &self.stream);
        // SAFETY: what the work reads and writes is this value's, and the wait below comes before anything of it is looked
        // at, written or dropped.
        unsafe {
            match (&self.graph, self.steps) {
                (Some(graph), _) => stream.replay(graph)?,
                (None, 1) => work.give(stream)?,
                (None, _) => {
                    let graph = Graph::capture(stream, |stream| work.give(stream))?;
                    stream.replay(self.graph.insert(graph))?;
                }
            }
        }
        stream.wait()?;
        Ok((self.tail(batches), self.work.optimizer.report()))
    }

    fn tail(&self, batches: &[Batch]) -> Tail {
        let mut rest = self.work.scores_here.as_slice();
        let scores = self.work.units.iter().map(|unit| {
            let mut next = |span: &Span| {
                let (mine, others) = rest.split_at(span.bytes() as usize);
                rest = others;
                mine.chunks_exact(4).map(|four| f32::from_ne_bytes([four[0], four[1], four[2], four[3]])).collect()
            };
            (next(&unit.scores[0]), next(&unit.scores[1]))
        });
        let scores: Vec<(Vec<f32>, Vec<f32>)> = scores.collect();
        let shards = self.units.shards;
        passes::tail_of(0..self.units.units, &|unit| {
            let scores = Scores { loss: &scores[unit].0, correct: &scores[unit].1 };
            passes::tail_of(0..shards, &|shard| scores.tail(&batches[unit], shards, shard))
        })
    }

    /// Parameters and buffers, as they are after the last step.
    pub fn state(&self) -> Result<Vec<f32>> {
        self.floats(&self.memory.state)
    }

    /// What the optimizer remembers, as it is after the last step.
    pub fn moments(&self) -> Result<Vec<Vec<f32>>> {
        self.memory.moments.iter().map(|span| self.floats(span)).collect()
    }

    /// What is held of the GPU's memory, but for the optimizer's tables and the programs' constants.
    pub fn device_bytes(&self) -> u64 {
        self.memory.bytes()
    }

    /// Kernels that a step launches.
    pub fn launches(&self) -> usize {
        let units = self.work.units.iter().map(|unit| unit.pass.len() + unit.climb.len());
        units.sum::<usize>() + self.work.optimizer.launches()
    }

    fn floats(&self, span: &Span) -> Result<Vec<f32>> {
        let mut floats = vec![0.0; span.bytes() as usize / 4];
        self.stream.copy_out(plain::bytes_mut(&mut floats), span)?;
        Ok(floats)
    }
}

impl Work {
    /// # Safety
    /// The memory that all was bound to lives, and nothing here is looked at, written or dropped, until the stream was waited
    /// for; of a recording, each replay of it.
    unsafe fn give(&mut self, stream: &Stream) -> Result<()> {
        let Work { units, optimizer, inputs, inputs_here, scores_here, unwritten } = self;
        let mut end = 0;
        // SAFETY: the spans lie in arenas of the sizes that plan, program and layout say; the rest is the caller's promise.
        unsafe {
            stream.copy_in_later(inputs, inputs_here, 0..inputs_here.as_slice().len())?;
            for unit in units {
                for place in &*unwritten {
                    stream.set_bytes(place, 0)?;
                }
                unit.pass.run(stream)?;
                unit.climb.run(stream)?;
                for scores in &unit.scores {
                    let range = end..end + scores.bytes() as usize;
                    end = range.end;
                    stream.copy_out_later(scores_here, range, scores)?;
                }
            }
            optimizer.start(stream)
        }
    }
}

/// All that a step reads and writes, but for the optimizer's tables and the programs' constants.
struct Memory {
    state: Span,
    moments: Vec<Span>,
    /// Of one unit, and then of more and more of them; in the end of all.
    out: Span,
    arena: Span,
    room: Span,
    /// Sums of units that wait for those of their right siblings, one a level.
    waiting: Span,
    inputs: Span,
}

impl Memory {
    /// Zeros.
    fn new(network: &CudaNetwork, rule: &Rule, units: Units, inputs: usize, stream: &Stream) -> Result<Memory> {
        let (layout, (pass, program)) = (&network.passes().layout, network.training(units.shards));
        let reduced = layout.reduced_floats();
        let zeros = |bytes: usize| {
            let span = Arena::new(stream.context(), bytes as u64)?.whole();
            // SAFETY: the span outlives the wait.
            unsafe { stream.set_bytes(&span, 0) }?;
            stream.wait().map(|()| span)
        };
        let moments = (0..moments_of(&rule.optimizer)).map(|_| zeros(4 * layout.param_floats()));
        Ok(Memory {
            state: zeros(4 * layout.floats())?,
            moments: moments.collect::<Result<_>>()?,
            out: zeros(4 * reduced)?,
            arena: zeros(4 * pass.plan.arena)?,
            room: zeros(program.room_bytes() as usize)?,
            waiting: zeros(4 * reduced * units.units.ilog2() as usize)?,
            inputs: zeros(inputs)?,
        })
    }

    fn bytes(&self) -> u64 {
        let Memory { state, moments, out, arena, room, waiting, inputs } = self;
        let all = moments.iter().chain([state, out, arena, room, waiting, inputs]);
        all.map(Span::bytes).sum()
    }
}

/// Some floats of a span.
fn part(of: &Span, floats: Range<usize>) -> Result<Span> {
    of.part(4 * floats.start as u64, 4 * floats.len() as u64)
}
