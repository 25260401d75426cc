//! Batch norm over a shard: y = (x - mean) / √(var + eps) · scale + shift, per channel.
//!
//! x: (sample, channel, …). Mean and (biased) variance are the shard's own, over its valid samples only: one
//! with no target but IGNORE pads a short batch and must not move the others. What the shard adds to the
//! pooled running statistics leaves as two moments about the running mean, weighted by the number of valid
//! targets: their sum over all shards is all that `optim` needs. Moments about a near centre do not cancel.
//!
//! A task is a channel: its planes, some 256 KiB of a usual batch, are read from memory once and then from the cache.
//! Sums run over sixteen lanes, plane by plane. A ReLU that follows is part of the op, and so is a max pool of squares of
//! two behind it (`fuse`), in both directions: the image between them is never written.
//!
//! Pooled, n values a shard and N in the whole batch, biased variances fall short of the batch's unbiased one
//! by 1/N on average. The factor 1 + n / (N (n - 1)) on each shard's makes up for it; with one shard it is
//! n / (n - 1), PyTorch's. N is taken from the scale, 1/B.

use super::max_pool::{largest_of_squares, to_winners_of_squares};
use super::windows::Windows;
use super::*;
use crate::real::{LANES, fold};
use crate::simd::{Set, prefetch, vectorised};
use crate::team::Channel;
use elastic_spec::batch::IGNORE;

/// Inputs: x, scale, shift, running mean, targets. Outputs: y, mean, 1/√(var + eps), and the shard's moments.
#[derive(Clone, Debug)]
pub struct BatchNorm {
    pub eps: f64,
    /// Whether y goes through a ReLU.
    pub relu: bool,
    /// What y goes through then: squares of two, side by side.
    pub pool: Option<MaxPool>,
}

/// x as (sample, channel, plane).
#[derive(Clone, Copy)]
struct Planes {
    samples: usize,
    channels: usize,
    plane: usize,
}

impl Planes {
    fn of(x: &Type) -> Planes {
        Planes { samples: x.shape[0], channels: x.shape[1], plane: x.shape[2..].iter().product() }
    }

    fn channel<F>(self, x: &[F], channel: usize) -> OneOf<'_, F> {
        OneOf { planes: self, x, channel }
    }
}

/// The planes of one channel.
#[derive(Clone, Copy)]
struct OneOf<'a, F> {
    planes: Planes,
    x: &'a [F],
    channel: usize,
}

impl<'a, F> OneOf<'a, F> {
    #[inline(always)]
    fn samples(self) -> std::ops::Range<usize> {
        0..self.planes.samples
    }

    #[inline(always)]
    fn at(self, sample: usize) -> &'a [F] {
        let Planes { channels, plane, .. } = self.planes;
        &self.x[(sample * channels + self.channel) * plane..][..plane]
    }

    /// The plane of the next sample: nothing after the last one.
    #[inline(always)]
    fn next(self, sample: usize) -> &'a [F] {
        if sample + 1 < self.planes.samples { self.at(sample + 1) } else { &[] }
    }
}

/// Which samples have a target that counts.
#[derive(Clone, Copy)]
struct Valid<'a> {
    targets: &'a [i32],
    samples: usize,
}

impl Valid<'_> {
    #[inline(always)]
    fn is(self, sample: usize) -> bool {
        let each = self.targets.len() / self.samples;
        self.targets[sample * each..][..each].iter().any(|t| *t != IGNORE)
    }

    fn count(self) -> usize {
        (0..self.samples).filter(|s| self.is(*s)).count()
    }
}

/// Adds a plane's terms to sixteen sums; those of one plane start at zero, so that long sums stay sharp. Written as
/// loops: of iterators with closures the compiler makes calls into the portable set.
macro_rules! add_plane {
    ($total:ident, ($($x:ident in $plane:expr, then $next:expr);+), $term:expr) => {{
        let mut lanes = [F::ZERO; LANES];
        let len = [$($plane.len()),+][0];
        $(let $x = &$plane[..len];)+
        let mut at = 0;
        while at + LANES <= len {
            $(prefetch($next, at);)+
            $(let $x: &[F; LANES] = $x[at..].first_chunk().expect("sixteen elements");)+
            for i in 0..LANES {
                $(let $x = $x[i];)+
                lanes[i] += $term;
            }
            at += LANES;
        }
        for i in at..len {
            $(let $x = $x[i];)+
            lanes[i - at] += $term;
        }
        for i in 0..LANES {
            $total[i] += lanes[i];
        }
    }};
}

vectorised! {
    /// Mean and biased variance of a channel over `count` elements of its valid samples.
    fn statistics[F: Real](x: OneOf<'_, F>, valid: Valid<'_>, count: F) -> (F, F) {
        let mut total = [F::ZERO; LANES];
        for sample in x.samples() {
            if valid.is(sample) {
                let (plane, after) = (x.at(sample), x.next(sample));
                add_plane!(total, (x in plane, then after), x);
            }
        }
        let mean = fold(total) / count;
        let mut total = [F::ZERO; LANES];
        for sample in x.samples() {
            if valid.is(sample) {
                add_plane!(total, (x in x.at(sample), then &[0u8; 0][..]), (x - mean) * (x - mean));
            }
        }
        (mean, fold(total) / count)
    }
}

