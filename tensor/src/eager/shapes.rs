//! Operations that place elements: reshape, permute, broadcast, slice, concatenate, take. Results are new tensors.

use super::capture::Limit;
use super::dtype::{DType, promote};
use super::index::{self, Index};
use super::run::{self, Operand};
use super::storage::Storage;
use super::tape::{self, What};
use super::tensor::{Body, Tensor, apply1, check_axes, is_index};
use super::{Result, shape_error, type_error};
use crate::graph::{self, Type};
use crate::ops::{self, BroadcastTo, Concat, IO_MAX, Op, Permute, Reshape, Slice};
use std::borrow::Cow;
use std::rc::Rc;

/// An op that moves elements as they are, for elements of any type.
fn place(op: Op, inputs: &[&Tensor]) -> Result<Tensor> {
    let dtype = inputs[0].dtype();
    let is_traced = matches!(inputs[0].0.body, Body::Traced(_));
    if dtype.is_float() || is_traced {
        return apply1(op, inputs, dtype);
    }
    // Kernels move floats. What they do to the numbers of the elements (exact in f64) tells where each one goes.
    let mut first = 0;
    let mut numbers = Vec::new();
    for (slot, x) in inputs.iter().enumerate() {
        let own: Vec<f64> = (first..first + x.len()).map(|i| i as f64).collect();
        numbers.push(if is_index(&op, slot) { x.data(op.name())? } else { Rc::new(Storage::F64(own)) });
        first += x.len();
    }
    let ty = |(slot, x): (usize, &&Tensor)| Type {
        dtype: if is_index(&op, slot) { graph::DType::Int } else { graph::DType::Float },
        shape: x.shape().to_vec(),
    };
    let types: Vec<Type> = inputs.iter().enumerate().map(ty).collect();
    let out = op
        .infer(&types.iter().collect::<Vec<_>>())
        .map_err(|message| super::Error::Shape { op: op.name(), message })?;
    let operands: Vec<Operand> = numbers.iter().zip(types).map(|(data, ty)| Operand { data, ty }).collect();
    let placed = run::run(&op, super::dtype::Class::F64, &operands, &out).swap_remove(0);
    let places = placed.f64s().iter().map(|i| *i as usize).collect::<Vec<_>>();
    let whole: Vec<Rc<Storage>> = inputs.iter().map(|x| x.data(op.name())).collect::<Result<_>>()?;
    let data = match &whole[..] {
        [one] => one.pick(places.into_iter()),
        _ if is_index(&op, 1) => whole[0].pick(places.into_iter()),
        several => {
            let all: Vec<i64> = several.iter().flat_map(|x| x.i64s().into_owned()).collect();
            Storage::of_i64s(places.into_iter().map(|i| all[i]).collect(), dtype)
        }
    };
    Ok(Tensor::fresh(Rc::new(data), &out[0].shape, None))
}

/// The same elements under another shape, or (between types that one kernel reads alike) as another type.
fn rename(x: &Tensor, shape: &[usize], dtype: DType) -> Result<Tensor> {
    let op = Op::Reshape(Reshape { shape: shape.to_vec() });
    match &x.0.body {
        Body::Traced(_) => apply1(op, &[x], dtype),
        Body::Here(_) => {
            let data = x.data("reshape")?;
            let data = if data.dtype() == dtype { data } else { Rc::new(data.cast(dtype)) };
            Ok(tape::record(|| What::Op(op), &[x], vec![(data, shape.to_vec())]).swap_remove(0))
        }
    }
}

pub(super) fn same(x: &Tensor, dtype: DType) -> Result<Tensor> {
    rename(x, x.shape(), dtype)
}

/// A place among `axes`, counted from the end if negative.
pub(super) fn axis_of(op: &'static str, axis: i64, axes: usize) -> Result<usize> {
    match index::place(axis, axes) {
        Some(axis) => Ok(axis),
        None => shape_error(op, format!("there is no axis {axis} among {axes}")),
    }
}

