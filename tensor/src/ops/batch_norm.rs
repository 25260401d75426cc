//! Batch norm over a shard: y = (x - mean) / √(var + eps) · scale + shift, per channel.
//!
//! x: (sample, channel, …). Mean and (biased) variance are the shard's own, over its valid samples only: one
//! with no target but IGNORE pads a short batch and must not move the others. What the shard adds to the
//! pooled running statistics leaves as two moments about the running mean, weighted by the number of valid
//! targets: their sum over all shards is all that `optim` needs. Moments about a near centre do not cancel.
//!
//! Pooled, n values a shard and N in the whole batch, biased variances fall short of the batch's unbiased one
//! by 1/N on average. The factor 1 + n / (N (n - 1)) on each shard's makes up for it; with one shard it is
//! n / (n - 1), PyTorch's. N is taken from the scale, 1/B.

use super::*;
use crate::real::{sum, sum2};
use elastic_spec::batch::IGNORE;

/// Inputs: x, scale, shift, running mean, targets. Outputs: y, mean, 1/√(var + eps), and the shard's moments.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    pub eps: f64,
}

/// x as (sample, channel, plane).
#[derive(Clone, Copy)]
struct Planes {
    channels: usize,
    plane: usize,
}

impl Planes {
    fn of(x: &Type) -> Planes {
        Planes { channels: x.shape[1], plane: x.shape[2..].iter().product() }
    }

    /// `work(first element, channel, plane)` for each plane of `y`.
    fn each<F: Real>(self, team: &Team, y: &mut [F], work: impl Fn(usize, usize, &mut [F]) + Sync) {
        // Some planes a task: a small one alone is not worth handing out.
        let planes = (TASK / self.plane.max(1)).max(1);
        let chunk = (planes * self.plane).max(1);
        team.chunks(y, chunk, |_, i, y| {
            for (p, y) in y.chunks_exact_mut(self.plane.max(1)).enumerate() {
                let plane = i * planes + p;
                work(plane * self.plane, plane % self.channels, y);
            }
        });
    }

    /// The sample of an element.
    fn sample(self, at: usize) -> usize {
        at / (self.channels * self.plane)
    }

    fn at<F>(self, x: &[F], sample: usize, channel: usize) -> &[F] {
        &x[(sample * self.channels + channel) * self.plane..][..self.plane]
    }
}

/// Elements of a task that only reads and writes.
const TASK: usize = 8 << 10;

/// Sum over the parts, one after the other.
fn total<'a, F: Real>(parts: impl Iterator<Item = &'a [F]>, term: impl Fn(F) -> F) -> F {
    parts.fold(F::ZERO, |total, part| total + sum(part, &term))
}

/// Whether a sample has a target that counts.
fn is_valid(targets: &[i32], samples: usize, sample: usize) -> bool {
    let each = targets.len() / samples;
    targets[sample * each..][..each].iter().any(|t| *t != IGNORE)
}

fn check(x: &[&Type]) -> Result<(), String> {
    if x[0].shape.len() < 2 {
        return Err(format!("the input is {}, but needs axes (sample, channel, …)", x[0]));
    }
    for (index, name) in [(1, "the scale"), (2, "the shift"), (3, "the running mean")] {
        expect(x, index, name, &x[0].shape[1..2])?;
    }
    Ok(())
}