/// What a channel's elements become: y = (x - mean) · rstd · scale + shift.
#[derive(Clone, Copy)]
struct Affine<F> {
    mean: F,
    rstd: F,
    scale: F,
    shift: F,
    relu: bool,
}

impl<F: Real> Affine<F> {
    #[inline(always)]
    fn of(self, x: F) -> F {
        let y = (x - self.mean) * self.rstd * self.scale + self.shift;
        if self.relu & (y <= F::ZERO) { F::ZERO } else { y }
    }

    /// dy where the ReLU let y pass.
    #[inline(always)]
    fn passed(self, x: F, dy: F) -> F {
        let y = (x - self.mean) * self.rstd * self.scale + self.shift;
        if self.relu & (y <= F::ZERO) { F::ZERO } else { dy }
    }
}

vectorised! {
    fn normalise[F: Real](x: OneOf<'_, F>, affine: Affine<F>, y: &mut Channel<'_, F>) {
        for sample in x.samples() {
            y.plane(sample).iter_mut().zip(x.at(sample)).for_each(|(y, x)| *y = affine.of(*x));
        }
    }
}

vectorised! {
    /// `normalise` and a pool of squares.
    fn normalise_and_pool[F: Real](x: OneOf<'_, F>, affine: Affine<F>, windows: Windows, y: &mut Channel<'_, F>) {
        for sample in x.samples() {
            largest_of_squares(windows, x.at(sample), y.plane(sample), |x| affine.of(x));
        }
    }
}

vectorised! {
    /// The pool's gradient: that of each square goes to its winner.
    fn unpool[F: Real](x: OneOf<'_, F>, dy: OneOf<'_, F>, affine: Affine<F>, windows: Windows, to: &mut [F]) {
        for (sample, to) in x.samples().zip(to.chunks_exact_mut(windows.image_len())) {
            to_winners_of_squares(windows, x.at(sample), dy.at(sample), to, |x| affine.of(x));
        }
    }
}

vectorised! {
    /// Sums over a channel of dy and of dy · (x - mean) · rstd.
    fn gradient_sums[F: Real](x: OneOf<'_, F>, dy: OneOf<'_, F>, affine: Affine<F>) -> (F, F) {
        let (mut along, mut across) = ([F::ZERO; LANES], [F::ZERO; LANES]);
        for sample in x.samples() {
            let (after, dy_after) = (x.next(sample), dy.next(sample));
            let (x, dy) = (x.at(sample), dy.at(sample));
            add_plane!(along, (x in x, then after; dy in dy, then dy_after), affine.passed(x, dy));
            let none = &[0u8; 0][..];
            add_plane!(across, (x in x, then none; dy in dy, then none), affine.passed(x, dy) * ((x - affine.mean) * affine.rstd));
        }
        (fold(along), fold(across))
    }
}

vectorised! {
    /// dx of a channel, of whose sums a sample takes `share`.
    fn gradients[F: Real](
        x: OneOf<'_, F>,
        dy: OneOf<'_, F>,
        affine: Affine<F>,
        sums: (F, F),
        share: F,
        valid: Valid<'_>,
        dx: &mut Channel<'_, F>,
    ) {
        let factor = affine.scale * affine.rstd;
        for sample in x.samples() {
            let share = if valid.is(sample) { share } else { F::ZERO };
            let (along, across) = (sums.0 * share, sums.1 * share);
            let inputs = x.at(sample).iter().zip(dy.at(sample));
            for (dx, (x, dy)) in dx.plane(sample).iter_mut().zip(inputs) {
                let dy = affine.passed(*x, *dy);
                *dx = factor * (dy - along - (*x - affine.mean) * affine.rstd * across);
            }
        }
    }
}

