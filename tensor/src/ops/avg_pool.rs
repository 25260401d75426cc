//! The mean of each window. x: (sample, channel, h, w); windows of `kernel`, `stride` apart, no padding.

use super::*;

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
        let (x, w) = (io.x[0], io.types[0].shape[3]);
        self.window().windows(&io.types[0], |out, first| {
            let mut total = F::ZERO;
            for line in 0..self.kernel {
                x[first + line * w..][..self.kernel].iter().for_each(|x| total += *x);
            }
            y[out] = total * self.share();
        });
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
        let (dy, w) = (io.x[0], self.image[3]);
        dx.fill(F::ZERO);
        self.pool.window().windows(&io.out_types[0], |out, first| {
            let share = dy[out] * self.pool.share();
            for line in 0..self.pool.kernel {
                dx[first + line * w..][..self.pool.kernel].iter_mut().for_each(|dx| *dx += share);
            }
        });
    }
}
