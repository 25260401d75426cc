//! y = max(x, 0). At 0 the gradient is 0; a NaN passes.

use super::*;

#[derive(Clone, Debug)]
pub struct Relu;

impl Rule for Relu {
    const NAME: &'static str = "relu";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(graph.apply1(Op::ReluGrad(ReluGrad), &node.path, &[node.outputs[0], dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        each::map(&io.work.team, y, io.x[0], |x| if x <= F::ZERO { F::ZERO } else { x });
    }
}

/// dx = dy where y > 0, else 0. Inputs: y, dy.
#[derive(Clone, Debug)]
pub struct ReluGrad;

impl Rule for ReluGrad {
    const NAME: &'static str = "relu gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 1, "the gradient", &x[0].shape)?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        each::map2(&io.work.team, dx, (io.x[0], io.x[1]), |y, dy| if y <= F::ZERO { F::ZERO } else { dy });
    }
}
