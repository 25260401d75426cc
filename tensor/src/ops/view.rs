//! Ops that only choose and place elements: broadcast, permute, slice, concatenate, and a constant.

use super::walk::{self, AXES_MAX, Walk};
use super::*;
use std::fmt::Write;

/// A value repeated to a larger shape by NumPy's rule.
#[derive(Clone, Debug)]
pub struct BroadcastTo {
    pub shape: Vec<usize>,
}

impl Rule for BroadcastTo {
    const NAME: &'static str = "broadcast";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let shape = walk::broadcast_shape(&[&x[0].shape, &self.shape])?;
        if shape != self.shape {
            return Err(format!("{} does not broadcast to {:?}, only to {shape:?}", x[0], self.shape));
        }
        Ok(vec![Type::float(&shape)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(reduce::sum_to(graph, &node.path, dy, node.inputs[0])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        walk::read(&io.work.team, &Walk::broadcast(&self.shape, [&io.types[0].shape]), y, io.x[0]);
    }
}

/// Axes in another order: axis i of y is axis `axes[i]` of x.
#[derive(Clone, Debug)]
pub struct Permute {
    pub axes: Vec<usize>,
}

impl Permute {
    fn walk(&self, x: &[usize], y: &[usize]) -> Walk<1> {
        let own = walk::contiguous(x);
        let mut strides = [0; AXES_MAX];
        strides.iter_mut().zip(&self.axes).for_each(|(stride, axis)| *stride = own[*axis]);
        Walk::new(y, [strides], [0])
    }
}

impl Rule for Permute {
    const NAME: &'static str = "permute";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let axes = x[0].shape.len();
        let mut seen = [false; AXES_MAX];
        let is_new = |axis: &usize| *axis < axes.min(AXES_MAX) && !std::mem::replace(&mut seen[*axis], true);
        if self.axes.len() != axes || !self.axes.iter().all(is_new) {
            return Err(format!("{:?} is no order of the axes of {}", self.axes, x[0]));
        }
        Ok(vec![Type::float(&self.axes.iter().map(|axis| x[0].shape[*axis]).collect::<Vec<_>>())])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let mut axes = vec![0; self.axes.len()];
        (0..).zip(&self.axes).for_each(|(i, axis)| axes[*axis] = i);
        Ok(vec![Some(graph.apply1(Op::Permute(Permute { axes }), &node.path, &[dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        walk::read(&io.work.team, &self.walk(&io.types[0].shape, &io.out_types[0].shape), y, io.x[0]);
    }
}

/// What is taken along one axis: `len` elements from `start` on, `step` apart (backwards if negative).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub start: usize,
    pub step: isize,
    pub len: usize,
}

/// A part of a value: one range for each axis.
#[derive(Clone, Debug)]
pub struct Slice {
    pub ranges: Vec<Range>,
}

impl Slice {
    fn check(&self, x: &Type) -> Result<(), String> {
        let is_in = |range: &Range, len: usize| {
            let last = range.start as isize + (range.len as isize - 1) * range.step;
            range.len == 0 || (range.start < len && (0..len as isize).contains(&last))
        };
        let fits = self.ranges.len() == x.shape.len() && x.shape.len() <= AXES_MAX;
        match fits && self.ranges.iter().zip(&x.shape).all(|(range, len)| is_in(range, *len)) {
            true => Ok(()),
            false => Err(format!("{:?} is no part of {x}", self.ranges)),
        }
    }

    fn shape(&self) -> Vec<usize> {
        self.ranges.iter().map(|range| range.len).collect()
    }

    /// Over the part, with its places in the whole.
    fn walk(&self, whole: &[usize]) -> Walk<1> {
        let own = walk::contiguous(whole);
        let (mut shape, mut strides, mut start) = ([1; AXES_MAX], [0; AXES_MAX], 0);
        for (axis, range) in self.ranges.iter().enumerate() {
            shape[axis] = range.len;
            strides[axis] = own[axis] * range.step;
            start += own[axis] * range.start as isize;
        }
        Walk::new(&shape[..self.ranges.len()], [strides], [start])
    }
}

impl Rule for Slice {
    const NAME: &'static str = "slice";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        self.check(x[0])?;
        Ok(vec![Type::float(&self.shape())])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let op = SliceGrad { slice: self.clone(), shape: graph.ty(node.inputs[0]).shape.clone() };
        Ok(vec![Some(graph.apply1(Op::SliceGrad(op), &node.path, &[dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        walk::read(&io.work.team, &self.walk(&io.types[0].shape), y, io.x[0]);
    }
}

/// A part put back into zeros of the whole shape.
#[derive(Clone, Debug)]
pub struct SliceGrad {
    pub slice: Slice,
    pub shape: Vec<usize>,
}

impl Rule for SliceGrad {
    const NAME: &'static str = "slice gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 0, "the gradient", &self.slice.shape())?;
        self.slice.check(&Type::float(&self.shape))?;
        Ok(vec![Type::float(&self.shape)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (walk, x) = (self.slice.walk(&self.shape), io.x[0]);
        io.work.team.chunks(y, each::CHUNK, |_, _, y| y.fill(F::ZERO));
        let step = walk.inner(0);
        walk.pieces(0, x.len(), |at, len, [place]| {
            let places = (0..len as isize).map(|i| (place as isize + i * step) as usize);
            x[at..at + len].iter().zip(places).for_each(|(x, place)| y[place] = *x);
        });
    }
}

/// Values one behind the other along an axis; at most as many as a node has inputs.
#[derive(Clone, Debug)]
pub struct Concat {
    pub axis: usize,
}

impl Rule for Concat {
    const NAME: &'static str = "concat";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let mut shape = x[0].shape.clone();
        if self.axis >= shape.len() {
            return Err(format!("{} has no axis {}", x[0], self.axis));
        }
        shape[self.axis] = 0;
        for other in x {
            let mut rest = other.shape.clone();
            if rest.len() == shape.len() {
                shape[self.axis] += std::mem::take(&mut rest[self.axis]);
            }
            if rest[..] != [&shape[..self.axis], &[0], &shape[self.axis + 1..]].concat() {
                let mut all = String::new();
                x.iter().for_each(|ty| write!(all, " {ty}").expect("a string takes all"));
                return Err(format!("all axes but {} must agree:{all}", self.axis));
            }
        }
        Ok(vec![Type::float(&shape)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let mut start = 0;
        let mut grads = Vec::new();
        for input in &node.inputs {
            let shape = graph.ty(*input).shape.clone();
            let mut ranges: Vec<Range> = shape.iter().map(|len| Range { start: 0, step: 1, len: *len }).collect();
            ranges[self.axis].start = start;
            start += shape[self.axis];
            grads.push(Some(graph.apply1(Op::Slice(Slice { ranges }), &node.path, &[dy])?));
        }
        Ok(grads)
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let inner = |ty: &Type| ty.shape[self.axis..].iter().product::<usize>();
        let width = inner(&io.out_types[0]).max(1);
        for (row, y) in y.chunks_exact_mut(width).enumerate() {
            let mut at = 0;
            for (x, ty) in io.x.iter().zip(io.types) {
                let len = inner(ty);
                y[at..at + len].copy_from_slice(&x[row * len..][..len]);
                at += len;
            }
        }
    }
}

/// One number everywhere.
#[derive(Clone, Debug)]
pub struct Fill {
    pub shape: Vec<usize>,
    pub value: f64,
}

impl Rule for Fill {
    const NAME: &'static str = "fill";

    fn infer(&self, _: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![Type::float(&self.shape)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        y.fill(F::of(self.value));
    }
}
