//! The GPU's memory for one call at a time, and what runs in it.

use crate::call;
use crate::driver::{Arena, Context, Event, Graph, PinnedBytes, Span, Stream};
use crate::error::Result;
use crate::loaded::Loaded;
use crate::lower::Region;
use crate::network::held::Held;
use crate::network::segments::Segment;
use crate::plain;
use crate::program::{Bound, Program};
use elastic_spec::batch::Batch;
use elastic_tensor::LeafKey;
use elastic_tensor::exec::{At, Phase, Watch};
use elastic_tensor::ops::Op;
use elastic_tensor::passes::Pass;
use elastic_tensor::plan::Place;
use elastic_tensor::team::Team;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    Train,
    Evaluate,
}

#[derive(Clone, Copy)]
pub enum Kept {
    Loss,
    Correct,
}

/// What a call is given.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub state: &'a [f32],
    pub batch: &'a Batch,
    pub key: LeafKey,
}

#[derive(Clone, Copy)]
pub struct BatchBytes {
    pub features: u64,
    pub tokens: u64,
    pub targets: u64,
}

impl BatchBytes {
    pub fn of(batch: &Batch) -> BatchBytes {
        let bytes = |len: usize| 4 * len as u64;
        BatchBytes {
            features: bytes(batch.features.len()),
            tokens: bytes(batch.tokens.len()),
            targets: bytes(batch.targets.len()),
        }
    }
}

/// A pass that is bound to the run's memory. From its second call on each segment is a graph.
pub struct Ready {
    segments: Vec<ReadySegment>,
    bound: Bound,
    runs: u64,
}

struct ReadySegment {
    launches: Range<usize>,
    ready: Vec<Range<usize>>,
    graph: Option<Graph>,
    /// Behind its launches.
    done: Event,
}

/// The GPU's memory for one call at a time, and the host's threads. Fields are dropped in this order: what runs goes before the
/// memory that it runs in.
pub struct Run {
    ready: BTreeMap<(Which, usize), Ready>,
    /// The optimizer's part, where the state is held.
    pub held: Option<Held>,
    pub stream: Stream,
    /// What is copied to the host while the next segment runs.
    copies: Stream,
    leaf: Option<PinnedBytes>,
    regions: BTreeMap<Region, Arc<Arena>>,
    staging: Option<PinnedBytes>,
    /// The version of the state that calls have now, and that of the GPU's.
    pub version: Option<u64>,
    pub copied: Option<u64>,
    pub loss: Vec<f32>,
    pub correct: Vec<f32>,
    pub team: Team,
}

impl Run {
    pub fn new(context: &Arc<Context>, threads: usize) -> Result<Run> {
        Ok(Run {
            ready: BTreeMap::new(),
            held: None,
            stream: Stream::new(context)?,
            copies: Stream::new(context)?,
            leaf: None,
            regions: BTreeMap::new(),
            staging: None,
            version: None,
            copied: None,
            loss: Vec::new(),
            correct: Vec::new(),
            team: Team::new(threads),
        })
    }

    /// Whether that was done since the last of the regions grew.
    pub fn is_bound(&self, place: (Which, usize)) -> bool {
        self.ready.contains_key(&place)
    }

    /// Binds a program to the regions.
    pub fn bind(
        &mut self,
        place: (Which, usize),
        segments: &[Segment],
        (program, loaded): (&Program, &Loaded),
    ) -> Result<()> {
        let bound = program.bind(loaded, |region| self.address(region))?;
        let of_steps = |steps: &Range<usize>| {
            let all = &program.steps()[steps.clone()];
            all.first().map_or(0, |first| first.start)..all.last().map_or(0, |last| last.end)
        };
        let segments = segments.iter().map(|Segment { steps, ready }| {
            let done = Event::new(self.stream.context())?;
            Ok(ReadySegment { launches: of_steps(steps), ready: ready.clone(), graph: None, done })
        });
        let segments = segments.collect::<Result<_>>()?;
        self.ready.insert(place, Ready { segments, bound, runs: 0 });
        Ok(())
    }

