//! Sums, means, largest and smallest over axes. Orders of addition are fixed: `ops::Reduce`.

use super::dtype::DType;
use super::integers::{self, Join};
use super::shapes::axis_of;
use super::tensor::{Tensor, apply_float, apply1};
use super::{Result, shape_error};
use crate::ops::{ArgMax, Op, Reduce, ReduceKind};

/// `axes` of a reduction may be negative (from the end) and in any order; none of them means all.
impl Tensor {
    /// The sum over `axes`, which go away. Integers and booleans are summed as i64, which wraps around.
    pub fn sum(&self, axes: &[i64]) -> Result<Tensor> {
        self.reduce("sum", ReduceKind::Sum, axes)
    }

    pub fn sum_all(&self) -> Result<Tensor> {
        self.sum(&[])
    }

    /// The mean over `axes`; of none it is NaN. Of integers it is f32.
    pub fn mean(&self, axes: &[i64]) -> Result<Tensor> {
        if !self.dtype().is_float() {
            return self.to_dtype(DType::F32)?.mean(axes);
        }
        self.reduce("mean", ReduceKind::Mean, axes)
    }

    /// The largest over `axes`; a NaN wins. All that are as large share the gradient. An error of none.
    pub fn amax(&self, axes: &[i64]) -> Result<Tensor> {
        self.reduce("amax", ReduceKind::Max, axes)
    }

    /// The smallest over `axes`, likewise.
    pub fn amin(&self, axes: &[i64]) -> Result<Tensor> {
        self.reduce("amin", ReduceKind::Min, axes)
    }

    /// The mean squared distance from the mean over `axes`, divided by n - `less`.
    pub fn var(&self, axes: &[i64], less: usize) -> Result<Tensor> {
        let x = if self.dtype().is_float() { self.clone() } else { self.to_dtype(DType::F32)? };
        let middle = x.mean(axes)?.keep(&x, axes)?;
        let off = x.sub(&middle)?;
        let square = off.mul(&off)?.sum(axes)?;
        let n = x.len() / square.len().max(1);
        square.div_scalar(n as f64 - less as f64)
    }

    /// Whether any element over `axes` is not 0.
    pub fn any(&self, axes: &[i64]) -> Result<Tensor> {
        self.truth(Join::Any, axes)
    }

    /// Whether all elements over `axes` are not 0.
    pub fn all(&self, axes: &[i64]) -> Result<Tensor> {
        self.truth(Join::All, axes)
    }

    /// Index (i64) along `axis` of the first of the largest elements, or of the first NaN.
    pub fn argmax(&self, axis: i64) -> Result<Tensor> {
        self.first_of("argmax", true, axis)
    }

    /// Index of the first of the smallest elements, or of the first NaN.
    pub fn argmin(&self, axis: i64) -> Result<Tensor> {
        self.first_of("argmin", false, axis)
    }

    /// This result of a reduction of `x` over `axes` with those axes back as 1, so that it broadcasts against `x`:
    /// NumPy's `keepdims`.
    pub fn keep(&self, x: &Tensor, axes: &[i64]) -> Result<Tensor> {
        let mut shape: Vec<i64> = x.shape().iter().map(|len| *len as i64).collect();
        axes_of("keep", axes, x.axes())?.into_iter().for_each(|axis| shape[axis] = 1);
        self.reshape(&shape)
    }

    fn reduce(&self, name: &'static str, kind: ReduceKind, axes: &[i64]) -> Result<Tensor> {
        let reduced = axes_of(name, axes, self.axes())?;
        let n: usize = reduced.iter().map(|axis| self.shape()[*axis]).product();
        if n == 0 && matches!(kind, ReduceKind::Max | ReduceKind::Min) {
            return shape_error(name, format!("{:?} has no element along axes {axes:?} to choose", self.shape()));
        }
        if self.dtype().is_float() {
            // Neighbouring axes are reduced where they lie: a line has one result wherever that is.
            let from = reduced.first().copied().unwrap_or(0);
            let is_run = reduced.iter().copied().eq(from..from + reduced.len());
            let (x, from) = if is_run { (self.clone(), from) } else { self.with_last(name, axes)? };
            return apply_float(Op::Reduce(Reduce { kind, from, to: from + reduced.len() }), &[&x], x.dtype());
        }
        let (x, from) = self.with_last(name, axes)?;
        let lines = &x.shape()[..from];
        let join = match kind {
            ReduceKind::Sum | ReduceKind::Mean => Join::Sum,
            ReduceKind::Max => Join::Max,
            ReduceKind::Min => Join::Min,
        };
        integers::reduce(join, &x, lines, n)
    }

    fn truth(&self, join: Join, axes: &[i64]) -> Result<Tensor> {
        let (x, from) = self.to_dtype(DType::Bool)?.with_last("any", axes)?;
        integers::reduce(join, &x, &x.shape()[..from], x.shape()[from..].iter().product())
    }

    fn first_of(&self, name: &'static str, is_largest: bool, axis: i64) -> Result<Tensor> {
        let at = axis_of(name, axis, self.axes())?;
        if self.shape()[at] == 0 {
            return shape_error(name, format!("axis {at} of {:?} has no element to choose", self.shape()));
        }
        if self.dtype().is_float() {
            return apply1(Op::ArgMax(ArgMax { axis: at, smallest: !is_largest }), &[self], DType::I64);
        }
        let (x, from) = self.with_last(name, &[axis])?;
        integers::first_of(is_largest, &x, &x.shape()[..from], self.shape()[at])
    }

    /// The tensor with the reduced axes behind all others, each in its order, and where they begin.
    fn with_last(&self, name: &'static str, axes: &[i64]) -> Result<(Tensor, usize)> {
        let reduced = axes_of(name, axes, self.axes())?;
        let mut order: Vec<i64> = (0..self.axes()).filter(|axis| !reduced.contains(axis)).map(|a| a as i64).collect();
        let from = order.len();
        order.extend(reduced.iter().map(|axis| *axis as i64));
        Ok((self.permute(&order)?, from))
    }
}

/// Ascending, without repetition; none means all.
fn axes_of(name: &'static str, axes: &[i64], count: usize) -> Result<Vec<usize>> {
    let mut all = axes.iter().map(|axis| axis_of(name, *axis, count)).collect::<Result<Vec<usize>>>()?;
    all.sort_unstable();
    if all.windows(2).any(|pair| pair[0] == pair[1]) {
        return shape_error(name, format!("an axis comes twice in {axes:?}"));
    }
    if axes.is_empty() {
        all = (0..count).collect();
    }
    Ok(all)
}
