//! The handle that model code works with: each call records one op into the graph being traced.

use crate::graph::{DType, Graph, ShapeError, Type, Value};
use crate::ops::{self, Op};
use std::cell::RefCell;
use std::rc::Rc;

/// A value of a graph, and the graph. Cheap to clone.
#[derive(Clone)]
pub struct Tensor {
    pub(crate) graph: Rc<RefCell<Graph>>,
    pub(crate) value: Value,
    /// Where in the module tree the handle was made: the place that errors name.
    pub(crate) path: Rc<str>,
}

pub type Result<T> = std::result::Result<T, ShapeError>;

impl Tensor {
    pub fn shape(&self) -> Vec<usize> {
        self.ty().shape
    }

    pub fn is_int(&self) -> bool {
        self.ty().dtype == DType::Int
    }

    fn ty(&self) -> Type {
        self.graph.borrow().ty(self.value).clone()
    }

    pub(crate) fn with(&self, value: Value) -> Tensor {
        Tensor { value, ..self.clone() }
    }

    pub(crate) fn apply(&self, op: Op, path: &str, others: &[&Tensor]) -> Result<Vec<Tensor>> {
        let inputs: Vec<Value> = [self].iter().chain(others).map(|t| t.value).collect();
        let outputs = self.graph.borrow_mut().apply(op, path, &inputs)?;
        Ok(outputs.into_iter().map(|v| self.with(v)).collect())
    }

    fn one(&self, op: Op, others: &[&Tensor]) -> Result<Tensor> {
        let path = self.path.clone();
        Ok(self.apply(op, &path, others)?.swap_remove(0))
    }

    /// For ops that take any shape.
    fn any(&self, op: Op) -> Tensor {
        self.one(op, &[]).expect("an op on any shape")
    }

    /// Sum; `other` may lack leading axes and is then repeated over them.
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        self.one(Op::Add(ops::Add), &[other])
    }

    /// Product, element by element.
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        self.one(Op::Mul(ops::Mul), &[other])
    }

    pub fn scale(&self, factor: f64) -> Tensor {
        self.any(Op::Scale(ops::Scale { factor }))
    }

    pub fn relu(&self) -> Tensor {
        self.any(Op::Relu(ops::Relu))
    }

    /// GELU in its tanh form.
    pub fn gelu(&self) -> Tensor {
        self.any(Op::Gelu(ops::Gelu))
    }

    /// Product of two matrices.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        self.one(Op::MatMul(ops::MatMul::default()), &[other])
    }

    pub fn reshape(&self, shape: &[usize]) -> Result<Tensor> {
        self.one(Op::Reshape(ops::Reshape { shape: shape.to_vec() }), &[])
    }

    /// (sample, everything else as one axis).
    pub fn flatten(&self) -> Result<Tensor> {
        let shape = self.shape();
        let samples = shape.first().copied().unwrap_or(1);
        self.reshape(&[samples, shape.iter().skip(1).product()])
    }

    /// x Wᵀ without bias, for a weight that already exists: a tied output layer.
    pub fn linear_with(&self, weight: &Tensor) -> Result<Tensor> {
        self.one(Op::Linear(ops::Linear), &[weight])
    }

    /// Largest of each window of (sample, channel, h, w).
    pub fn max_pool(&self, kernel: usize, stride: usize) -> Result<Tensor> {
        self.one(Op::MaxPool(ops::MaxPool { kernel, stride }), &[])
    }

    /// Mean of each window of (sample, channel, h, w).
    pub fn avg_pool(&self, kernel: usize, stride: usize) -> Result<Tensor> {
        self.one(Op::AvgPool(ops::AvgPool { kernel, stride }), &[])
    }

    /// Queries and keys of (sample, token, 3·channel), turned by their places before `causal_attention` (rotary
    /// positions, base 10,000). A head needs an even number of channels.
    pub fn rotary(&self, heads: usize) -> Result<Tensor> {
        let shape = self.shape();
        let (tokens, channels) = (shape.get(1).copied().unwrap_or(0), shape.get(2).copied().unwrap_or(0));
        self.one(Op::Rotary(ops::Rotary::new(heads, channels / 3 / heads.max(1), tokens, 1e4)), &[])
    }

    /// Attention over (sample, token, 3·channel) holding q, k, v.
    pub fn causal_attention(&self, heads: usize) -> Result<Tensor> {
        self.one(Op::CausalAttention(ops::CausalAttention { heads }), &[])
    }
}
