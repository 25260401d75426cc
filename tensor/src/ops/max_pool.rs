//! The largest of each window. x: (sample, channel, h, w); windows of `kernel`, `stride` apart, no padding.
//!
//! Among equals the first in row-major order wins, for the value and for the gradient; a NaN wins always.

use super::*;

#[derive(Clone, Copy, Debug)]
pub struct MaxPool {
    pub kernel: usize,
    pub stride: usize,
}

impl MaxPool {
    pub(super) fn out(self, x: &Type) -> Result<Vec<usize>, String> {
        expect_axes(&[x], 0, "the input", "sample, channel, height, width")?;
        let mut shape = x.shape.clone();
        for axis in [2, 3] {
            let rest = shape[axis].checked_sub(self.kernel).filter(|_| self.kernel > 0 && self.stride > 0);
            let rest = rest.ok_or_else(|| {
                format!("axis {axis} of the input {x} is {}, less than the window's {}", x.shape[axis], self.kernel)
            })?;
            shape[axis] = rest / self.stride + 1;
        }
        Ok(shape)
    }

    /// Calls `visit(output element, window's first input element)` for all windows, in order.
    pub(super) fn windows(self, x: &Type, mut visit: impl FnMut(usize, usize)) {
        let out = self.out(x).expect("checked when the graph was built");
        let (h, w) = (x.shape[2], x.shape[3]);
        let mut at = 0;
        for plane in 0..x.shape[0] * x.shape[1] {
            for oy in 0..out[2] {
                for ox in 0..out[3] {
                    visit(at, (plane * h + oy * self.stride) * w + ox * self.stride);
                    at += 1;
                }
            }
        }
    }

    fn winner<F: Real>(self, x: &[F], first: usize, w: usize) -> usize {
        let mut best = first;
        for y in 0..self.kernel {
            for at in first + y * w..first + y * w + self.kernel {
                let is_nan = x[at].partial_cmp(&x[at]).is_none();
                if x[at] > x[best] || is_nan {
                    best = at;
                }
            }
        }
        best
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
        let (x, w) = (io.x[0], io.types[0].shape[3]);
        self.windows(&io.types[0], |out, first| y[out] = x[self.winner(x, first, w)]);
    }
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
        let (x, dy, w) = (io.x[0], io.x[1], io.types[0].shape[3]);
        dx.fill(F::ZERO);
        self.0.windows(&io.types[0], |out, first| dx[self.0.winner(x, first, w)] += dy[out]);
    }
}