/// The shape of y: that of x, or of its pool.
fn pooled(pool: Option<MaxPool>, x: &Type) -> Result<Type, String> {
    match pool {
        None => Ok(x.clone()),
        Some(pool) => Ok(Type::float(&pool.out(x)?)),
    }
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
        Ok(vec![pooled(self.pool, x[0])?, channel.clone(), channel.clone(), channel.clone(), channel])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 5]) };
        let [x, scale, shift, _, targets] = node.inputs[..] else { unreachable!("`infer` saw five inputs") };
        let inputs = [x, scale, node.outputs[1], node.outputs[2], dy, targets, shift];
        let op = Op::BatchNormGrad(BatchNormGrad { relu: self.relu, pool: self.pool });
        let grads = graph.apply(op, &node.path, &inputs)?;
        Ok(vec![Some(grads[0]), Some(grads[1]), Some(grads[2]), None, None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, mean, rstd, moment1, moment2, ..] = io.y;
        let [x, scale, shift, running, ..] = io.x;
        let (planes, out, targets) = (Planes::of(&io.types[0]), Planes::of(&io.out_types[0]), io.ints[4]);
        let windows = self.pool.map(|pool| Windows::new(pool, &io.types[0]));
        if planes.channels == 0 {
            return;
        }
        let valid = Valid { targets, samples: planes.samples };
        let count = F::of_usize(valid.count() * planes.plane);
        let weight = targets.iter().filter(|t| **t != IGNORE).count();
        let weight = F::of_usize(weight) * F::of(io.key.scale as f64);
        let whole = F::of(planes.plane as f64 / io.key.scale as f64);
        let bessel = if count > F::ONE { F::ONE + count / (whole * (count - F::ONE)) } else { F::ONE };
        let (eps, set) = (F::of(self.eps), Set::best());
        let mut found = std::mem::take(&mut io.work.rooms[0].parts);
        let found_here = take(&mut found, planes.channels * 4);
        let Work { team, rooms } = io.work;
        team.channels_in(rooms, (y, out.channels, out.plane), (found_here, 4), |_, c, mut y, found| {
            let x = planes.channel(x, c);
            // A shard of padding alone has no statistics: its output is the shift, its gradient nothing. With a
            // variance of 0 each norm would multiply by 316, and twenty in a row reach infinity.
            let mut here = [running[c], F::ZERO, F::ZERO, F::ZERO];
            if count > F::ZERO {
                let (m, var) = statistics(set, x, valid, count);
                let off = m - running[c];
                here = [m, F::ONE / (var + eps).sqrt(), weight * off, weight * (var * bessel + off * off)];
            }
            found.copy_from_slice(&here);
            let affine = Affine { mean: here[0], rstd: here[1], scale: scale[c], shift: shift[c], relu: self.relu };
            match windows {
                None => normalise(set, x, affine, &mut y),
                Some(windows) => normalise_and_pool(set, x, affine, windows, &mut y),
            }
        });
        for (c, found) in found_here.chunks_exact(4).enumerate() {
            (mean[c], rstd[c], moment1[c], moment2[c]) = (found[0], found[1], found[2], found[3]);
        }
        rooms[0].parts = found;
    }
}

/// dx, dscale, dshift. Inputs: x, scale, mean, rstd, dy, targets, shift.
#[derive(Clone, Debug)]
pub struct BatchNormGrad {
    pub relu: bool,
    pub pool: Option<MaxPool>,
}

impl Rule for BatchNormGrad {
    const NAME: &'static str = "batch norm gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 4, "the gradient", &pooled(self.pool, x[0])?.shape)?;
        Ok(vec![x[0].clone(), x[1].clone(), x[1].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, dscale, dshift, ..] = io.y;
        let [x, scale, mean, rstd, dy, _, shift, ..] = io.x;
        let (planes, of_dy) = (Planes::of(&io.types[0]), Planes::of(&io.types[4]));
        let windows = self.pool.map(|pool| Windows::new(pool, &io.types[0]));
        if planes.channels == 0 {
            return;
        }
        let valid = Valid { targets: io.ints[5], samples: planes.samples };
        let count = valid.count() * planes.plane;
        let share = if count > 0 { F::ONE / F::of_usize(count) } else { F::ZERO };
        let set = Set::best();
        let mut found = std::mem::take(&mut io.work.rooms[0].parts);
        let found_here = take(&mut found, planes.channels * 2);
        let Work { team, rooms } = io.work;
        team.channels_in(rooms, (dx, planes.channels, planes.plane), (found_here, 2), |room, c, mut dx, found| {
            let (x, dy) = (planes.channel(x, c), of_dy.channel(dy, c));
            let affine = Affine { mean: mean[c], rstd: rstd[c], scale: scale[c], shift: shift[c], relu: self.relu };
            let dy = match windows {
                None => dy,
                // Made once for both passes: a channel's planes lie in the cache.
                Some(windows) => {
                    let wide = take(&mut room.columns, planes.samples * planes.plane);
                    unpool(set, x, dy, affine, windows, wide);
                    Planes { channels: 1, ..planes }.channel(&*wide, 0)
                }
            };
            let sums = gradient_sums(set, x, dy, affine);
            found.copy_from_slice(&[sums.0, sums.1]);
            gradients(set, x, dy, affine, sums, share, valid, &mut dx);
        });
        for (c, found) in found_here.chunks_exact(2).enumerate() {
            (dshift[c], dscale[c]) = (found[0], found[1]);
        }
        rooms[0].parts = found;
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
        let (planes, set, eps) = (Planes::of(&io.types[0]), Set::best(), F::of(self.eps));
        // A sample a task: in a call of its own it has the same bits.
        io.work.team.chunks(y, (planes.channels * planes.plane).max(1), |_, sample, y| {
            for (c, y) in y.chunks_exact_mut(planes.plane.max(1)).enumerate() {
                let rstd = F::ONE / (var[c] + eps).sqrt();
                let affine = Affine { mean: mean[c], rstd, scale: scale[c], shift: shift[c], relu: false };
                each::map_chunk(set, y, planes.channel(x, c).at(sample), |x| affine.of(x));
            }
        });
    }
}
