//! The largest of each window. x: (sample, channel, h, w); windows of `kernel`, `stride` apart, no padding.
//!
//! Among equals the first in row-major order wins, for the value and for the gradient; a NaN wins always.

use super::windows::{LINE, Windows};
use super::*;
use crate::simd::{Set, vectorised};

#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    pub kernel: usize,
    pub stride: usize,
}

impl MaxPool {
    pub(super) fn out(self, x: &Type) -> Result<Vec<usize>, String> {
        expect_axes(&[x], 0, "the input", "sample, channel, height, width")?;
        let windows = [self.along(x, 2)?, self.along(x, 3)?];
        Ok([&x.shape[..2], &windows].concat())
    }

    /// Windows along an axis.
    pub(super) fn along(self, x: &Type, axis: usize) -> Result<usize, String> {
        let rest = x.shape[axis].checked_sub(self.kernel).filter(|_| self.kernel > 0 && self.stride > 0);
        let rest = rest.ok_or_else(|| {
            format!("axis {axis} of the input {x} is {}, less than the window's {}", x.shape[axis], self.kernel)
        })?;
        Ok(rest / self.stride + 1)
    }
}

impl Rule for MaxPool {
    const NAME: &'static str = "max pool";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.out(x[0])?)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(graph.apply1(Op::MaxPoolGrad(MaxPoolGrad(*self)), &node.path, &[node.inputs[0], dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (x, windows, set) = (io.x[0], Windows::new(*self, &io.types[0]), Set::best());
        let planes = windows.planes_of_task();
        io.work.team.chunks(y, planes * windows.out_len(), |_, i, y| {
            largest(set, windows, &x[i * planes * windows.image_len()..], y);
        });
    }
}

vectorised! {
    fn largest[F: Real](windows: Windows, x: &[F], y: &mut [F]) {
        let mut candidates = [F::ZERO; LINE];
        let planes = y.chunks_exact_mut(windows.out_len()).zip(x.chunks_exact(windows.image_len()));
        for (y, x) in planes {
            if windows.are_squares_of_two() {
                largest_of_squares(windows, x, y, |x| x);
                continue;
            }
            for (out, first, len) in windows.lines() {
                let (best, candidates) = (&mut y[out..][..len], &mut candidates[..len]);
                windows.gather(&x[first..], best);
                for offset in windows.offsets().skip(1) {
                    windows.gather(&x[first + offset..], candidates);
                    for (best, x) in best.iter_mut().zip(&*candidates) {
                        *best = if wins(*x, *best) { *x } else { *best };
                    }
                }
            }
        }
    }
}

/// The largest `of(x)` of each square of two of a plane.
#[inline(always)]
pub(super) fn largest_of_squares<F: Real>(windows: Windows, x: &[F], y: &mut [F], of: impl Fn(F) -> F) {
    let pairs = x.chunks_exact(2 * windows.image.1).zip(y.chunks_exact_mut(windows.out.1));
    for (lines, y) in pairs {
        let (above, below) = lines.split_at(windows.image.1);
        let squares = above.as_chunks::<2>().0.iter().zip(below.as_chunks::<2>().0);
        for (y, (above, below)) in y.iter_mut().zip(squares) {
            *y = winner_of_four(&[of(above[0]), of(above[1])], &[of(below[0]), of(below[1])]).0;
        }
    }
}

