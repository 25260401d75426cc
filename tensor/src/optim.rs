//! One update of the whole state from the reduced vector: pure arithmetic on flat vectors.
//!
//! Formulas and their order are PyTorch's (SGD, Adam, AdamW, `clip_grad_norm_`); the scalars of a step are
//! computed in f64 by the `libm` crate and rounded once. Every member of a job runs this on the same bits
//! and gets the same bits.

use crate::network::{RunningPair, StateLayout};
use crate::real::sum;
use elastic_spec::job::{LrSchedule, Optimizer};
use elastic_spec::layout::BLOCK_FLOATS;

/// What an update reads and writes.
#[derive(Debug)]
pub struct Update<'a> {
    pub layout: &'a StateLayout,
    /// The tree's sum; corrected and clipped in place.
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
    /// Norm of the corrected gradient, before clipping.
    pub grad_norm: f64,
}

/// How many vectors of the parameters' length an optimizer keeps.
pub fn moments_of(optimizer: &Optimizer) -> usize {
    match optimizer {
        Optimizer::Sgd { momentum: 0.0, .. } => 0,
        Optimizer::Sgd { .. } => 1,
        Optimizer::Adam { .. } | Optimizer::AdamW { .. } => 2,
    }
}

/// Applies one step. A correction that is not finite (no valid sample anywhere) leaves a gradient of zero
/// and the running statistics as they are.
pub fn apply(optimizer: &Optimizer, update: Update<'_>) -> UpdateReport {
    let _ieee = crate::float_mode::Ieee::enter();
    let Update { layout, reduced, state, moments, step, lr, correction, clip_norm } = update;
    let params = layout.param_floats();
    assert_eq!((reduced.len(), state.len()), (layout.reduced_floats(), layout.floats()), "the layout's lengths");
    assert_eq!(moments.len(), moments_of(optimizer), "the optimizer's moments");
    assert!(moments.iter().all(|m| m.len() == params), "a moment is as long as the parameters");
    let (grads, stats) = reduced.split_at_mut(params);
    if correction.is_finite() {
        grads.iter_mut().for_each(|g| *g *= correction);
        layout.running.iter().for_each(|pair| pool(pair, params, stats, state, correction));
    } else {
        grads.fill(0.0);
    }
    let grad_norm = norm(grads);
    if let Some(largest) = clip_norm {
        let factor = largest / (grad_norm + 1e-6);
        if factor < 1.0 {
            grads.iter_mut().for_each(|g| *g *= factor as f32);
        }
    }
    let rates = Rates::new(optimizer, step, lr);
    for info in layout.params.iter().filter(|p| p.trainable) {
        let range = info.offset..info.offset + info.len;
        let (p, g) = (&mut state[range.clone()], &grads[range.clone()]);
        match (optimizer, &mut *moments) {
            (Optimizer::Sgd { .. }, []) => rates.sgd(info.decay, p, g),
            (Optimizer::Sgd { nesterov: false, .. }, [m]) => rates.momentum(info.decay, p, g, &mut m[range]),
            (Optimizer::Sgd { nesterov: true, .. }, [m]) => rates.nesterov(info.decay, p, g, &mut m[range]),
            (_, [m, v]) => rates.adam(info.decay, p, g, &mut m[range.clone()], &mut v[range]),
            _ => unreachable!("the number of moments was checked"),
        }
    }
    UpdateReport { grad_norm }
}

/// The scalars of one step.
struct Rates {
    lr: f32,
    /// L2 decay added to the gradient.
    coupled: f32,
    /// Factor on the parameter before the step.
    shrink: f32,
    beta: [f32; 2],
    rest: [f32; 2],
    /// lr over the first moment's bias correction.
    size: f32,
    /// Root of the second moment's bias correction.
    root: f32,
    eps: f32,
}

impl Rates {
    fn new(optimizer: &Optimizer, step: u64, lr: f64) -> Rates {
        let none = Rates {
            lr: lr as f32,
            coupled: 0.0,
            shrink: 1.0,
            beta: [0.0; 2],
            rest: [1.0; 2],
            size: 0.0,
            root: 1.0,
            eps: 0.0,
        };
        let adam = |beta1: f64, beta2: f64, eps: f64| {
            let t = (step + 1) as f64;
            Rates {
                beta: [beta1 as f32, beta2 as f32],
                rest: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
                size: (lr / (1.0 - libm::pow(beta1, t))) as f32,
                root: libm::sqrt(1.0 - libm::pow(beta2, t)) as f32,
                eps: eps as f32,
                ..none
            }
        };
        match *optimizer {
            Optimizer::Sgd { momentum, weight_decay, .. } => {
                Rates { coupled: weight_decay as f32, beta: [momentum as f32, 0.0], ..none }
            }
            Optimizer::Adam { beta1, beta2, eps, weight_decay } => {
                Rates { coupled: weight_decay as f32, ..adam(beta1, beta2, eps) }
            }
            Optimizer::AdamW { beta1, beta2, eps, weight_decay } => {
                Rates { shrink: (1.0 - lr * weight_decay) as f32, ..adam(beta1, beta2, eps) }
            }
        }
    }

    fn decay(&self, applies: bool) -> f32 {
        if applies { self.coupled } else { 0.0 }
    }

    fn sgd(&self, decays: bool, p: &mut [f32], g: &[f32]) {
        let decay = self.decay(decays);
        for (p, g) in p.iter_mut().zip(g) {
            *p -= self.lr * (*g + decay * *p);
        }
    }

    fn momentum(&self, decays: bool, p: &mut [f32], g: &[f32], m: &mut [f32]) {
        let decay = self.decay(decays);
        for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
            *m = self.beta[0] * *m + (*g + decay * *p);
            *p -= self.lr * *m;
        }
    }

    fn nesterov(&self, decays: bool, p: &mut [f32], g: &[f32], m: &mut [f32]) {
        let decay = self.decay(decays);
        for ((p, g), m) in p.iter_mut().zip(g).zip(m) {
            let g = *g + decay * *p;
            *m = self.beta[0] * *m + g;
            *p -= self.lr * (g + self.beta[0] * *m);
        }
    }

    fn adam(&self, decays: bool, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
        let (decay, shrink) = (self.decay(decays), if decays { self.shrink } else { 1.0 });
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = *g + decay * *p;
            *m += self.rest[0] * (g - *m);
            *v = self.beta[1] * *v + self.rest[1] * g * g;
            *p = *p * shrink - self.size * (*m / (v.sqrt() / self.root + self.eps));
        }
    }
}

/// Root of the sum of squares: f64, block by block on the fixed grid.
fn norm(grads: &[f32]) -> f64 {
    let block = |block: &[f32]| square_sum(block);
    libm::sqrt(grads.chunks(BLOCK_FLOATS).map(block).fold(0.0, |a, b| a + b))
}

/// Sixteen running sums over ascending indices, as `real::sum` does.
fn square_sum(block: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 16];
    for sixteen in block.chunks(16) {
        for (lane, g) in lanes.iter_mut().zip(sixteen) {
            *lane += *g as f64 * *g as f64;
        }
    }
    sum(&lanes, |x| x)
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
mod tests;
