//! y = x / √(mean(x²) + eps) · scale over the last axis (Zhang, Sennrich: Root Mean Square Layer Normalization, 2019,
//! arXiv:1910.07467). Also gives 1/√(mean(x²) + eps) of each row.

use super::*;
use crate::leaves::tree_sum;
use crate::real::{sum, sum3};
use crate::simd::{Set, vectorised};
use std::ops::Range;

#[derive(Clone, Debug)]
pub struct RmsNorm {
    pub eps: f64,
}

impl Rule for RmsNorm {
    const NAME: &'static str = "rms norm";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let (rows, cols) = x[0].rows_cols();
        expect(x, 1, "the scale", &[cols])?;
        Ok(vec![x[0].clone(), Type::float(&[rows])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; 2]) };
        let inputs = [node.inputs[0], node.inputs[1], node.outputs[1], dy];
        Ok(graph.apply(Op::RmsNormGrad(RmsNormGrad), &node.path, &inputs)?.into_iter().map(Some).collect())
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, rstd, ..] = io.y;
        let [x, scale, ..] = io.x;
        let (cols, eps, set) = (scale.len(), F::of(self.eps), Set::best());
        if cols == 0 {
            return rstd.fill(F::ZERO);
        }
        let rows = each::rows_of_task(cols);
        io.work.team.chunks2((y, rows * cols), (rstd, rows), |_, i, y, rstd| {
            normalise(set, scale, eps, &x[i * rows * cols..][..y.len()], y, rstd);
        });
    }
}

vectorised! {
    fn normalise[F: Real](scale: &[F], eps: F, x: &[F], y: &mut [F], rstd: &mut [F]) {
        let (cols, count) = (scale.len(), F::of_usize(scale.len()));
        for ((y, x), rstd) in y.chunks_exact_mut(cols).zip(x.chunks_exact(cols)).zip(rstd) {
            let r = F::ONE / (sum(x, |x| x * x) / count + eps).sqrt();
            *rstd = r;
            for ((y, x), scale) in y.iter_mut().zip(x).zip(scale) {
                *y = *x * r * *scale;
            }
        }
    }
}

/// dx, dscale. The last adds the rows of a shard in ascending order, and the shards along the tree.
/// Inputs: x, scale, rstd, dy.
#[derive(Clone, Debug)]
pub struct RmsNormGrad;

impl Rule for RmsNormGrad {
    const NAME: &'static str = "rms norm gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 3, "the gradient", &x[0].shape)?;
        Ok(vec![x[0].clone(), x[1].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, dscale, ..] = io.y;
        let [x, scale, rstd, dy, ..] = io.x;
        let (cols, set) = (scale.len(), Set::best());
        if cols == 0 {
            return;
        }
        let Work { team, rooms } = io.work;
        let task = each::rows_of_task(cols);
        let given = Given { x, dy, rstd };
        team.chunks(dx, task * cols, |_, i, dx| {
            slopes(set, given.rows(cols, i * task..i * task + dx.len() / cols), scale, dx);
        });
        let rows = rstd.len() / io.key.shards;
        team.chunks_in(rooms, dscale, COLUMNS, |room, i, dscale| {
            tree_sum(io.key.shards, dscale, &mut room.columns, |shard, leaf| {
                leaf.fill(F::ZERO);
                columns(set, given.rows(cols, shard * rows..(shard + 1) * rows), cols, i * COLUMNS, leaf);
            });
        });
    }
}

/// Columns of a task: four cache lines of each row, and few enough rooms for a fork to pay.
const COLUMNS: usize = 64;

/// Rows that the gradient is made from.
#[derive(Clone, Copy)]
struct Given<'a, F> {
    x: &'a [F],
    dy: &'a [F],
    rstd: &'a [F],
}

impl<F> Given<'_, F> {
    fn rows(&self, cols: usize, rows: Range<usize>) -> Given<'_, F> {
        let floats = rows.start * cols..rows.end * cols;
        Given { x: &self.x[floats.clone()], dy: &self.dy[floats], rstd: &self.rstd[rows] }
    }
}

vectorised! {
    fn slopes[F: Real](given: Given<'_, F>, scale: &[F], dx: &mut [F]) {
        let (cols, count) = (scale.len(), F::of_usize(scale.len()));
        let rows = given.x.chunks_exact(cols).zip(given.dy.chunks_exact(cols));
        for ((dx, (x, dy)), r) in dx.chunks_exact_mut(cols).zip(rows).zip(given.rstd) {
            let r = *r;
            let across = sum3(dy, scale, x, |dy, s, x| dy * s * (x * r)) / count;
            for (((dx, x), dy), s) in dx.iter_mut().zip(x).zip(dy).zip(scale) {
                *dx = r * (*dy * *s - *x * r * across);
            }
        }
    }
}

vectorised! {
    /// Adds to the columns from `first` on.
    fn columns[F: Real](given: Given<'_, F>, cols: usize, first: usize, dscale: &mut [F]) {
        let rows = given.x.chunks_exact(cols).zip(given.dy.chunks_exact(cols));
        for ((x, dy), r) in rows.zip(given.rstd) {
            let (x, dy) = (&x[first..][..dscale.len()], &dy[first..][..dscale.len()]);
            for ((dscale, x), dy) in dscale.iter_mut().zip(x).zip(dy) {
                *dscale += *dy * (*x * *r);
            }
        }
    }
}
