//! y = (x - mean) / √(var + eps) · scale + shift over the last axis. Also gives mean and 1/√(var + eps) (rows).

use super::*;
use crate::leaves::tree_sum;
use crate::real::{sum, sum2, sum3};
use crate::simd::{Set, vectorised};
use std::ops::Range;

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
        let [x, scale, shift, ..] = io.x;
        let (cols, eps, set) = (io.types[0].rows_cols().1, F::of(self.eps), Set::best());
        if cols == 0 {
            mean.fill(F::ZERO);
            return rstd.fill(F::ZERO);
        }
        let rows = each::rows_of_task(cols);
        io.work.team.chunks3([(y, rows * cols), (mean, rows), (rstd, rows)], |i, y, mean, rstd| {
            let x = &x[i * rows * cols..][..y.len()];
            normalise(set, Affine { scale, shift, eps }, x, y, mean, rstd);
        });
    }
}

/// What all rows share. Rows are as long as `scale`.
#[derive(Clone, Copy)]
struct Affine<'a, F> {
    scale: &'a [F],
    shift: &'a [F],
    eps: F,
}

vectorised! {
    fn normalise[F: Real](all: Affine<'_, F>, x: &[F], y: &mut [F], mean: &mut [F], rstd: &mut [F]) {
        let cols = all.scale.len();
        let count = F::of_usize(cols);
        let rows = y.chunks_exact_mut(cols).zip(x.chunks_exact(cols));
        for ((y, x), (mean, rstd)) in rows.zip(mean.iter_mut().zip(rstd)) {
            let m = sum(x, |x| x) / count;
            let var = sum(x, |x| (x - m) * (x - m)) / count;
            let r = F::ONE / (var + all.eps).sqrt();
            (*mean, *rstd) = (m, r);
            for (((y, x), scale), shift) in y.iter_mut().zip(x).zip(all.scale).zip(all.shift) {
                *y = (*x - m) * r * *scale + *shift;
            }
        }
    }
}

/// dx, dscale, dshift. The last two add the rows of a shard in ascending order, and the shards along the tree.
/// Inputs: x, scale, mean, rstd, dy.
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
        let (cols, set) = (scale.len(), Set::best());
        if cols == 0 {
            return;
        }
        let Work { team, rooms } = io.work;
        let task = each::rows_of_task(cols);
        let given = Given { x, dy, mean, rstd };
        team.chunks(dx, task * cols, |_, i, dx| {
            let first = i * task;
            slopes(set, given.rows(cols, first..first + dx.len() / cols), scale, dx);
        });
        let rows = mean.len() / io.key.shards;
        team.chunks2_in(rooms, (dscale, COLUMNS), (dshift, COLUMNS), |room, i, dscale, dshift| {
            let mut both = [F::ZERO; 2 * COLUMNS];
            let both = &mut both[..2 * dscale.len()];
            tree_sum(io.key.shards, both, &mut room.columns, |shard, leaf| {
                let given = given.rows(cols, shard * rows..(shard + 1) * rows);
                leaf.fill(F::ZERO);
                columns(set, given, cols, i * COLUMNS, leaf);
            });
            dscale.copy_from_slice(&both[..dscale.len()]);
            dshift.copy_from_slice(&both[dscale.len()..]);
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
    mean: &'a [F],
    rstd: &'a [F],
}

impl<F> Given<'_, F> {
    fn rows(&self, cols: usize, rows: Range<usize>) -> Given<'_, F> {
        let floats = rows.start * cols..rows.end * cols;
        let (x, dy) = (&self.x[floats.clone()], &self.dy[floats]);
        Given { x, dy, mean: &self.mean[rows.clone()], rstd: &self.rstd[rows] }
    }
}

vectorised! {
    fn slopes[F: Real](given: Given<'_, F>, scale: &[F], dx: &mut [F]) {
        let cols = scale.len();
        let count = F::of_usize(cols);
        let rows = given.x.chunks_exact(cols).zip(given.dy.chunks_exact(cols));
        let moments = given.mean.iter().zip(given.rstd);
        for ((dx, (x, dy)), (m, r)) in dx.chunks_exact_mut(cols).zip(rows).zip(moments) {
            let (m, r) = (*m, *r);
            let along = sum2(dy, scale, |dy, s| dy * s) / count;
            let across = sum3(dy, scale, x, |dy, s, x| dy * s * ((x - m) * r)) / count;
            for (((dx, x), dy), s) in dx.iter_mut().zip(x).zip(dy).zip(scale) {
                *dx = r * (*dy * *s - along - (*x - m) * r * across);
            }
        }
    }
}

vectorised! {
    /// Adds to the columns from `first` on: their part of dscale, then as long a part of dshift.
    fn columns[F: Real](given: Given<'_, F>, cols: usize, first: usize, sums: &mut [F]) {
        let (dscale, dshift) = sums.split_at_mut(sums.len() / 2);
        let rows = given.x.chunks_exact(cols).zip(given.dy.chunks_exact(cols));
        for ((x, dy), (m, r)) in rows.zip(given.mean.iter().zip(given.rstd)) {
            let (x, dy) = (&x[first..][..dscale.len()], &dy[first..][..dscale.len()]);
            let (m, r) = (*m, *r);
            for (((dscale, dshift), x), dy) in dscale.iter_mut().zip(dshift.iter_mut()).zip(x).zip(dy) {
                *dscale += *dy * ((*x - m) * r);
                *dshift += *dy;
            }
        }
    }
}
