//! Walks over an output in row-major order, with the places in several inputs that each element is made of.
//!
//! An input is a slice, a stride for each axis of the output, and a start: broadcasting is a stride of 0, a
//! permutation is strides in another order, a slice is a start and longer (or negative) strides. Axes that lie one
//! behind the other in every input are taken as one, so that contiguous operands are one long row. Nothing here
//! allocates, so it may run inside a step.

use super::each::CHUNK;
use crate::team::Team;

/// Most axes of a value that is walked over.
pub const AXES_MAX: usize = 8;

/// One step along each axis.
pub type Strides = [isize; AXES_MAX];

#[derive(Clone, Debug)]
pub(super) struct Walk<const N: usize> {
    axes: usize,
    shape: [usize; AXES_MAX],
    strides: [Strides; N],
    start: [isize; N],
}

impl<const N: usize> Walk<N> {
    /// `strides` are of the output's axes.
    pub(super) fn new(shape: &[usize], strides: [Strides; N], start: [isize; N]) -> Walk<N> {
        assert!(shape.len() <= AXES_MAX, "the op's shape rule allows {AXES_MAX} axes");
        let mut walk = Walk { axes: 0, shape: [1; AXES_MAX], strides: [[0; AXES_MAX]; N], start };
        for (axis, len) in shape.iter().enumerate().filter(|(_, len)| **len != 1) {
            let last = walk.axes.wrapping_sub(1);
            let is_one = |i: usize| walk.strides[i][last] == strides[i][axis] * *len as isize;
            let melts = walk.axes > 0 && (0..N).all(is_one);
            let at = if melts { last } else { walk.axes };
            walk.shape[at] *= len;
            (0..N).for_each(|i| walk.strides[i][at] = strides[i][axis]);
            walk.axes = at + 1;
        }
        walk.axes = walk.axes.max(1);
        walk
    }

    /// Inputs of these (contiguous) shapes, repeated to `shape`.
    pub(super) fn broadcast(shape: &[usize], inputs: [&[usize]; N]) -> Walk<N> {
        Walk::new(shape, inputs.map(|input| repeated(shape, input)), [0; N])
    }

    /// Along the last axis, how far input `i` steps.
    pub(super) fn inner(&self, i: usize) -> isize {
        self.strides[i][self.axes - 1]
    }

    /// Calls `row(y, places)` for pieces of rows of `y`, each with the places of its first element in the inputs.
    pub(super) fn run<T: Send>(&self, team: &Team, y: &mut [T], row: impl Fn(&mut [T], [usize; N]) + Sync) {
        team.chunks(y, CHUNK, |_, task, y| {
            self.pieces(task * CHUNK, y.len(), |at, len, places| row(&mut y[at..at + len], places))
        });
    }

    /// Calls `piece(at, len, places)` for the pieces of rows among the `len` elements from `first` on.
    pub(super) fn pieces(&self, first: usize, len: usize, mut piece: impl FnMut(usize, usize, [usize; N])) {
        let width = self.shape[self.axes - 1];
        let mut done = 0;
        while done < len {
            let (row, column) = ((first + done) / width, (first + done) % width);
            let piece_len = (width - column).min(len - done);
            piece(done, piece_len, self.places(row, column));
            done += piece_len;
        }
    }

    fn places(&self, mut row: usize, column: usize) -> [usize; N] {
        let mut places = self.start;
        let mut step = |axis: usize, index: usize| {
            (0..N).for_each(|i| places[i] += self.strides[i][axis] * index as isize);
        };
        step(self.axes - 1, column);
        for axis in (0..self.axes - 1).rev() {
            step(axis, row % self.shape[axis]);
            row /= self.shape[axis];
        }
        places.map(|place| place as usize)
    }
}

/// Strides of a contiguous value of this shape.
pub fn contiguous(shape: &[usize]) -> Strides {
    let mut strides = [0; AXES_MAX];
    let mut step = 1;
    for axis in (0..shape.len()).rev() {
        strides[axis] = step as isize;
        step *= shape[axis];
    }
    strides
}

/// Strides that repeat a contiguous value of shape `input` to `shape`.
pub fn repeated(shape: &[usize], input: &[usize]) -> Strides {
    let (own, lead) = (contiguous(input), shape.len() - input.len());
    let mut strides = [0; AXES_MAX];
    for axis in (0..input.len()).filter(|axis| input[*axis] != 1) {
        strides[lead + axis] = own[axis];
    }
    strides
}

/// NumPy's rule: shapes are aligned at their last axes; an axis of 1, or one that is not there, is repeated.
pub fn broadcast_shape(shapes: &[&[usize]]) -> Result<Vec<usize>, String> {
    let axes = shapes.iter().map(|shape| shape.len()).max().unwrap_or(0);
    if axes > AXES_MAX {
        return Err(format!("{axes} axes are more than {AXES_MAX}"));
    }
    let mut out = vec![1; axes];
    for shape in shapes {
        let lead = axes - shape.len();
        for (axis, len) in shape.iter().enumerate().filter(|(_, len)| **len != 1) {
            let wide = &mut out[lead + axis];
            if *wide != 1 && *wide != *len {
                let shapes: Vec<String> = shapes.iter().map(|shape| format!("{shape:?}")).collect();
                return Err(format!(
                    "shapes {} do not broadcast: counted from the last, axis {} is {wide} and {len}; \
                     make one of them 1 or both equal",
                    shapes.join(" and "),
                    shape.len() - axis
                ));
            }
            *wide = *len;
        }
    }
    Ok(out)
}

/// y = the elements that a walk over one input names.
pub(super) fn read<T: Copy + Send + Sync>(team: &Team, walk: &Walk<1>, y: &mut [T], x: &[T]) {
    let step = walk.inner(0);
    walk.run(team, y, |y, [at]| match step {
        1 => y.copy_from_slice(&x[at..at + y.len()]),
        0 => y.fill(x[at]),
        _ => (0..).zip(y).for_each(|(i, y)| *y = x[(at as isize + i * step) as usize]),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_that_lie_one_behind_the_other_are_walked_as_one() {
        let walk = Walk::broadcast(&[4, 1, 5, 6], [&[4, 1, 5, 6], &[6], &[]]);
        assert_eq!((walk.axes, &walk.shape[..2]), (2, &[20, 6][..]), "the second input repeats its row");
        let whole = Walk::broadcast(&[4, 5, 6], [&[4, 5, 6], &[]]);
        assert_eq!((whole.axes, whole.shape[0]), (1, 120));
    }

    #[test]
    fn shapes_broadcast_as_numpys_do() {
        assert_eq!(broadcast_shape(&[&[8, 1, 6, 1], &[7, 1, 5]]).unwrap(), [8, 7, 6, 5]);
        assert_eq!(broadcast_shape(&[&[0, 1], &[1, 3]]).unwrap(), [0, 3]);
        assert_eq!(broadcast_shape(&[&[], &[]]).unwrap(), [0; 0]);
        let wrong = broadcast_shape(&[&[2, 3], &[4, 3]]).unwrap_err();
        assert!(wrong.contains("[2, 3] and [4, 3]") && wrong.contains("axis 2 is 2 and 4"), "{wrong}");
    }
}
