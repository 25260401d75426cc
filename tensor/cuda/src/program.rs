//! A plan as launches for a GPU: lowered once, bound to addresses once, run as often as wanted.

use crate::driver::{Arena, Argument, Function, LaunchShape, Stream};
use crate::error::Result;
use crate::loaded::Loaded;
use crate::lower::{At, Given, Launches, NoKernel, Region, Site, climb, lower};
use crate::plain;
use elastic_spec::job::Dtype;
use elastic_tensor::graph::{OneByOne, Part, Type};
use elastic_tensor::plan::{Place, Plan, Step};
use std::ops::Range;
use std::sync::Arc;

/// A plan's launches.
#[derive(Clone, Debug)]
pub struct Program {
    launches: Launches,
    /// The launches of each of the plan's steps.
    steps: Vec<Range<usize>>,
}

impl Program {
    /// Of a plan for `shards` shards with `samples` samples in all, whose products read operands of `dtype`.
    pub fn of(plan: &Plan, dtype: Dtype, shards: usize, samples: usize) -> std::result::Result<Program, NoKernel> {
        let (mut launches, mut steps) = (Launches::default(), Vec::new());
        for step in &plan.steps {
            launches.free_room(0);
            let start = launches.list.len();
            of_step(step, dtype, (shards, samples), &mut launches)?;
            steps.push(start..launches.list.len());
        }
        Ok(Program { launches, steps })
    }

    /// Of launches as they are.
    pub fn of_launches(launches: Launches) -> Program {
        let all = 0..launches.list.len();
        Program { launches, steps: vec![all] }
    }

    /// What takes unit number `unit` of `units` up the tree: `Out` holds its sum, `Room` those that wait, one a level.
    pub(crate) fn climb(floats: usize, (unit, units): (usize, usize)) -> Program {
        let mut launches = Launches::default();
        if units > 1 {
            climb(At::start(Region::Out), At::start(Region::Room), floats, (unit, units), &mut launches);
        }
        Program { launches, steps: Vec::new() }
    }

    pub fn launches(&self) -> &Launches {
        &self.launches
    }

    /// The launches of each of the plan's steps.
    pub fn steps(&self) -> &[Range<usize>] {
        &self.steps
    }

    /// Bytes that kernels need besides the plan's own.
    pub fn room_bytes(&self) -> u64 {
        self.launches.room_bytes
    }

    /// Bytes of the constants that a bound program keeps on the GPU.
    pub fn constant_bytes(&self) -> u64 {
        4 * self.launches.constants.len() as u64
    }

    /// Loads the functions, copies the constants, and puts addresses in the places of regions.
    pub fn bind(&self, loaded: &Loaded, base: impl Fn(Region) -> u64) -> Result<Bound> {
        let constants = Arena::new(loaded.context(), self.constant_bytes())?;
        if !self.launches.constants.is_empty() {
            Stream::new(loaded.context())?.copy_in(&constants.whole(), plain::bytes(&self.launches.constants))?;
        }
        let base = |region| match region {
            Region::Constants => constants.whole().address(),
            other => base(other),
        };
        let bound = self.launches.list.iter().map(|launch| {
            let function = loaded.function(launch.file, launch.function, launch.shape.shared_bytes)?;
            let address = |at: &At| base(at.region) + at.byte;
            let arguments = launch.given.iter().map(|given| match given {
                Given::At(at) => Argument::Address(address(at)),
                Given::U64(value) => Argument::U64(*value),
                Given::U32(value) => Argument::U32(*value),
                Given::I32(value) => Argument::I32(*value),
                Given::F32(value) => Argument::F32(*value),
                Given::Struct(words) => Argument::Struct(words.clone()),
                Given::Addresses(all) => Argument::Struct(all.iter().map(address).collect()),
            });
            Ok((function, launch.shape, arguments.collect()))
        });
        let launches = bound.collect::<Result<_>>()?;
        Ok(Bound { launches, _constants: constants })
    }
}

/// A program whose addresses are known.
pub struct Bound {
    launches: Vec<(Function, LaunchShape, Vec<Argument>)>,
    /// Launches read it.
    _constants: Arc<Arena>,
}