    /// At least so many bytes of a region. What was bound to a smaller one is bound anew.
    pub fn grow(&mut self, region: Region, bytes: u64) -> Result<()> {
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
            (self.copied, self.held) = (None, None);
        }
        self.regions.insert(region, arena);
        Ok(())
    }

    pub fn address(&self, region: Region) -> u64 {
        self.regions.get(&region).map_or(0, |arena| arena.whole().address())
    }

    /// Some floats of a region.
    pub fn span(&self, region: Region, floats: Range<usize>) -> Span {
        let arena = self.regions.get(&region).expect("a pass has all of its regions");
        arena.span(4 * floats.start as u64, 4 * floats.len() as u64).expect("a region holds what its pass needs")
    }

    /// Copies the batch, the call and, if it is another one, the state.
    pub fn copy_in(&mut self, given: &Inputs<'_>) -> Result<()> {
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
        if self.version.is_none() || self.version != self.copied {
            self.copied = None;
            self.stream.copy_in(&self.regions[&Region::State].span(0, 4 * state.len() as u64)?, plain::bytes(state))?;
            self.copied = self.version;
        }
        Ok(())
    }

    /// Gives all of a pass to the GPU, segment by segment; behind each, its part of the leaf is on its way to the host's
    /// pinned memory. The first call runs launch by launch, which loads what is loaded late; the second records, and all
    /// others replay.
    pub fn launch(&mut self, place: (Which, usize)) -> Result<()> {
        let Ready { segments, bound, runs } = self.ready.get_mut(&place).expect("it was bound before");
        *runs += 1;
        for ReadySegment { launches, ready, graph, done } in segments {
            match (&graph, *runs) {
                // SAFETY: the regions are those that it was bound to, and the caller waits before they change.
                (_, 1) => unsafe { bound.run_some(&self.stream, launches.clone()) }?,
                (None, _) => {
                    let run = |stream: &Stream| {
                        // SAFETY: as above; a graph goes with its bound launches when a region grows.
                        unsafe { bound.run_some(stream, launches.clone()) }
                    };
                    *graph = Some(Graph::capture(&self.stream, run)?);
                }
                _ => {}
            }
            if let (Some(graph), true) = (&graph, *runs > 1) {
                // SAFETY: as above.
                unsafe { self.stream.replay(graph) }?;
            }
            self.stream.mark(done)?;
            if place.0 == Which::Train {
                self.copies.wait_for(done)?;
                let out = &self.regions[&Region::Out];
                let leaf = self.leaf.as_mut().expect("a training pass has its leaf's room");
                for floats in ready.iter() {
                    let span = out.span(4 * floats.start as u64, 4 * floats.len() as u64)?;
                    // SAFETY: the leaf is read only when the stream of copies was waited for.
                    unsafe { self.copies.copy_out_later(leaf, 4 * floats.start..4 * floats.end, &span) }?;
                }
            }
        }
        Ok(())
    }

    /// Waits for the leaf, and gives it to `out`.
    pub fn take_leaf(&mut self, out: &mut [f32]) -> Result<()> {
        self.copies.wait()?;
        let leaf = self.leaf.as_ref().expect("a training pass has its leaf's room");
        let bytes = 4 * out.len();
        plain::bytes_mut(out).copy_from_slice(&leaf.as_slice()[..bytes]);
        Ok(())
    }

    /// Pinned memory for a leaf of so many floats.
    pub fn make_leaf_room(&mut self, floats: usize) -> Result<()> {
        if self.leaf.as_ref().is_none_or(|leaf| leaf.as_slice().len() < 4 * floats) {
            self.leaf = Some(PinnedBytes::new(self.stream.context(), 4 * floats)?);
        }
        Ok(())
    }

    /// Waits after each of the plan's steps, and shows what it wrote.
    pub fn step_by_step(
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

    pub fn copy_scores(&mut self, kept: Kept, range: Range<usize>) -> Result<()> {
        let span = self.span(Region::Arena, range);
        let to = match kept {
            Kept::Loss => &mut self.loss,
            Kept::Correct => &mut self.correct,
        };
        to.resize(span.bytes() as usize / 4, 0.0);
        self.stream.copy_out(plain::bytes_mut(to), &span)
    }
}
