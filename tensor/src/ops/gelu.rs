//! y = x/2 (1 + tanh(u)) with u = √(2/π) (x + 0.044715 x³): the tanh form of GELU.
//!
//! Computed as x σ(2u) with σ(z) = 1/(1 + exp(-z)), which is the same function, needs one exp and one division, and
//! keeps its digits where 1 + tanh(u) would cancel.

use super::*;

const SLOPE: f64 = 0.797_884_560_802_865_4;
const CUBIC: f64 = 0.044_715;

#[derive(Clone, Debug)]
pub struct Gelu;

impl Rule for Gelu {
    const NAME: &'static str = "gelu";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(graph.apply1(Op::GeluGrad(GeluGrad), &node.path, &[node.inputs[0], dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        each::map(&io.work.team, y, io.x[0], gelu);
    }
}

/// dx = dy (σ + x σ (1 - σ) 2√(2/π) (1 + 3 · 0.044715 x²)). Inputs: x, dy.
#[derive(Clone, Debug)]
pub struct GeluGrad;

impl Rule for GeluGrad {
    const NAME: &'static str = "gelu gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 1, "the gradient", &x[0].shape)?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        each::map2(&io.work.team, dx, (io.x[0], io.x[1]), gelu_gradient);
    }
}

/// 1 + exp(-2u); its inverse is σ(2u). The power is taken of 2: that spares a reduction.
#[inline(always)]
fn below<F: Real>(x: F) -> F {
    const LINEAR: f64 = -2.0 * SLOPE * std::f64::consts::LOG2_E;
    F::ONE + (x * (F::of(LINEAR) + F::of(LINEAR * CUBIC) * (x * x))).exp2()
}

#[inline(always)]
fn gelu<F: Real>(x: F) -> F {
    x / below(x)
}

#[inline(always)]
fn gelu_gradient<F: Real>(x: F, dy: F) -> F {
    let (linear, cubic) = (F::of(2.0 * SLOPE), F::of(6.0 * SLOPE * CUBIC));
    let share = F::ONE / below(x);
    let slope = x * (linear + cubic * (x * x));
    dy * (share + slope * (share * (F::ONE - share)))
}
