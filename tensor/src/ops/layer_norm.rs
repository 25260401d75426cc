//! y = (x - mean) / √(var + eps) · scale + shift over the last axis. Also gives mean and 1/√(var + eps) (rows).

use super::*;
use crate::real::{sum, sum2, sum3};

#[derive(Clone, Debug)]
pub struct LayerNorm {
    pub eps: f64,
}

impl Rule for LayerNorm {
    const NAME: &'static str = "layer norm";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let (rows, cols) = x[0].rows_cols();
        expect(x, 1, "the scale", &[cols])?;
        expect(x, 2, "the shift", &[cols])?;
        Ok(vec![x[0].clone(), Type::float(&[rows]), Type::float(&[rows])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 3]) };
        let inputs = [node.inputs[0], node.inputs[1], node.outputs[1], node.outputs[2], dy];
        Ok(graph.apply(Op::LayerNormGrad(LayerNormGrad), &node.path, &inputs)?.into_iter().map(Some).collect())
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, mean, rstd, ..] = io.y;
        let cols = io.types[0].rows_cols().1;
        let count = F::of_usize(cols);
        for (row, (y, x)) in y.chunks_exact_mut(cols.max(1)).zip(io.x[0].chunks_exact(cols.max(1))).enumerate() {
            let m = sum(x, |x| x) / count;
            let var = sum(x, |x| (x - m) * (x - m)) / count;
            let r = F::ONE / (var + F::of(self.eps)).sqrt();
            (mean[row], rstd[row]) = (m, r);
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(io.x[1]).zip(io.x[2]) {
                *y = (*x - m) * r * *scale + *shift;
            }
        }
    }
}

/// dx, dscale, dshift; the last two add the rows in ascending order. Inputs: x, scale, mean, rstd, dy.
#[derive(Clone, Debug)]
pub struct LayerNormGrad;

impl Rule for LayerNormGrad {
    const NAME: &'static str = "layer norm gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 4, "the gradient", &x[0].shape)?;
        Ok(vec![x[0].clone(), x[1].clone(), x[1].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, dscale, dshift, ..] = io.y;
        let [x, scale, mean, rstd, dy, ..] = io.x;
        let cols = io.types[0].rows_cols().1.max(1);
        let count = F::of_usize(cols);
        dscale.fill(F::ZERO);
        dshift.fill(F::ZERO);
        for (row, ((dx, x), dy)) in
            dx.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(dy.chunks_exact(cols)).enumerate()
        {
            let (m, r) = (mean[row], rstd[row]);
            for (((dscale, dshift), x), dy) in dscale.iter_mut().zip(dshift.iter_mut()).zip(x).zip(dy) {
                *dscale += *dy * ((*x - m) * r);
                *dshift += *dy;
            }
            let along = sum2(dy, scale, |dy, s| dy * s) / count;
            let across = sum3(dy, scale, x, |dy, s, x| dy * s * ((x - m) * r)) / count;
            for (((dx, x), dy), s) in dx.iter_mut().zip(x).zip(dy).zip(scale) {
                *dx = r * (*dy * *s - along - (*x - m) * r * across);
            }
        }
    }
}
