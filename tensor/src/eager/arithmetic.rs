//! Operations element by element, with NumPy's broadcasting.
//!
//! Two types meet as `promote` says. Integers wrap around at the ends of their type, as NumPy's do; a division is of
//! floats always.

use super::dtype::{DType, promote};
use super::tensor::{Tensor, apply_float, apply1};
use super::{Result, integers, type_error};
use crate::ops::{Each, Gelu, Op};

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident: $f:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
            arithmetic(Each::$f, self, other)
        }
    )*};
}

macro_rules! compare {
    ($($(#[$doc:meta])* $name:ident: $f:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self, other: &Tensor) -> Result<Tensor> {
            comparison(Each::$f, self, other)
        }
    )*};
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident: $f:ident),* $(,)?) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> Result<Tensor> {
            float(Op::Each(Each::$f), self)
        }
    )*};
}

/// Each gives an error where shapes do not broadcast. Results of integers are f32 where the function is one of floats.
impl Tensor {
    binary! {
        /// a + b. Of two booleans: whether any is true.
        add: Add,
        /// a - b. An error of two booleans, as in NumPy.
        sub: Sub,
        /// a · b. Of two booleans: whether both are true.
        mul: Mul,
        /// The larger of both; a NaN on either side wins. Where both are equal, each gets half of the gradient.
        maximum: Max,
        /// The smaller of both, likewise.
        minimum: Min,
    }

    compare! {
        /// Booleans: whether a = b.
        eq: Eq,
        /// Whether a ≠ b; true where one is NaN.
        ne: Ne,
        /// Whether a < b.
        lt: Lt,
        /// Whether a ≤ b.
        le: Le,
        /// Whether a > b.
        gt: Gt,
        /// Whether a ≥ b.
        ge: Ge,
    }

    unary! {
        /// e^x, within 2 ulp in f32.
        exp: Exp,
        /// The natural logarithm, within 2 ulp in f32; of 0 minus infinity, of less NaN.
        ln: Ln,
        sqrt: Sqrt,
        /// The hyperbolic tangent, within 3 ulp in f32.
        tanh: Tanh,
        /// 1 / (1 + e^-x).
        sigmoid: Sigmoid,
        /// x / (1 + e^-x).
        silu: Silu,
    }

    /// a / b, of floats. Integers are divided as f32.
    pub fn div(&self, other: &Tensor) -> Result<Tensor> {
        let both = promote(self.dtype(), other.dtype());
        apply_float(Op::Each(Each::Div), &[self, other], if both.is_float() { both } else { DType::F32 })
    }

    /// -x. An error of booleans.
    pub fn neg(&self) -> Result<Tensor> {
        self.own(Each::Neg, "neg")
    }

    /// The size without the sign; the gradient at 0 is 0.
    pub fn abs(&self) -> Result<Tensor> {
        self.own(Each::Abs, "abs")
    }

    /// x where it is more than 0, else 0; a NaN passes. The gradient at 0 is 0.
    pub fn relu(&self) -> Result<Tensor> {
        self.own(Each::Relu, "relu")
    }

    /// Into [low, high], of which NaN stays NaN, as in NumPy's `clip`. The gradient passes at the ends too.
    pub fn clamp(&self, low: f64, high: f64) -> Result<Tensor> {
        self.own(Each::Clamp(low, high), "clamp")
    }

    /// GELU in its tanh form.
    pub fn gelu(&self) -> Result<Tensor> {
        float(Op::Gelu(Gelu), self)
    }

    /// x to a fixed power. Of f32 it is rounded once.
    pub fn powf(&self, power: f64) -> Result<Tensor> {
        float(Op::Each(Each::Pow(power)), self)
    }

    /// x + c. Integers stay integers if `c` is whole.
    pub fn add_scalar(&self, c: f64) -> Result<Tensor> {
        self.with_scalar(Each::Shift(c), c, |x, c| x.add(c))
    }

    /// c · x, likewise.
    pub fn mul_scalar(&self, c: f64) -> Result<Tensor> {
        self.with_scalar(Each::Scale(c), c, |x, c| x.mul(c))
    }

    /// x / c.
    pub fn div_scalar(&self, c: f64) -> Result<Tensor> {
        let dtype = if self.dtype().is_float() { self.dtype() } else { DType::F32 };
        self.div(&Tensor::full(&[], c, dtype))
    }

    /// Element by element of two where `self`, booleans, is true, and `other` elsewhere. It selects: what is not chosen
    /// leaves no trace in value and gradient, be it infinite or NaN.
    pub fn select(&self, then: &Tensor, other: &Tensor) -> Result<Tensor> {
        if self.dtype() != DType::Bool {
            return type_error("select", format!("the condition is {}, not bool; compare something", self.dtype()));
        }
        let both = promote(then.dtype(), other.dtype());
        match both.is_float() {
            true => apply_float(Op::Each(Each::Where), &[self, then, other], both),
            false => integers::select(self, then, other, both),
        }
    }

    /// Booleans: whether it is false.
    pub fn not(&self) -> Result<Tensor> {
        match self.dtype() {
            DType::Bool => apply1(Op::Each(Each::Not), &[self], DType::Bool),
            other => type_error("not", format!("elements are {other}, not bool; compare with 0")),
        }
    }

    /// A function that has values of its operand's own type.
    fn own(&self, f: Each, name: &'static str) -> Result<Tensor> {
        match self.dtype() {
            DType::Bool => type_error(name, "booleans have no size or sign; convert with to_dtype first"),
            dtype if dtype.is_float() => apply_float(Op::Each(f), &[self], dtype),
            _ => integers::unary(f, self),
        }
    }

    fn with_scalar(&self, f: Each, c: f64, whole: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let dtype = self.dtype();
        if dtype.is_float() {
            return apply_float(Op::Each(f), &[self], dtype);
        }
        match c == libm::trunc(c) && dtype != DType::Bool {
            true => whole(self, &Tensor::full(&[], c, DType::I64).to_dtype(dtype)?),
            false => whole(self, &Tensor::full(&[], c, DType::F32)),
        }
    }
}

/// A function of floats; what is none is taken as f32.
fn float(op: Op, x: &Tensor) -> Result<Tensor> {
    apply_float(op, &[x], if x.dtype().is_float() { x.dtype() } else { DType::F32 })
}

fn arithmetic(f: Each, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let both = promote(a.dtype(), b.dtype());
    match both.is_float() {
        true => apply_float(Op::Each(f), &[a, b], both),
        false => integers::binary(f, a, b, both),
    }
}

fn comparison(f: Each, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let both = promote(a.dtype(), b.dtype());
    if !both.is_float() {
        return integers::binary(f, a, b, both);
    }
    let class = both.class().dtype();
    let bring = |x: &Tensor| {
        if x.dtype().is_float() && x.dtype().class() != both.class() { x.to_dtype(class) } else { Ok(x.clone()) }
    };
    apply1(Op::Each(f), &[&bring(a)?, &bring(b)?], DType::Bool)
}