impl Rule for BatchNorm {
    const NAME: &'static str = "batch norm";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        check(x)?;
        let samples = x[0].shape[0];
        if x[4].shape.first() != Some(&samples) {
            return Err(format!("axis 0 (sample) of the input {} and of the targets {} differ", x[0], x[4]));
        }
        let channel = Type::float(&x[0].shape[1..2]);
        Ok(vec![x[0].clone(), channel.clone(), channel.clone(), channel.clone(), channel])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 5]) };
        let (x, scale, targets) = (node.inputs[0], node.inputs[1], node.inputs[4]);
        let inputs = [x, scale, node.outputs[1], node.outputs[2], dy, targets];
        let grads = graph.apply(Op::BatchNormGrad(BatchNormGrad), &node.path, &inputs)?;
        Ok(vec![Some(grads[0]), Some(grads[1]), Some(grads[2]), None, None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, mean, rstd, moment1, moment2, ..] = io.y;
        let [x, scale, shift, running, ..] = io.x;
        let (targets, samples) = (io.ints[4], io.types[0].shape[0]);
        let planes = Planes::of(&io.types[0]);
        let valid = |sample: &usize| is_valid(targets, samples, *sample);
        let count = F::of_usize((0..samples).filter(valid).count() * planes.plane);
        let weight = targets.iter().filter(|t| **t != IGNORE).count();
        let weight = F::of_usize(weight) * F::of(io.key.scale as f64);
        let whole = F::of(planes.plane as f64 / io.key.scale as f64);
        let bessel = if count > F::ONE { F::ONE + count / (whole * (count - F::ONE)) } else { F::ONE };
        let eps = F::of(self.eps);
        let mut found = std::mem::take(&mut io.work.rooms[0].parts);
        let found_here = take(&mut found, planes.channels * 4);
        let Work { team, rooms } = io.work;
        team.chunks(found_here, 4, |_, c, found| {
            let parts = || (0..samples).filter(valid).map(|s| planes.at(x, s, c));
            if count == F::ZERO {
                // A shard of padding alone has no statistics: its output is the shift, its gradient nothing. With a
                // variance of 0 each norm would multiply by 316, and twenty in a row reach infinity.
                found.copy_from_slice(&[running[c], F::ZERO, F::ZERO, F::ZERO]);
                return;
            }
            let m = total(parts(), |x| x) / count;
            let var = total(parts(), |x| (x - m) * (x - m)) / count;
            let off = m - running[c];
            let moments = (weight * off, weight * (var * bessel + off * off));
            found.copy_from_slice(&[m, F::ONE / (var + eps).sqrt(), moments.0, moments.1]);
        });
        for (c, found) in found_here.chunks_exact(4).enumerate() {
            (mean[c], rstd[c], moment1[c], moment2[c]) = (found[0], found[1], found[2], found[3]);
        }
        rooms[0].parts = found;
        let (mean, rstd) = (&*mean, &*rstd);
        planes.each(team, y, |at, c, y| {
            let (m, r, scale, shift) = (mean[c], rstd[c], scale[c], shift[c]);
            for (y, x) in y.iter_mut().zip(&x[at..]) {
                *y = (*x - m) * r * scale + shift;
            }
        });
    }
}

/// dx, dscale, dshift. Inputs: x, scale, mean, rstd, dy, targets.
#[derive(Clone, Debug)]
pub struct BatchNormGrad;

impl Rule for BatchNormGrad {
    const NAME: &'static str = "batch norm gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 4, "the gradient", &x[0].shape)?;
        Ok(vec![x[0].clone(), x[1].clone(), x[1].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, dscale, dshift, ..] = io.y;
        let [x, scale, mean, rstd, dy, ..] = io.x;
        let (targets, samples) = (io.ints[5], io.types[0].shape[0]);
        let planes = Planes::of(&io.types[0]);
        let count = (0..samples).filter(|s| is_valid(targets, samples, *s)).count() * planes.plane;
        let share = if count > 0 { F::ONE / F::of_usize(count) } else { F::ZERO };
        let Work { team, .. } = io.work;
        team.chunks2((dscale, 1), (dshift, 1), |_, c, dscale, dshift| {
            let (m, r) = (mean[c], rstd[c]);
            let (mut along, mut across) = (F::ZERO, F::ZERO);
            for s in 0..samples {
                let (x, dy) = (planes.at(x, s, c), planes.at(dy, s, c));
                along += sum(dy, |x| x);
                across += sum2(dy, x, |dy, x| dy * ((x - m) * r));
            }
            (dscale[0], dshift[0]) = (across, along);
        });
        let (dscale, dshift) = (&*dscale, &*dshift);
        planes.each(team, dx, |at, c, dx| {
            let share = if is_valid(targets, samples, planes.sample(at)) { share } else { F::ZERO };
            let (m, r) = (mean[c], rstd[c]);
            let (factor, along, across) = (scale[c] * r, dshift[c] * share, dscale[c] * share);
            for ((dx, x), dy) in dx.iter_mut().zip(&x[at..]).zip(&dy[at..]) {
                *dx = factor * (*dy - along - (*x - m) * r * across);
            }
        });
    }
}

/// Batch norm with the running statistics. Inputs: x, scale, shift, running mean, running variance.
#[derive(Clone, Debug)]
pub struct BatchNormEval {
    pub eps: f64,
}

impl Rule for BatchNormEval {
    const NAME: &'static str = "batch norm (evaluation)";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        check(x)?;
        expect(x, 4, "the running variance", &x[0].shape[1..2])?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let [x, scale, shift, mean, var, ..] = io.x;
        let planes = Planes::of(&io.types[0]);
        let eps = F::of(self.eps);
        planes.each(&io.work.team, y, |at, c, y| {
            let r = F::ONE / (var[c] + eps).sqrt();
            for (y, x) in y.iter_mut().zip(&x[at..]) {
                *y = (*x - mean[c]) * r * scale[c] + shift[c];
            }
        });
    }
}
