//! The mean of each window. x: (sample, channel, h, w); windows of `kernel`, `stride` apart, no padding.

use super::windows::{LINE, Windows};
use super::*;
use crate::simd::{Set, vectorised};

#[derive(Clone, Copy, Debug)]
pub struct AvgPool {
    pub kernel: usize,
    pub stride: usize,
}

impl AvgPool {
    fn window(self) -> MaxPool {
        MaxPool { kernel: self.kernel, stride: self.stride }
    }

    fn share<F: Real>(self) -> F {
        F::ONE / F::of_usize(self.kernel * self.kernel)
    }
}

impl Rule for AvgPool {
    const NAME: &'static str = "average pool";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.window().out(x[0])?)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let image = graph.ty(node.inputs[0]).shape.clone();
        Ok(vec![Some(graph.apply1(Op::AvgPoolGrad(AvgPoolGrad { pool: *self, image }), &node.path, &[dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (x, windows, set) = (io.x[0], Windows::new(self.window(), &io.types[0]), Set::best());
        let planes = windows.planes_of_task();
        io.work.team.chunks(y, planes * windows.out_len(), |_, i, y| {
            means(set, windows, self.share(), &x[i * planes * windows.image_len()..], y);
        });
    }
}

vectorised! {
    fn means[F: Real](windows: Windows, share: F, x: &[F], y: &mut [F]) {
        let mut line = [F::ZERO; LINE];
        let planes = y.chunks_exact_mut(windows.out_len()).zip(x.chunks_exact(windows.image_len()));
        for (y, x) in planes {
            for (out, first, len) in windows.lines() {
                let (totals, line) = (&mut y[out..][..len], &mut line[..len]);
                totals.fill(F::ZERO);
                for offset in windows.offsets() {
                    windows.gather(&x[first + offset..], line);
                    totals.iter_mut().zip(&*line).for_each(|(total, x)| *total += *x);
                }
                totals.iter_mut().for_each(|total| *total *= share);
            }
        }
    }
}

/// Each element of a window gets an equal share of its gradient. Input: dy.
#[derive(Clone, Debug)]
pub struct AvgPoolGrad {
    pub pool: AvgPool,
    pub image: Vec<usize>,
}

impl Rule for AvgPoolGrad {
    const NAME: &'static str = "average pool gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let image = Type::float(&self.image);
        expect(x, 0, "the gradient", &self.pool.window().out(&image)?)?;
        Ok(vec![image])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        let (dy, windows, set) = (io.x[0], Windows::new(self.pool.window(), &io.out_types[0]), Set::best());
        let planes = windows.planes_of_task();
        io.work.team.chunks(dx, planes * windows.image_len(), |_, i, dx| {
            spread(set, windows, self.pool.share(), &dy[i * planes * windows.out_len()..], dx);
        });
    }
}

vectorised! {
    /// Windows add to an element in their own order, also where they overlap.
    fn spread[F: Real](windows: Windows, share: F, dy: &[F], dx: &mut [F]) {
        let planes = dx.chunks_exact_mut(windows.image_len()).zip(dy.chunks_exact(windows.out_len()));
        for (dx, dy) in planes {
            dx.fill(F::ZERO);
            for (out, first, len) in windows.lines() {
                for (i, dy) in dy[out..][..len].iter().enumerate() {
                    let (at, part) = (first + i * windows.stride, *dy * share);
                    for y in 0..windows.kernel {
                        dx[at + y * windows.image.1..][..windows.kernel].iter_mut().for_each(|dx| *dx += part);
                    }
                }
            }
        }
    }
}