impl Tensor {
    /// The same elements in another shape; one axis may be -1, and takes what is left.
    pub fn reshape(&self, shape: &[i64]) -> Result<Tensor> {
        let known: usize = shape.iter().filter(|len| **len >= 0).map(|len| *len as usize).product();
        let open = shape.iter().filter(|len| **len < 0).count();
        let fits = match open {
            0 => known == self.len(),
            1 => known > 0 && self.len().is_multiple_of(known) && shape.iter().all(|len| *len >= -1),
            _ => false,
        };
        if !fits {
            return shape_error("reshape", format!("{:?} cannot be {shape:?}", self.shape()));
        }
        let left = self.len() / known.max(1);
        let shape: Vec<usize> = shape.iter().map(|len| if *len < 0 { left } else { *len as usize }).collect();
        check_axes("reshape", &shape)?;
        rename(self, &shape, self.dtype())
    }

    /// One axis.
    pub fn flatten(&self) -> Result<Tensor> {
        self.reshape(&[-1]).or_else(|_| rename(self, &[0], self.dtype()))
    }

    /// Axes in another order: axis i of the result is axis `axes[i]` of this.
    pub fn permute(&self, axes: &[i64]) -> Result<Tensor> {
        let axes = axes.iter().map(|axis| axis_of("permute", *axis, self.axes())).collect::<Result<Vec<usize>>>()?;
        if axes.len() == self.axes() && axes.iter().copied().eq(0..axes.len()) {
            return Ok(self.clone());
        }
        place(Op::Permute(Permute { axes }), &[self])
    }

    /// Two axes change places.
    pub fn transpose(&self, a: i64, b: i64) -> Result<Tensor> {
        let (a, b) = (axis_of("transpose", a, self.axes())?, axis_of("transpose", b, self.axes())?);
        let mut axes: Vec<i64> = (0..self.axes() as i64).collect();
        axes.swap(a, b);
        self.permute(&axes)
    }

    /// All axes in the opposite order.
    pub fn t(&self) -> Result<Tensor> {
        self.permute(&(0..self.axes() as i64).rev().collect::<Vec<_>>())
    }

    /// Repeated to a larger shape by NumPy's rule.
    pub fn broadcast_to(&self, shape: &[usize]) -> Result<Tensor> {
        if self.shape() == shape {
            return Ok(self.clone());
        }
        place(Op::BroadcastTo(BroadcastTo { shape: shape.to_vec() }), &[self])
    }

    /// A new axis of length 1 before axis `axis` (0 to the number of axes).
    pub fn unsqueeze(&self, axis: i64) -> Result<Tensor> {
        let axis = axis_of("unsqueeze", axis, self.axes() + 1)?;
        let mut shape = self.shape().to_vec();
        shape.insert(axis, 1);
        check_axes("unsqueeze", &shape)?;
        rename(self, &shape, self.dtype())
    }

    /// Without axis `axis`, which must have length 1.
    pub fn squeeze(&self, axis: i64) -> Result<Tensor> {
        let axis = axis_of("squeeze", axis, self.axes())?;
        let mut shape = self.shape().to_vec();
        match shape.remove(axis) {
            1 => rename(self, &shape, self.dtype()),
            len => shape_error("squeeze", format!("axis {axis} of {:?} is {len}, not 1", self.shape())),
        }
    }

    /// NumPy's basic indexing, as a new tensor: `x.slice(&[(1..3).into(), Index::every(-1)])` is `x[1:3, ::-1]`.
    pub fn slice(&self, indices: &[Index]) -> Result<Tensor> {
        let part = index::part(self.shape(), indices)?;
        check_axes("slice", &part.shape)?;
        let is_whole = part.ranges.iter().zip(self.shape()).all(|(r, len)| (r.step, r.len) == (1, *len));
        let taken = if is_whole { self.clone() } else { place(Op::Slice(Slice { ranges: part.ranges }), &[self])? };
        if taken.shape() == part.shape { Ok(taken) } else { rename(&taken, &part.shape, self.dtype()) }
    }

