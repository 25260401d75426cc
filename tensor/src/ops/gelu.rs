//! y = x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))): the tanh form of GELU.

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
        let (slope, cubic, half) = (F::of(SLOPE), F::of(CUBIC), F::of(0.5));
        for (y, x) in y.iter_mut().zip(io.x[0]) {
            let x = *x;
            let t = (slope * (x + cubic * x * x * x)).tanh();
            *y = half * x * (F::ONE + t);
        }
    }
}

/// dx = dy (½(1 + t) + ½ x (1 - t²) √(2/π) (1 + 3 · 0.044715 x²)). Inputs: x, dy.
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
        let (slope, cubic, half) = (F::of(SLOPE), F::of(CUBIC), F::of(0.5));
        let cubic3 = F::of(3.0 * CUBIC);
        for ((dx, x), dy) in dx.iter_mut().zip(io.x[0]).zip(io.x[1]) {
            let x = *x;
            let t = (slope * (x + cubic * x * x * x)).tanh();
            let inner = slope * (F::ONE + cubic3 * x * x);
            *dx = *dy * (half * (F::ONE + t) + half * x * (F::ONE - t * t) * inner);
        }
    }
}
