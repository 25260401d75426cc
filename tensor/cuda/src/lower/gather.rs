//! Elements by index along an axis, and their gradients.

use super::{Launches, Site, given, numbers, sort};
use elastic_tensor::ops::{Gather, GatherGrad};

pub(super) fn gather(op: &Gather, site: &Site<'_>, to: &mut Launches) {
    let Axis { n, uses, inner, .. } = axis(&site.types[0].shape, &site.types[1].shape, op.axis);
    let count = site.y_len(0);
    let all = given![site.y[0], site.x[0], site.x[1], count, n, uses, inner];
    to.push("gather", "gather", numbers(count), all);
}

pub(super) fn gather_grad(op: &GatherGrad, site: &Site<'_>, to: &mut Launches) {
    let Axis { outer, n, uses, inner } = axis(&op.shape, &site.types[1].shape, op.axis);
    let ([dx, dy, at], len) = ([site.y[0], site.x[0], site.x[1]], site.y_len(0));
    to.push("fill", "fill", numbers(len), given![dx, len, 0.0f32]);
    let (columns, count) = (outer * inner, outer * uses * inner);
    let small = |number: usize| u32::try_from(number).ok().filter(|number| *number < u32::MAX);
    match (small(count), small(len)) {
        (Some(sorted), Some(end)) if uses > USES_OF_COLUMN && columns < MANY_COLUMNS => {
            let (keys, uses_by_key) = (to.room(count), to.room(2 * count));
            to.push("gather", "gather_keys", numbers(count), given![keys, at, count, n, uses, inner, end]);
            sort::by_key(keys, sorted, end, uses_by_key, to);
            let all = given![dx, dy, uses_by_key, sorted, end];
            to.push("gather", "gather_grad_sorted", numbers(count), all);
        }
        _ => {
            let all = given![dx, dy, at, columns, n, uses, inner];
            to.push("gather", "gather_grad_columns", numbers(columns), all);
        }
    }
}

/// x: (outer, n, inner), indices: (outer, use, inner).
struct Axis {
    outer: usize,
    n: usize,
    uses: usize,
    inner: usize,
}

fn axis(x: &[usize], indices: &[usize], axis: usize) -> Axis {
    let [outer, inner] = [&x[..axis], &x[axis + 1..]].map(|axes| axes.iter().product());
    Axis { outer, n: x[axis], uses: indices[axis], inner }
}

/// Sorting moves every use several times; a thread that goes through its column waits for memory at each use. So columns
/// are gone through where they are short, or so many that sorting them all would take longer.
const USES_OF_COLUMN: usize = 16;
const MANY_COLUMNS: usize = 1 << 15;
