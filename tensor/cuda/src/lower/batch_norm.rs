//! Batch norm with what follows it, its gradient, and batch norm for evaluation.

use super::norms::half_warps;
use super::{At, Given, LaunchShape, Launches, Site, blocks, given};
use elastic_tensor::graph::Type;
use elastic_tensor::ops::{BatchNorm, BatchNormEval, BatchNormGrad, MaxPool};

/// Most threads of a block that has a channel, and the lanes that have a plane: `batch_norm.cuh`.
const THREADS: usize = 1024;
const LANES: usize = 16;
/// Elements of a plane that half a warp takes at once, and how many such pieces a grid has at most.
const PIECE: usize = 1024;
const PIECES_MAX: usize = 1024;

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

    /// The last arguments of a kernel.
    fn given(self) -> Vec<Given> {
        let fits = |len: usize| u32::try_from(len).expect("an axis of 2^32 would be more than fits into a value");
        given![fits(self.samples), fits(self.channels), fits(self.plane)]
    }

    /// A block for each channel, with half a warp for each sample while there are enough threads.
    fn of_channels(self) -> LaunchShape {
        let threads = (self.samples * LANES).next_multiple_of(32).clamp(32, THREADS);
        blocks(self.channels, threads as u32)
    }

    /// Half a warp for each piece of a plane.
    fn elements(self) -> LaunchShape {
        let mut shape = half_warps(self.samples * self.channels);
        shape.grid[1] = self.plane.div_ceil(PIECE).min(PIECES_MAX) as u32;
        shape
    }
}

/// Launches what counts each sample's targets that are not ignored; gives where the counts will be.
fn counts(targets: (At, &Type), samples: usize, to: &mut Launches) -> At {
    let counts = to.room(samples);
    let each = targets.1.len() / samples.max(1);
    let threads = each.next_multiple_of(32).clamp(32, 256);
    to.push("batch_norm", "batch_norm_valid", blocks(samples, threads as u32), given![counts, targets.0, each]);
    counts
}

/// The size of a pool's planes, as the kernels' last arguments.
fn pool_given(image: &Type, out: &Type) -> Vec<Given> {
    given![image.shape[3] as u32, out.shape[2] as u32, out.shape[3] as u32]
}

pub(super) fn batch_norm(op: &BatchNorm, site: &Site<'_>, to: &mut Launches) {
    let (x, out) = (&site.types[0], &site.out_types[0]);
    let planes = Planes::of(x);
    let file = "batch_norm";
    let counts = counts((site.x[4], &site.types[4]), planes.samples, to);
    let [y, mean, rstd, moment1, moment2] = [0, 1, 2, 3, 4].map(|i| site.y[i]);
    let mut arguments = given![mean, rstd, moment1, moment2, site.x[0], site.x[3], counts, site.call];
    arguments.extend(planes.given());
    arguments.extend(given![op.eps as f32]);
    to.push(file, "batch_norm_statistics", planes.of_channels(), arguments);
    let mut arguments = given![y, site.x[0], mean, rstd, site.x[1], site.x[2]];
    arguments.extend(planes.given());
    arguments.extend(given![u32::from(op.relu)]);
    match squares(op.pool) {
        None => to.push(file, "batch_norm_apply", planes.elements(), arguments),
        Some(_) => {
            arguments.extend(pool_given(x, out));
            to.push(file, "batch_norm_pool", Planes::of(out).elements(), arguments);
        }
    }
}

/// Pools that are put behind a norm are of squares of two.
fn squares(pool: Option<MaxPool>) -> Option<MaxPool> {
    assert!(pool.is_none_or(|pool| (pool.kernel, pool.stride) == (2, 2)), "`fuse` takes no other pool");
    pool
}

pub(super) fn batch_norm_grad(op: &BatchNormGrad, site: &Site<'_>, to: &mut Launches) {
    let (x, dy) = (&site.types[0], &site.types[4]);
    let planes = Planes::of(x);
    let file = "batch_norm_grad";
    let counts = counts((site.x[5], &site.types[5]), planes.samples, to);
    let share = to.room(1);
    let [dx, dscale, dshift] = [0, 1, 2].map(|i| site.y[i]);
    let (sums, slopes, pool) = match squares(op.pool) {
        None => ("batch_norm_grad_sums", "batch_norm_grad", vec![]),
        Some(_) => ("batch_norm_grad_pool_sums", "batch_norm_grad_pool", pool_given(x, dy)),
    };
    let [mean, rstd] = [site.x[2], site.x[3]];
    let shared = given![site.x[0], site.x[4], mean, rstd, site.x[1], site.x[6], counts];
    let shared = [shared, planes.given(), given![u32::from(op.relu)], pool].concat();
    to.push(file, sums, planes.of_channels(), [given![dscale, dshift, share], shared.clone()].concat());
    to.push(file, slopes, planes.elements(), [given![dx, dscale, dshift, share], shared].concat());
}

pub(super) fn batch_norm_eval(op: &BatchNormEval, site: &Site<'_>, to: &mut Launches) {
    let planes = Planes::of(&site.types[0]);
    let [x, scale, shift, mean, var] = [0, 1, 2, 3, 4].map(|i| site.x[i]);
    let mut arguments = given![site.y[0], x, scale, shift, mean, var];
    arguments.extend(planes.given());
    arguments.extend(given![op.eps as f32]);
    to.push("batch_norm", "batch_norm_eval", planes.elements(), arguments);
}