    /// Row `at` of axis `axis`, which goes away.
    pub fn at(&self, axis: i64, at: i64) -> Result<Tensor> {
        let axis = axis_of("at", axis, self.axes())?;
        let mut indices = vec![Index::ALL; axis];
        indices.push(Index::At(at));
        self.slice(&indices)
    }

    /// The rows of axis `axis` that `indices` (integers of any shape; negative ones count from the end) name: their
    /// axes come in its place. NumPy's `take`. A row that is named twice adds up its gradients in order.
    pub fn take(&self, axis: i64, indices: &Tensor) -> Result<Tensor> {
        let axis = axis_of("take", axis, self.axes())?;
        let op = Op::Take(ops::Take { axis });
        place(op.clone(), &[self, &indices_of(&op, self, indices)?])
    }

    /// NumPy's `take_along_axis`: y[.., k, ..] = x[.., indices[.., k, ..], ..] on axis `axis`; other axes agree.
    pub fn gather(&self, axis: i64, indices: &Tensor) -> Result<Tensor> {
        let axis = axis_of("gather", axis, self.axes())?;
        let op = Op::Gather(ops::Gather { axis });
        place(op.clone(), &[self, &indices_of(&op, self, indices)?])
    }

    /// Tensors one behind the other along axis `axis`; all other axes agree. Types meet as `promote` says.
    pub fn concat(tensors: &[&Tensor], axis: i64) -> Result<Tensor> {
        let Some(first) = tensors.first() else { return shape_error("concat", "there is nothing to concatenate") };
        let axis = axis_of("concat", axis, first.axes())?;
        let both = tensors.iter().fold(first.dtype(), |both, x| promote(both, x.dtype()));
        let mut parts: Vec<Tensor> = tensors.iter().map(|x| x.to_dtype(both)).collect::<Result<_>>()?;
        while parts.len() > 1 {
            let join = |some: &[Tensor]| match some {
                [one] => Ok(one.clone()),
                some => place(Op::Concat(Concat { axis }), &some.iter().collect::<Vec<_>>()),
            };
            parts = parts.chunks(IO_MAX).map(join).collect::<Result<_>>()?;
        }
        Ok(parts.swap_remove(0))
    }

    /// Tensors of one shape along a new axis `axis`.
    pub fn stack(tensors: &[&Tensor], axis: i64) -> Result<Tensor> {
        let each: Vec<Tensor> = tensors.iter().map(|x| x.unsqueeze(axis)).collect::<Result<_>>()?;
        let axis = if axis < 0 && !each.is_empty() { axis + each[0].axes() as i64 } else { axis };
        Tensor::concat(&each.iter().collect::<Vec<_>>(), axis)
    }
}

/// Indices that the op may read: whole numbers, the negative ones counted from the end, all in range.
pub(super) fn indices_of(op: &Op, x: &Tensor, indices: &Tensor) -> Result<Tensor> {
    if !matches!(indices.dtype(), DType::I64 | DType::I32 | DType::U8) {
        return type_error(op.name(), format!("the indices are {}; they must be i64, i32 or u8", indices.dtype()));
    }
    let Body::Here(here) = &indices.0.body else { return Ok(indices.clone()) };
    let limit = Limit::of(op, x.shape()).expect("an op with indices");
    let data = here.data.borrow().clone();
    let mut all: Cow<'_, [i64]> = data.i64s();
    if !limit.may_be_ignored && all.iter().any(|i| *i < 0) {
        all.to_mut().iter_mut().filter(|i| **i < 0).for_each(|i| *i = i.saturating_add(limit.end as i64));
    }
    if let Some(wrong) = limit.first_wrong(&all) {
        let counted = if limit.may_be_ignored { "" } else { " (negative ones are counted from the end)" };
        let message = format!("index {wrong}{counted} is not under {}, for {:?}", limit.end, x.shape());
        return shape_error(op.name(), message);
    }
    Ok(Tensor::fresh(Rc::new(Storage::I64(all.into_owned())), indices.shape(), None))
}