#[allow(clippy::len_without_is_empty, reason = "nobody asks whether a program does nothing")]
impl Bound {
    /// Kernels that it launches.
    pub fn len(&self) -> usize {
        self.launches.len()
    }

    /// Gives all launches to the stream.
    ///
    /// # Safety
    /// The regions that it was bound to are as large as plan and program say; neither they nor this are freed before the
    /// stream was waited for.
    pub unsafe fn run(&self, stream: &Stream) -> Result<()> {
        // SAFETY: the caller's promise is handed on.
        unsafe { self.run_some(stream, 0..self.launches.len()) }
    }

    /// Gives some of the launches to the stream.
    ///
    /// # Safety
    /// As for [`Bound::run`].
    pub unsafe fn run_some(&self, stream: &Stream, range: Range<usize>) -> Result<()> {
        for (function, shape, arguments) in &self.launches[range] {
            // SAFETY: lowering gives each kernel the parameters of its source; the rest is the caller's promise.
            unsafe { stream.launch(function, *shape, arguments) }?;
        }
        Ok(())
    }
}

fn at(place: &Place) -> At {
    let floats = |region, range: &Range<usize>| At { region, byte: 4 * range.start as u64 };
    match place {
        Place::Arena(range) => floats(Region::Arena, range),
        Place::State(range) => floats(Region::State, range),
        Place::Out(range) => floats(Region::Out, range),
        Place::Features => At::start(Region::Features),
        Place::Tokens => At::start(Region::Tokens),
        Place::Targets => At::start(Region::Targets),
        Place::Integers(range) => floats(Region::Tokens, range),
    }
}

fn of_step(
    step: &Step,
    dtype: Dtype,
    (shards, samples): (usize, usize),
    to: &mut Launches,
) -> std::result::Result<(), NoKernel> {
    let x: Vec<At> = step.inputs.iter().map(at).collect();
    let mut y = vec![At::start(Region::Arena); step.outputs.len()];
    step.outputs.iter().for_each(|(slot, place)| y[*slot] = at(place));
    let site = Site {
        x: &x,
        y: &y,
        types: &step.types,
        out_types: &step.out_types,
        path: &step.path,
        dtype,
        shards,
        samples,
        slots: At::start(Region::Slots),
        call: At::start(Region::Call),
    };
    match &step.one_by_one {
        None => lower(&step.op, &site, to),
        Some(one) => one_by_one(step, one, &site, to),
    }
}

/// An op on each shard's part of the values, one after the other; the sums' leaves are added along the tree.
fn one_by_one(step: &Step, one: &OneByOne, site: &Site<'_>, to: &mut Launches) -> std::result::Result<(), NoKernel> {
    let levels = one.shards.ilog2() as usize;
    let len = |ty: &Type| ty.len();
    let sums: Vec<At> = one.out_types.iter().map(|ty| to.room(levels * len(ty))).collect();
    let mark = to.room_mark();
    let samples = site.samples / one.shards;
    for shard in 0..one.shards {
        to.free_room(mark);
        let own = |(at, (is_own, ty)): (&At, (&bool, &Type))| if *is_own { at.plus(shard * len(ty)) } else { *at };
        let x: Vec<At> = site.x.iter().zip(one.x.iter().zip(&one.types)).map(own).collect();
        let is_own: Vec<bool> = one.y.iter().map(|part| *part == Part::OneBehindTheOther).collect();
        let y: Vec<At> = site.y.iter().zip(is_own.iter().zip(&one.out_types)).map(own).collect();
        let slots = At { byte: site.slots.byte + 8 * (shard * samples) as u64, ..site.slots };
        let (types, out_types) = (&one.types[..], &one.out_types[..]);
        lower(&step.op, &Site { x: &x, y: &y, types, out_types, shards: 1, samples, slots, ..*site }, to)?;
        for (i, part) in one.y.iter().enumerate().filter(|(_, part)| **part == Part::Sum) {
            debug_assert!(*part == Part::Sum);
            climb(y[i], sums[i], len(&one.out_types[i]), (shard, one.shards), to);
        }
    }
    Ok(())
}
