//! One update of the whole state from the reduced vector: pure arithmetic on flat vectors.
//!
//! Formulas and their order are PyTorch's (SGD, Adam, AdamW, `clip_grad_norm_`); the scalars of a step are
//! computed in f64 by the `libm` crate and rounded once. Every member of a job runs this on the same bits
//! and gets the same bits.
//!
//! Memory is read twice: once for the norm, which clipping must know before anything moves, and once for the update,
//! which corrects and clips each gradient again as it goes by (32 bytes a parameter for Adam).

use crate::network::{RunningPair, StateLayout};
use crate::real::sum;
use crate::simd::{Set, vectorised};
use crate::team::Team;
use elastic_spec::job::{LrSchedule, Optimizer};
use elastic_spec::layout::BLOCK_FLOATS;
use std::ops::Range;

mod rates;
mod runs;

pub use rates::{RateClass, Rates, StepRates};
pub use runs::{Run, runs_in};

/// What an update reads and writes.
#[derive(Debug)]
pub struct Update<'a> {
    pub layout: &'a StateLayout,
    /// The tree's sum; used up.
    pub reduced: &'a mut [f32],
    pub state: &'a mut [f32],
    /// [`moments_of`] vectors, each as long as the parameters, zero before the first step.
    pub moments: &'a mut [Vec<f32>],
    /// Steps done before this one.
    pub step: u64,
    pub lr: f64,
    /// B/n for n valid samples (or tokens); applied once, before clipping.
    pub correction: f32,
    pub clip_norm: Option<f64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct UpdateReport {
    /// Norm of the corrected gradient, before clipping. NaN where something is not finite.
    pub grad_norm: f64,
    /// The first place of the reduced vector whose number is not finite ([`StateLayout::tensor_at`] names it); then
    /// nothing was moved.
    pub not_finite: Option<usize>,
}

/// How many vectors of the parameters' length an optimizer keeps.
pub fn moments_of(optimizer: &Optimizer) -> usize {
    match optimizer {
        Optimizer::Sgd { momentum: 0.0, .. } => 0,
        Optimizer::Sgd { .. } => 1,
        Optimizer::Adam { .. } | Optimizer::AdamW { .. } => 2,
    }
}

/// [`apply_on`] on the caller's thread alone.
pub fn apply(optimizer: &Optimizer, update: Update<'_>) -> UpdateReport {
    apply_on(&Team::new(1), optimizer, update)
}

