//! Softmax of each row over the last axis, and its logarithm. The largest is subtracted before exp.

use super::*;
use crate::real::{largest, sum, sum_in_place, sum2};
use crate::simd::{Set, vectorised};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Softmax {
    pub log: bool,
}

fn rows<F: Real>(io: Io<'_, F>, row: impl Fn(&mut [F], &[F], &[F]) + Sync) {
    let [y, ..] = io.y;
    let cols = io.types[0].rows_cols().1.max(1);
    let (task, a, b) = (each::rows_of_task(cols), io.x[0], io.x[1]);
    io.work.team.chunks(y, task * cols, |_, i, y| {
        for (at, y) in (i * task..).zip(y.chunks_exact_mut(cols)) {
            let part = |x| if <[F]>::is_empty(x) { x } else { &x[at * cols..][..cols] };
            row(y, part(a), part(b));
        }
    });
}

impl Rule for Softmax {
    const NAME: &'static str = "softmax";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        if x[0].shape.is_empty() {
            return Err("a scalar has no axis to take it over".into());
        }
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let op = Op::SoftmaxGrad(SoftmaxGrad { log: self.log });
        Ok(vec![Some(graph.apply1(op, &node.path, &[node.outputs[0], dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let set = Set::best();
        match self.log {
            false => rows(io, |y, x, _| shares(set, y, x)),
            true => rows(io, |y, x, _| logs(set, y, x)),
        }
    }
}

vectorised! {
    fn shares[F: Real](y: &mut [F], x: &[F]) {
        let top = largest(x);
        y.copy_from_slice(x);
        let total = sum_in_place(y, |x| (x - top).exp());
        y.iter_mut().for_each(|y| *y = *y / total);
    }
}

vectorised! {
    fn logs[F: Real](y: &mut [F], x: &[F]) {
        let top = largest(x);
        let total = top + sum(x, |x| (x - top).exp()).ln();
        y.iter_mut().zip(x).for_each(|(y, x)| *y = *x - total);
    }
}

/// dx = y (dy - Σ y dy); of the logarithm, dx = dy - exp(y) Σ dy. Inputs: y, dy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SoftmaxGrad {
    pub log: bool,
}

impl Rule for SoftmaxGrad {
    const NAME: &'static str = "softmax gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 1, "the gradient", &x[0].shape)?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let set = Set::best();
        match self.log {
            false => rows(io, |dx, y, dy| slopes(set, dx, y, dy)),
            true => rows(io, |dx, y, dy| log_slopes(set, dx, y, dy)),
        }
    }
}

vectorised! {
    fn slopes[F: Real](dx: &mut [F], y: &[F], dy: &[F]) {
        let along = sum2(y, dy, |y, dy| y * dy);
        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = *y * (*dy - along);
        }
    }
}

vectorised! {
    fn log_slopes[F: Real](dx: &mut [F], y: &[F], dy: &[F]) {
        let total = sum(dy, |dy| dy);
        for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = *dy - y.exp() * total;
        }
    }
}
