//! Functions of one or two numbers, element by element, without broadcasting.

use super::{Launches, Site, given, numbers};
use elastic_tensor::ops::Scale;

/// A thread takes four numbers at a time.
const PER_THREAD: usize = 4;

/// y = f(a).
pub(super) fn map(function: &'static str, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let shape = numbers(count.div_ceil(PER_THREAD));
    to.push("pointwise", function, shape, given![site.y[0], site.x[0], count]);
}

/// y = f(a, b), for operands of one shape.
pub(super) fn map2(function: &'static str, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let shape = numbers(count.div_ceil(PER_THREAD));
    to.push("pointwise", function, shape, given![site.y[0], site.x[0], site.x[1], count]);
}

pub(super) fn scale(op: &Scale, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let shape = numbers(count.div_ceil(PER_THREAD));
    to.push("pointwise", "scale", shape, given![site.y[0], site.x[0], count, op.factor as f32]);
}