/// Applies one step; the bits do not depend on the team. A correction that is not finite (no valid sample anywhere)
/// leaves a gradient of zero and the running statistics as they are. Where the corrected gradient or a running
/// statistic is not finite, nothing moves at all: that is seen in the reduced vector alone, so every member decides alike.
pub fn apply_on(team: &Team, optimizer: &Optimizer, update: Update<'_>) -> UpdateReport {
    let _ieee = crate::float_mode::Ieee::enter();
    let Update { layout, reduced, state, moments, step, lr, correction, clip_norm } = update;
    let params = layout.param_floats();
    assert_eq!((reduced.len(), state.len()), (layout.reduced_floats(), layout.floats()), "the layout's lengths");
    assert_eq!(moments.len(), moments_of(optimizer), "the optimizer's moments");
    assert!(moments.iter().all(|m| m.len() == params), "a moment is as long as the parameters");
    let (grads, stats) = reduced.split_at_mut(params);
    let counts = correction.is_finite();
    let correction = if counts { correction } else { 1.0 };
    if !counts {
        grads.fill(0.0);
    }
    // What is not trained has no share in the norm, as if it had no gradient.
    for info in layout.params.iter().filter(|p| !p.trainable) {
        grads[info.offset..info.offset + info.len].fill(0.0);
    }
    let set = Set::best();
    let grad_norm = norm(team, set, grads, correction);
    let stats = if counts { &*stats } else { &[] };
    // Squares of f32 and their sums are finite in f64, so the norm is not where some gradient is not, and only there.
    if !grad_norm.is_finite() || stats.iter().any(|x| !(x * correction).is_finite()) {
        let all = grads.iter().chain(stats);
        let at = all.map(|x| x * correction).position(|x| !x.is_finite());
        return UpdateReport { grad_norm: f64::NAN, not_finite: Some(at.expect("a number is not finite")) };
    }
    if counts {
        layout.running.iter().for_each(|pair| pool(pair, params, stats, state, correction));
    }
    let clip = clip_norm.map_or(1.0, |largest| largest / (grad_norm + 1e-6)).min(1.0) as f32;
    let grads = Grads { sums: grads, correction, clip };
    let rates = StepRates::new(optimizer, step, lr);
    // The parts of the chunk that have the same rates: places in the chunk, scalars, gradients.
    let each = |chunk: usize, len: usize, part: &mut dyn FnMut(Range<usize>, Rates, Grads<'_>)| {
        let start = chunk * CHUNK;
        runs_in(&layout.params, start..start + len, |Run { at, class }| {
            part(at.start - start..at.end - start, rates.of(class), grads.part(at));
        });
    };
    let p = &mut state[..params];
    match (optimizer, moments) {
        (Optimizer::Sgd { .. }, []) => team.chunks(p, CHUNK, |_, i, p| {
            each(i, p.len(), &mut |run, rates, grads| sgd(set, rates, grads, &mut p[run]));
        }),
        (Optimizer::Sgd { nesterov, .. }, [m]) => team.chunks2((p, CHUNK), (m, CHUNK), |_, i, p, m| {
            each(i, p.len(), &mut |run, rates, grads| {
                let (p, m) = (&mut p[run.clone()], &mut m[run]);
                match nesterov {
                    true => nesterov_momentum(set, rates, grads, p, m),
                    false => momentum(set, rates, grads, p, m),
                }
            });
        }),
        (_, [m, v]) => team.chunks3([(p, CHUNK), (m, CHUNK), (v, CHUNK)], |i, p, m, v| {
            each(i, p.len(), &mut |run, rates, grads| {
                let (m, v) = (&mut m[run.clone()], &mut v[run.clone()]);
                adam(set, rates, grads, &mut p[run], m, v);
            });
        }),
        _ => unreachable!("the number of moments was checked"),
    }
    UpdateReport { grad_norm, not_finite: None }
}

/// Parameters of a task: half a megabyte of Adam's reads and writes.
const CHUNK: usize = 16 << 10;

/// The gradient: the tree's sums with two factors, each product rounded.
#[derive(Clone, Copy)]
struct Grads<'a> {
    sums: &'a [f32],
    correction: f32,
    /// 1 where nothing is clipped, which changes no bit.
    clip: f32,
}

impl Grads<'_> {
    fn part(&self, at: Range<usize>) -> Grads<'_> {
        Grads { sums: &self.sums[at], ..*self }
    }

    #[inline(always)]
    fn each(self) -> impl Iterator<Item = f32> {
        let Grads { correction, clip, .. } = self;
        self.sums.iter().map(move |sum| *sum * correction * clip)
    }
}

vectorised! {
    fn sgd[](rates: Rates, grads: Grads<'_>, p: &mut [f32]) {
        for (p, g) in p.iter_mut().zip(grads.each()) {
            *p -= rates.lr * (g + rates.coupled * *p);
        }
    }
}

vectorised! {
    fn momentum[](rates: Rates, grads: Grads<'_>, p: &mut [f32], m: &mut [f32]) {
        for ((p, g), m) in p.iter_mut().zip(grads.each()).zip(m) {
            *m = rates.beta[0] * *m + (g + rates.coupled * *p);
            *p -= rates.lr * *m;
        }
    }
}