/// Gradients of a plane of which each square's largest `of(x)` gets its own, and the others zero.
#[inline(always)]
pub(super) fn to_winners_of_squares<F: Real>(windows: Windows, x: &[F], dy: &[F], dx: &mut [F], of: impl Fn(F) -> F) {
    // What lies outside the squares.
    if !windows.image.0.is_multiple_of(2) || !windows.image.1.is_multiple_of(2) {
        dx.fill(F::ZERO);
    }
    let width = windows.image.1;
    let mut winners = [0u32; LINE];
    let lines = dx.chunks_exact_mut(2 * width).zip(x.chunks_exact(2 * width));
    for ((dx, x), dy) in lines.zip(dy.chunks_exact(windows.out.1)) {
        let (above, below) = x.split_at(width);
        for (piece, dy) in dy.chunks(LINE).enumerate() {
            let at = 2 * LINE * piece;
            let squares = above[at..].as_chunks::<2>().0.iter().zip(below[at..].as_chunks::<2>().0);
            for (winner, (above, below)) in winners[..dy.len()].iter_mut().zip(squares) {
                *winner = winner_of_four(&[of(above[0]), of(above[1])], &[of(below[0]), of(below[1])]).1;
            }
            // A line at a time: with two to write to, compilers do not see that they lie apart.
            for (first, dx) in [0, 2].into_iter().zip(dx.chunks_exact_mut(width)) {
                let pairs = dx[at..].as_chunks_mut::<2>().0.iter_mut();
                for ((dx, winner), dy) in pairs.zip(&winners).zip(dy) {
                    dx[0] = if *winner == first { F::ZERO + *dy } else { F::ZERO };
                    dx[1] = if *winner == first + 1 { F::ZERO + *dy } else { F::ZERO };
                }
            }
        }
    }
}

/// The largest of a square of two and its number, in row-major order.
#[inline(always)]
fn winner_of_four<F: Real>(above: &[F; 2], below: &[F; 2]) -> (F, u32) {
    let mut best = (above[0], 0);
    for (i, x) in [(1, above[1]), (2, below[0]), (3, below[1])] {
        let wins = wins(x, best.0);
        best = (if wins { x } else { best.0 }, if wins { i } else { best.1 });
    }
    best
}

/// Whether x takes the place of the best before it.
#[inline(always)]
fn wins<F: Real>(x: F, best: F) -> bool {
    #[allow(clippy::eq_op, reason = "only a NaN differs from itself")]
    let is_nan = x != x;
    (x > best) | is_nan
}

/// The winner of each window gets its gradient. Inputs: x, dy.
#[derive(Clone, Debug)]
pub struct MaxPoolGrad(pub MaxPool);

impl Rule for MaxPoolGrad {
    const NAME: &'static str = "max pool gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 1, "the gradient", &self.0.out(x[0])?)?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        let [x, dy, ..] = io.x;
        let (windows, set) = (Windows::new(self.0, &io.types[0]), Set::best());
        let planes = windows.planes_of_task();
        let task = planes * windows.image_len();
        io.work.team.chunks(dx, task, |_, i, dx| {
            let x = &x[i * task..][..dx.len()];
            to_winners(set, windows, x, &dy[i * planes * windows.out_len()..], dx);
        });
    }
}

vectorised! {
    fn to_winners[F: Real](windows: Windows, x: &[F], dy: &[F], dx: &mut [F]) {
        let (mut best, mut candidates, mut winners) = ([F::ZERO; LINE], [F::ZERO; LINE], [0u32; LINE]);
        let inputs = x.chunks_exact(windows.image_len()).zip(dy.chunks_exact(windows.out_len()));
        for (dx, (x, dy)) in dx.chunks_exact_mut(windows.image_len()).zip(inputs) {
            if windows.are_squares_of_two() {
                to_winners_of_squares(windows, x, dy, dx, |x| x);
                continue;
            }
            dx.fill(F::ZERO);
            for (out, first, len) in windows.lines() {
                let (best, winners, candidates) = (&mut best[..len], &mut winners[..len], &mut candidates[..len]);
                windows.gather(&x[first..], best);
                winners.fill(0);
                for offset in windows.offsets().skip(1) {
                    windows.gather(&x[first + offset..], candidates);
                    for ((best, winner), x) in best.iter_mut().zip(winners.iter_mut()).zip(&*candidates) {
                        let wins = wins(*x, *best);
                        *best = if wins { *x } else { *best };
                        *winner = if wins { offset as u32 } else { *winner };
                    }
                }
                for (i, (winner, dy)) in winners.iter().zip(&dy[out..]).enumerate() {
                    dx[first + i * windows.stride + *winner as usize] += *dy;
                }
            }
        }
    }
}
