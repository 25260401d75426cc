//! Where the windows of a pool lie, and their elements as lines that vectors can be made of.

use super::max_pool::MaxPool;
use super::*;

/// Windows of one plane (one channel of one sample).
#[derive(Clone, Copy)]
pub(super) struct Windows {
    pub kernel: usize,
    pub stride: usize,
    /// Height and width of the plane, and of the plane of outputs.
    pub image: (usize, usize),
    pub out: (usize, usize),
}

/// Outputs of one row that are made together: their state stays in the first-level cache, mostly in registers.
pub(super) const LINE: usize = 64;

impl Windows {
    pub(super) fn new(pool: MaxPool, image: &Type) -> Windows {
        let out = |axis| pool.along(image, axis).expect("checked when the graph was built");
        let MaxPool { kernel, stride } = pool;
        Windows { kernel, stride, image: (image.shape[2], image.shape[3]), out: (out(2), out(3)) }
    }

    pub(super) fn image_len(self) -> usize {
        self.image.0 * self.image.1
    }

    pub(super) fn out_len(self) -> usize {
        self.out.0 * self.out.1
    }

    /// Planes in a task.
    pub(super) fn planes_of_task(self) -> usize {
        each::rows_of_task(self.image_len())
    }

    /// The usual case, which is worth loops of its own: two by two, side by side.
    pub(super) fn are_squares_of_two(self) -> bool {
        (self.kernel, self.stride) == (2, 2)
    }

    /// The lines of a plane in order: the first output of each, its window's first element, and how many there are.
    #[inline(always)]
    pub(super) fn lines(self) -> impl Iterator<Item = (usize, usize, usize)> {
        (0..self.out.0).flat_map(move |y| {
            (0..self.out.1).step_by(LINE).map(move |x| {
                let len = LINE.min(self.out.1 - x);
                (y * self.out.1 + x, y * self.stride * self.image.1 + x * self.stride, len)
            })
        })
    }

    /// Element of a window, in row-major order, as a distance from its first.
    #[inline(always)]
    pub(super) fn offsets(self) -> impl Iterator<Item = usize> {
        (0..self.kernel).flat_map(move |y| (0..self.kernel).map(move |x| y * self.image.1 + x))
    }

    /// line = every `stride`-th element of `x`.
    #[inline(always)]
    pub(super) fn gather<F: Real>(self, x: &[F], line: &mut [F]) {
        match self.stride {
            1 => line.copy_from_slice(&x[..line.len()]),
            2 => {
                // The last one may have no neighbour.
                let last = line.len() - 1;
                let pairs = x.as_chunks::<2>().0;
                line[..last].iter_mut().zip(&pairs[..last]).for_each(|(to, pair)| *to = pair[0]);
                line[last] = x[2 * last];
            }
            stride => line.iter_mut().zip(x.iter().step_by(stride)).for_each(|(to, x)| *to = *x),
        }
    }
}
