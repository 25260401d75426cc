//! Elements by integer index along an axis. x: (outer, n, inner).
//!
//! Whole rows: `Take`, indices (k), y: (outer, k, inner). One by one: `Gather`, indices (outer, k, inner) as y. Indices
//! are 0 to n - 1: who makes them of negative ones, and says which is wrong, is in `eager`.

use super::*;
use crate::graph::DType;

/// (outer, n, inner) of an axis.
fn sizes(shape: &[usize], axis: usize) -> [usize; 3] {
    [shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()]
}

fn index(at: i32, n: usize) -> usize {
    assert!((0..n as i64).contains(&(at as i64)), "indices are checked to be under {n}, not {at}");
    at as usize
}

fn check(x: &[&Type], axis: usize) -> Result<(), String> {
    if axis >= x[0].shape.len() {
        return Err(format!("{} has no axis {axis}", x[0]));
    }
    if x[1].dtype != DType::Int {
        return Err(format!("the indices {} must be integers", x[1]));
    }
    Ok(())
}

#[derive(Clone, Debug)]
pub struct Take {
    pub axis: usize,
}

impl Rule for Take {
    const NAME: &'static str = "take";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        check(x, self.axis)?;
        let shape = [&x[0].shape[..self.axis], &x[1].shape[..], &x[0].shape[self.axis + 1..]].concat();
        Ok(vec![Type::float(&shape)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let op = TakeGrad { axis: self.axis, shape: graph.ty(node.inputs[0]).shape.clone() };
        Ok(vec![Some(graph.apply1(Op::TakeGrad(op), &node.path, &[dy, node.inputs[1]])?), None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let [_, n, inner] = sizes(&io.types[0].shape, self.axis);
        let (x, at) = (io.x[0], io.ints[1]);
        for (row, y) in y.chunks_exact_mut(inner.max(1)).enumerate() {
            let (outer, k) = (row / at.len(), row % at.len());
            y.copy_from_slice(&x[(outer * n + index(at[k], n)) * inner..][..inner]);
        }
    }
}

/// Each row adds the gradients of its uses in ascending order. Inputs: dy, indices.
#[derive(Clone, Debug)]
pub struct TakeGrad {
    pub axis: usize,
    pub shape: Vec<usize>,
}

impl Rule for TakeGrad {
    const NAME: &'static str = "take gradient";

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.shape)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        let [_, n, inner] = sizes(&self.shape, self.axis);
        let (dy, at) = (io.x[0], io.ints[1]);
        io.work.team.chunks(dx, (n * inner).max(1), |_, outer, dx| {
            dx.fill(F::ZERO);
            for (place, at) in (outer * at.len()..).zip(at) {
                let dy = &dy[place * inner..][..inner];
                dx[index(*at, n) * inner..][..inner].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
            }
        });
    }
}

/// y[o, k, i] = x[o, indices[o, k, i], i].
#[derive(Clone, Debug)]
pub struct Gather {
    pub axis: usize,
}

impl Rule for Gather {
    const NAME: &'static str = "gather";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        check(x, self.axis)?;
        let mut wanted = x[0].shape.clone();
        wanted[self.axis] = x[1].shape.get(self.axis).copied().unwrap_or(0);
        expect(x, 1, "the indices", &wanted)?;
        Ok(vec![Type::float(&wanted)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let op = GatherGrad { axis: self.axis, shape: graph.ty(node.inputs[0]).shape.clone() };
        Ok(vec![Some(graph.apply1(Op::GatherGrad(op), &node.path, &[dy, node.inputs[1]])?), None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let [_, n, inner] = sizes(&io.types[0].shape, self.axis);
        let k = io.types[1].shape[self.axis];
        for (at, (y, place)) in y.iter_mut().zip(io.ints[1]).enumerate() {
            let outer = at / (k * inner);
            *y = io.x[0][(outer * n + index(*place, n)) * inner + at % inner];
        }
    }
}

/// Each element adds the gradients of its uses in ascending order. Inputs: dy, indices.
#[derive(Clone, Debug)]
pub struct GatherGrad {
    pub axis: usize,
    pub shape: Vec<usize>,
}

impl Rule for GatherGrad {
    const NAME: &'static str = "gather gradient";

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.shape)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        let [_, n, inner] = sizes(&self.shape, self.axis);
        let k = io.types[1].shape[self.axis];
        dx.fill(F::ZERO);
        for (at, (dy, place)) in io.x[0].iter().zip(io.ints[1]).enumerate() {
            let outer = at / (k * inner);
            dx[(outer * n + index(*place, n)) * inner + at % inner] += *dy;
        }
    }
}
