//! Pools over windows, and their gradients.

use super::{Launches, Site, Words, given, numbers};
use elastic_tensor::graph::Type;
use elastic_tensor::ops::{AvgPool, AvgPoolGrad, MaxPool, MaxPoolGrad};

pub(super) fn max_pool(op: MaxPool, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let windows = windows(op, &site.types[0], &site.out_types[0]);
    to.push("pools", "max_pool", numbers(count), given![site.y[0], site.x[0], count, windows]);
}

pub(super) fn max_pool_grad(op: &MaxPoolGrad, site: &Site<'_>, to: &mut Launches) {
    let ([dx, x, dy], count) = ([site.y[0], site.x[0], site.x[1]], site.y_len(0));
    let windows = || windows(op.0, &site.types[0], &site.types[1]);
    if op.0.stride >= op.0.kernel {
        return to.push("pools", "max_pool_grad_apart", numbers(count), given![dx, x, dy, count, windows()]);
    }
    let outputs = site.x_len(1);
    let winners = to.room(outputs);
    to.push("pools", "max_pool_winners", numbers(outputs), given![winners, x, outputs, windows()]);
    to.push("pools", "max_pool_grad", numbers(count), given![dx, winners, dy, count, windows()]);
}

pub(super) fn avg_pool(op: AvgPool, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let windows = windows(largest_of(op), &site.types[0], &site.out_types[0]);
    to.push("pools", "avg_pool", numbers(count), given![site.y[0], site.x[0], count, windows, share(op)]);
}

pub(super) fn avg_pool_grad(op: &AvgPoolGrad, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let windows = windows(largest_of(op.pool), &site.out_types[0], &site.types[0]);
    to.push("pools", "avg_pool_grad", numbers(count), given![site.y[0], site.x[0], count, windows, share(op.pool)]);
}

/// The same windows.
fn largest_of(AvgPool { kernel, stride }: AvgPool) -> MaxPool {
    MaxPool { kernel, stride }
}

/// What a window's mean is its sum times.
fn share(op: AvgPool) -> f32 {
    1.0 / (op.kernel * op.kernel) as f32
}

/// `struct Windows` of `pools.cu`.
fn windows(op: MaxPool, image: &Type, out: &Type) -> Words {
    let mut words = Words::default();
    for size in [image.shape[2], image.shape[3], out.shape[2], out.shape[3], op.kernel, op.stride] {
        words.u32(u32::try_from(size).expect("a side of an image is under 2^32"));
    }
    words
}
