//! State that stays in the GPU's memory from step to step, and the optimizer that moves it there.

use super::run::Run;
use crate::driver::{Arena, Span};
use crate::error::Result;
use crate::loaded::Loaded;
use crate::lower::Region;
use crate::optim::{Now, OptimizerStep, Rule, Vectors};
use crate::plain;
use elastic_tensor::{Held as Step, StateLayout, UpdateReport};
use std::sync::Arc;

/// The optimizer's memory on the GPU. The launches go before what they read.
pub struct Held {
    step: OptimizerStep,
    rule: Rule,
    moments: Arc<Arena>,
    reduced: Arc<Arena>,
    /// The version that the moments are of.
    version: Option<u64>,
}

/// Vectors of the optimizer begin at multiples of it.
const ALIGN: u64 = 256;

impl Held {
    fn new(loaded: &Loaded, layout: &StateLayout, run: &Run, rule: Rule, moments: usize) -> Result<Held> {
        let params = layout.param_floats();
        let memory = Arena::new(run.stream.context(), vector_bytes(params) * moments as u64)?;
        let reduced = Arena::new(run.stream.context(), 4 * layout.reduced_floats() as u64)?;
        let mut at: Vec<u64> =
            (0..moments).map(|i| Ok(vector(&memory, i, params)?.address())).collect::<Result<_>>()?;
        let average = rule.ema.and_then(|_| at.pop());
        let vectors =
            Vectors { state: run.address(Region::State), moments: at, average, reduced: reduced.whole().address() };
        let step = OptimizerStep::new(loaded, &run.stream, layout, rule, &vectors)?;
        Ok(Held { step, rule, moments: memory, reduced, version: None })
    }
}

fn vector_bytes(floats: usize) -> u64 {
    (4 * floats as u64).next_multiple_of(ALIGN)
}

fn vector(memory: &Arc<Arena>, number: usize, floats: usize) -> Result<Span> {
    memory.span(vector_bytes(floats) * number as u64, 4 * floats as u64)
}

/// Moves the state from one version to the next; takes it from the host first, if the GPU has another.
pub fn advance(loaded: &Loaded, layout: &StateLayout, run: &mut Run, step: Step<'_>) -> Result<UpdateReport> {
    run.grow(Region::State, 4 * layout.floats() as u64)?;
    let rule = Rule { optimizer: *step.optimizer, clip_norm: step.clip_norm, ema: step.ema };
    let mut held = match run.held.take().filter(|held| held.rule == rule) {
        Some(held) => held,
        None => Held::new(loaded, layout, run, rule, step.moments.len())?,
    };
    if run.copied != Some(step.from) {
        run.copied = None;
        run.stream.copy_in(&run.span(Region::State, 0..step.state.len()), plain::bytes(step.state))?;
    }
    if held.version != Some(step.from) {
        for (number, moments) in step.moments.iter().enumerate() {
            run.stream.copy_in(&vector(&held.moments, number, moments.len())?, plain::bytes(moments))?;
        }
    }
    // Until it is done, nobody can say of which version the vectors are.
    (run.copied, held.version) = (None, None);
    run.stream.copy_in(&held.reduced.whole(), plain::bytes(step.reduced))?;
    held.step.set(Now { step: step.step, lr: step.lr, correction: step.correction });
    // SAFETY: the vectors are as long as the layout says; they and the step are there until the wait is over.
    unsafe { held.step.start(&run.stream) }?;
    run.stream.wait()?;
    let report = held.step.report();
    (run.copied, held.version) = (Some(step.to), Some(step.to));
    run.held = Some(held);
    Ok(report)
}

/// What is there of version `from` is there of version `to`.
pub fn carry(run: &mut Run, from: u64, to: u64) {
    let versions = [Some(&mut run.copied), run.held.as_mut().map(|held| &mut held.version)];
    for version in versions.into_iter().flatten().filter(|version| **version == Some(from)) {
        *version = Some(to);
    }
}

/// Copies the vectors that the last step left to the host.
pub fn read_back(run: &mut Run, state: &mut [f32], moments: &mut [Vec<f32>]) -> Result<()> {
    let held = run.held.as_ref().expect("a step was made on the device");
    let here = run.span(Region::State, 0..state.len());
    run.stream.copy_out(plain::bytes_mut(state), &here)?;
    for (number, moments) in moments.iter_mut().enumerate() {
        let here = vector(&held.moments, number, moments.len())?;
        run.stream.copy_out(plain::bytes_mut(moments), &here)?;
    }
    Ok(())
}
