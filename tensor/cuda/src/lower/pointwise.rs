//! Functions of one or two numbers, element by element, without broadcasting but for a sum's.

use super::each::each;
use super::{Launches, Site, given, numbers};
use elastic_tensor::graph::Type;
use elastic_tensor::ops::{Each, Scale};

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

/// The second operand may be repeated along leading axes, as a bias is.
pub(super) fn add(site: &Site<'_>, to: &mut Launches) {
    let (count, tail) = (site.y_len(0), site.x_len(1));
    if tail == count {
        return map2("add", site, to);
    }
    // However many axes there are, they are rows of the second operand's.
    let (whole, row) = (Type::float(&[count / tail, tail]), Type::float(&[tail]));
    each(Each::Add, &Site { types: &[whole.clone(), row], out_types: &[whole], ..*site }, to);
}

pub(super) fn scale(op: &Scale, site: &Site<'_>, to: &mut Launches) {
    let count = site.y_len(0);
    let shape = numbers(count.div_ceil(PER_THREAD));
    to.push("pointwise", "scale", shape, given![site.y[0], site.x[0], count, op.factor as f32]);
}
