//! Ops that only choose and place elements: broadcast, permute, slice, concatenate, and a constant.

use super::walk::Walk;
use super::{At, Launches, Site, blocks, given, numbers};
use elastic_tensor::ops::{AXES_MAX, Concat, Permute, Slice, SliceGrad, Strides, contiguous, repeated};

pub(super) fn fill(value: f32, y: At, count: usize, to: &mut Launches) {
    to.push("fill", "fill", numbers(count), given![y, count, value]);
}

pub(super) fn broadcast(site: &Site<'_>, to: &mut Launches) {
    let shape = &site.out_types[0].shape;
    place(shape, (0, contiguous(shape)), (0, repeated(shape, &site.types[0].shape)), site.y[0], site.x[0], to);
}

pub(super) fn permute(op: &Permute, site: &Site<'_>, to: &mut Launches) {
    let (shape, own) = (&site.out_types[0].shape, contiguous(&site.types[0].shape));
    let mut strides = [0; AXES_MAX];
    strides.iter_mut().zip(&op.axes).for_each(|(stride, axis)| *stride = own[*axis]);
    place(shape, (0, contiguous(shape)), (0, strides), site.y[0], site.x[0], to);
}

pub(super) fn slice(op: &Slice, site: &Site<'_>, to: &mut Launches) {
    let part = &site.out_types[0].shape;
    place(part, (0, contiguous(part)), within(op, &site.types[0].shape), site.y[0], site.x[0], to);
}

/// Zeros first, then the part over them.
pub(super) fn slice_grad(op: &SliceGrad, site: &Site<'_>, to: &mut Launches) {
    fill(0.0, site.y[0], site.y_len(0), to);
    let part = &site.types[0].shape;
    place(part, within(&op.slice, &op.shape), (0, contiguous(part)), site.y[0], site.x[0], to);
}

/// Where the part begins in the whole, and the steps along its axes.
fn within(op: &Slice, whole: &[usize]) -> (usize, Strides) {
    let own = contiguous(whole);
    let (mut start, mut strides) = (0, [0; AXES_MAX]);
    for (axis, range) in op.ranges.iter().enumerate() {
        start += own[axis] as usize * range.start;
        strides[axis] = own[axis] * range.step;
    }
    (start, strides)
}

pub(super) fn concat(op: &Concat, site: &Site<'_>, to: &mut Launches) {
    let whole = contiguous(&site.out_types[0].shape);
    let mut start = 0;
    for (x, ty) in site.x.iter().zip(site.types) {
        place(&ty.shape, (start, whole), (0, contiguous(&ty.shape)), site.y[0], *x, to);
        start += whole[op.axis] as usize * ty.shape[op.axis];
    }
}

/// Threads of a block that transposes tiles.
const THREADS: u32 = 256;

/// A box of elements from their places in x to those in y.
fn place(shape: &[usize], to_y: (usize, Strides), from_x: (usize, Strides), y: At, x: At, to: &mut Launches) {
    for part in Walk::new(shape, &[to_y, from_x]).cut() {
        let (y, x) = (y.plus(part.operand(0).start), x.plus(part.operand(1).start));
        match part.tiles() {
            Some((tiles, count)) => to.push("shapes", "transpose", blocks(count, THREADS), given![y, x, tiles]),
            None => to.push("shapes", "place", numbers(part.chunks()), given![y, x, part.words(2)]),
        }
    }
}
