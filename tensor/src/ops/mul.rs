//! y = a * b, element by element.

use super::*;

#[derive(Clone, Debug)]
pub struct Mul;

impl Rule for Mul {
    const NAME: &'static str = "mul";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect(x, 1, "the second operand", &x[0].shape)?;
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let da = graph.apply1(Op::Mul(Mul), &node.path, &[dy, node.inputs[1]])?;
        let db = graph.apply1(Op::Mul(Mul), &node.path, &[dy, node.inputs[0]])?;
        Ok(vec![Some(da), Some(db)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        each::map2(&io.work.team, y, (io.x[0], io.x[1]), |a, b| a * b);
    }
}
