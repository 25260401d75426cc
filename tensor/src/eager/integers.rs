//! Operations on tensors of integers and booleans: plain loops over i64, which holds them all. They are no ops of the
//! IR, since nothing of them has a gradient; a captured graph has integers only as indices.

use super::dtype::DType;
use super::storage::Storage;
use super::tensor::Tensor;
use super::{Result, type_error};
use crate::ops::{self, Each};
use std::rc::Rc;

fn fresh(xs: Vec<i64>, shape: &[usize], dtype: DType) -> Tensor {
    Tensor::fresh(Rc::new(Storage::of_i64s(xs, dtype)), shape, None)
}

/// The operands' elements in the shape that they have together.
fn together<const N: usize>(op: &'static str, xs: [&Tensor; N]) -> Result<(Vec<usize>, [Vec<i64>; N])> {
    let shape = ops::broadcast_shape(&xs.map(Tensor::shape));
    let shape = shape.map_err(|message| super::Error::Shape { op, message })?;
    let mut all = std::array::from_fn(|_| Vec::new());
    for (all, x) in all.iter_mut().zip(xs) {
        *all = x.broadcast_to(&shape)?.data(op)?.i64s().into_owned();
    }
    Ok((shape, all))
}

pub(super) fn binary(f: Each, a: &Tensor, b: &Tensor, both: DType) -> Result<Tensor> {
    if f == Each::Sub && both == DType::Bool {
        return type_error("sub", "booleans are not subtracted; use ne for what differs");
    }
    let (shape, [xs, ys]) = together("arithmetic", [a, b])?;
    let is_truth = matches!(f, Each::Eq | Each::Ne | Each::Lt | Each::Le | Each::Gt | Each::Ge);
    let of = |(x, y): (&i64, &i64)| {
        let (x, y) = (*x, *y);
        match f {
            Each::Add => x.wrapping_add(y),
            Each::Sub => x.wrapping_sub(y),
            Each::Mul => x.wrapping_mul(y),
            Each::Max => x.max(y),
            Each::Min => x.min(y),
            Each::Eq => (x == y) as i64,
            Each::Ne => (x != y) as i64,
            Each::Lt => (x < y) as i64,
            Each::Le => (x <= y) as i64,
            Each::Gt => (x > y) as i64,
            Each::Ge => (x >= y) as i64,
            other => unreachable!("{other:?} is a function of floats"),
        }
    };
    let out = if is_truth { DType::Bool } else { both };
    Ok(fresh(xs.iter().zip(&ys).map(of).collect(), &shape, out))
}

pub(super) fn unary(f: Each, x: &Tensor) -> Result<Tensor> {
    let of = |x: &i64| match f {
        Each::Neg => x.wrapping_neg(),
        Each::Abs => x.wrapping_abs(),
        Each::Relu => *x.max(&0),
        // The ends are rounded inwards: what lies outside of them is not in the range.
        Each::Clamp(low, high) => (*x).max(libm::ceil(low) as i64).min(libm::floor(high) as i64),
        other => unreachable!("{other:?} is a function of floats"),
    };
    Ok(fresh(x.data("arithmetic")?.i64s().iter().map(of).collect(), x.shape(), x.dtype()))
}

pub(super) fn select(condition: &Tensor, then: &Tensor, other: &Tensor, both: DType) -> Result<Tensor> {
    let (shape, [is, xs, ys]) = together("select", [condition, then, other])?;
    let chosen = is.iter().zip(xs.iter().zip(&ys)).map(|(is, (x, y))| if *is != 0 { *x } else { *y });
    Ok(fresh(chosen.collect(), &shape, both))
}

/// How the elements of one line become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Join {
    Sum,
    Max,
    Min,
    Any,
    All,
}

/// x: (result, line).
pub(super) fn reduce(join: Join, x: &Tensor, lines: &[usize], n: usize) -> Result<Tensor> {
    let data = x.data("reduce")?;
    let (xs, count) = (data.i64s(), lines.iter().product::<usize>());
    let out = match join {
        Join::Sum => DType::I64,
        Join::Any | Join::All => DType::Bool,
        Join::Max | Join::Min => x.dtype(),
    };
    let one = |line: &[i64]| match join {
        Join::Sum => line.iter().fold(0i64, |a, b| a.wrapping_add(*b)),
        Join::Max => *line.iter().max().expect("an empty line was refused"),
        Join::Min => *line.iter().min().expect("an empty line was refused"),
        Join::Any => line.iter().any(|x| *x != 0) as i64,
        Join::All => line.iter().all(|x| *x != 0) as i64,
    };
    Ok(fresh((0..count).map(|i| one(&xs[i * n..][..n])).collect(), lines, out))
}

/// Index of the first largest or smallest of each line; x: (result, line).
pub(super) fn first_of(is_largest: bool, x: &Tensor, lines: &[usize], n: usize) -> Result<Tensor> {
    let data = x.data("argmax")?;
    let (xs, count) = (data.i64s(), lines.iter().product::<usize>());
    let one = |line: &[i64]| {
        let mut best = 0;
        for (at, x) in line.iter().enumerate() {
            if (is_largest && *x > line[best]) || (!is_largest && *x < line[best]) {
                best = at;
            }
        }
        best as i64
    };
    Ok(fresh((0..count).map(|i| one(&xs[i * n..][..n])).collect(), lines, DType::I64))
}