vectorised! {
    fn nesterov_momentum[](rates: Rates, grads: Grads<'_>, p: &mut [f32], m: &mut [f32]) {
        for ((p, g), m) in p.iter_mut().zip(grads.each()).zip(m) {
            let g = g + rates.coupled * *p;
            *m = rates.beta[0] * *m + g;
            *p -= rates.lr * (g + rates.beta[0] * *m);
        }
    }
}

vectorised! {
    fn adam[](rates: Rates, grads: Grads<'_>, p: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        for (((p, g), m), v) in p.iter_mut().zip(grads.each()).zip(m).zip(v) {
            let g = g + rates.coupled * *p;
            *m += rates.rest[0] * (g - *m);
            *v = rates.beta[1] * *v + rates.rest[1] * g * g;
            *p = *p * rates.shrink - rates.size * (*m / (v.sqrt() / rates.root + rates.eps));
        }
    }
}

/// Root of the corrected gradient's sum of squares: f64, block by block on the fixed grid.
fn norm(team: &Team, set: Set, grads: &[f32], correction: f32) -> f64 {
    // As many blocks as 16 MB have: their sums lie on the stack.
    let mut sums = [0.0; 64];
    let mut total = 0.0;
    for many in grads.chunks(sums.len() * BLOCK_FLOATS) {
        let sums = &mut sums[..many.len().div_ceil(BLOCK_FLOATS)];
        team.chunks(sums, 1, |_, i, sum| {
            let block = &many[i * BLOCK_FLOATS..many.len().min((i + 1) * BLOCK_FLOATS)];
            sum[0] = square_sum(set, block, correction);
        });
        total = sums.iter().fold(total, |a, b| a + b);
    }
    libm::sqrt(total)
}

vectorised! {
    /// Sixteen running sums over ascending indices, as `real::sum` does.
    fn square_sum[](block: &[f32], correction: f32) -> f64 {
        let mut lanes = [0.0f64; 16];
        let (blocks, rest) = block.as_chunks::<16>();
        let square = |g: f32| (g * correction) as f64 * (g * correction) as f64;
        for sixteen in blocks {
            lanes.iter_mut().zip(sixteen).for_each(|(lane, g)| *lane += square(*g));
        }
        lanes.iter_mut().zip(rest).for_each(|(lane, g)| *lane += square(*g));
        sum(&lanes, |x| x)
    }
}

/// One running update from the moments of all shards about the old mean (`ops::BatchNorm`).
fn pool(pair: &RunningPair, params: usize, stats: &[f32], state: &mut [f32], correction: f32) {
    let momentum = pair.momentum as f32;
    for (mean, var) in pair.mean.clone().zip(pair.var.clone()) {
        let (off, square) = (stats[mean - params] * correction, stats[var - params] * correction);
        state[mean] += momentum * off;
        state[var] += momentum * ((square - off * off) - state[var]);
    }
}

/// The rate of step `step` (0 is the first) out of `steps`.
pub fn learning_rate(base: f64, schedule: &LrSchedule, step: u64, steps: u64) -> f64 {
    let (LrSchedule::Constant { warmup }
    | LrSchedule::Linear { warmup, .. }
    | LrSchedule::Cosine { warmup, .. }
    | LrSchedule::Step { warmup, .. }) = *schedule;
    if step < warmup {
        return base * (step + 1) as f64 / warmup as f64;
    }
    let since = step - warmup;
    let way = match steps.saturating_sub(1).saturating_sub(warmup) {
        0 => 1.0,
        all => (since as f64 / all as f64).min(1.0),
    };
    base * match *schedule {
        LrSchedule::Constant { .. } => 1.0,
        LrSchedule::Linear { end, .. } => 1.0 + (end - 1.0) * way,
        LrSchedule::Cosine { end, .. } => end + (1.0 - end) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * way)),
        LrSchedule::Step { every, gamma, .. } => libm::pow(gamma, (since / every.max(1)) as f64),
    }
}

#[cfg(test)]
mod edges;
#[cfg(test)]
mod tests;
