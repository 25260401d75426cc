//! Matrix products, and the layers that stand on them: linear, softmax, layer norm, cross-entropy, embedding.

use super::dtype::{DType, promote};
use super::shapes::{axis_of, indices_of};
use super::tensor::{Tensor, apply, apply_float};
use super::{Result, shape_error, type_error};
use crate::ops::{self, BatchMatMul, MatMul, Op, Softmax};

/// Only of floats; each element is one chain of fused multiply-adds over ascending k.
impl Tensor {
    /// NumPy's `matmul`: (…, m, k) by (…, k, n), with leading axes broadcast; of a vector the missing axis is added and
    /// taken away again.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        let (a, b) = (self, other);
        if a.axes() == 0 || b.axes() == 0 {
            return shape_error("matmul", format!("{:?} by {:?}: a scalar has no rows", a.shape(), b.shape()));
        }
        let both = promote(a.dtype(), b.dtype());
        if !both.is_float() {
            return type_error("matmul", format!("{} by {}: convert one to a float", a.dtype(), b.dtype()));
        }
        let (left, right) = (a.axes() == 1, b.axes() == 1);
        let a = if left { a.unsqueeze(0)? } else { a.clone() };
        let b = if right { b.unsqueeze(-1)? } else { b.clone() };
        let mut y = product(&a, &b, both)?;
        if right {
            y = y.squeeze(-1)?;
        }
        if left {
            y = y.squeeze(if right { -1 } else { -2 })?;
        }
        Ok(y)
    }

    /// x Wᵀ + b over the last axis. x: (…, in), weight: (out, in), bias: (out).
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let both = bias.iter().fold(promote(self.dtype(), weight.dtype()), |both, b| promote(both, b.dtype()));
        let inputs: Vec<&Tensor> = [self, weight].into_iter().chain(bias).collect();
        apply_float(Op::Linear(ops::Linear), &inputs, float_of("linear", both)?)
    }

    /// e^x over the sum of e^x along `axis`.
    pub fn softmax(&self, axis: i64) -> Result<Tensor> {
        self.shares(false, axis)
    }

    /// The logarithm of the softmax along `axis`.
    pub fn log_softmax(&self, axis: i64) -> Result<Tensor> {
        self.shares(true, axis)
    }

    fn shares(&self, log: bool, axis: i64) -> Result<Tensor> {
        let axis = axis_of("softmax", axis, self.axes())? as i64;
        let x = self.transpose(axis, -1)?;
        apply_float(Op::Softmax(Softmax { log }), &[&x], float_of("softmax", self.dtype())?)?.transpose(axis, -1)
    }

    /// (x - mean) / √(variance + eps) · scale + shift over the last axis. scale and shift: (last axis).
    pub fn layer_norm(&self, scale: &Tensor, shift: &Tensor, eps: f64) -> Result<Tensor> {
        let dtype = float_of("layer_norm", self.dtype())?;
        let class = dtype.class().dtype();
        let inputs = [self, scale, shift].map(|x| x.to_dtype(class));
        let [x, scale, shift] = inputs;
        let y = apply(Op::LayerNorm(ops::LayerNorm { eps }), &[&x?, &scale?, &shift?], class)?.swap_remove(0);
        y.to_dtype(dtype)
    }

    /// The loss of each row: -log softmax(x)[target]. x: (…, class), targets: integers (…); the result has one axis of all
    /// rows. Rows whose target is -1 have loss 0 and no gradient.
    pub fn cross_entropy(&self, targets: &Tensor) -> Result<Tensor> {
        let op = Op::CrossEntropy(ops::CrossEntropy);
        let dtype = float_of("cross_entropy", self.dtype())?;
        if self.axes() == 0 {
            return shape_error("cross_entropy", "the scores are a scalar, but need an axis of classes");
        }
        let class = dtype.class().dtype();
        let loss =
            apply(op.clone(), &[&self.to_dtype(class)?, &indices_of(&op, self, targets)?], class)?.swap_remove(0);
        loss.to_dtype(dtype)
    }

    /// Rows of this table (row, channel) by integers (…): (…, channel).
    pub fn embedding(&self, rows: &Tensor) -> Result<Tensor> {
        self.take(0, rows)
    }
}

fn float_of(op: &'static str, dtype: DType) -> Result<DType> {
    match dtype.is_float() {
        true => Ok(dtype),
        false => type_error(op, format!("elements are {dtype}; convert to a float first")),
    }
}

fn product(a: &Tensor, b: &Tensor, both: DType) -> Result<Tensor> {
    let (rows, inner) = (a.shape()[a.axes() - 2], a.shape()[a.axes() - 1]);
    let (inner_b, columns) = (b.shape()[b.axes() - 2], b.shape()[b.axes() - 1]);
    if inner != inner_b {
        let message = format!("{:?} by {:?}: {inner} columns meet {inner_b} rows", a.shape(), b.shape());
        return shape_error("matmul", message);
    }
    let size = |n: usize| n as i64;
    // One matrix for all rows on the left is one product: rows do not know each other.
    if b.axes() == 2 {
        let lead = a.shape()[..a.axes() - 1].to_vec();
        let flat = a.reshape(&[size(lead.iter().product()), size(inner)])?;
        let y = apply_float(Op::MatMul(MatMul::default()), &[&flat, b], both)?;
        let shape: Vec<i64> = lead.into_iter().chain([columns]).map(size).collect();
        return y.reshape(&shape);
    }
    let lead = ops::broadcast_shape(&[&a.shape()[..a.axes() - 2], &b.shape()[..b.axes() - 2]]);
    let lead = lead.map_err(|message| super::Error::Shape { op: "matmul", message })?;
    let batch = |x: &Tensor, m: usize, n: usize| {
        let whole = x.broadcast_to(&[&lead[..], &[m, n]].concat())?;
        whole.reshape(&[size(lead.iter().product()), size(m), size(n)])
    };
    let (a, b) = (batch(a, rows, inner)?, batch(b, inner, columns)?);
    let y = apply_float(Op::BatchMatMul(BatchMatMul::default()), &[&a, &b], both)?;
    let shape: Vec<i64> = lead.into_iter().chain([rows, columns]).map(size).collect();
    y.reshape(&shape)
}
