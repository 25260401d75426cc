//! y = a + b, where b may lack leading axes of a and is then repeated over them.

use super::*;

#[derive(Clone, Debug)]
pub struct Add;

impl Rule for Add {
    const NAME: &'static str = "add";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let tail = x[0].shape.len().checked_sub(x[1].shape.len());
        let tail = tail.ok_or_else(|| format!("the second operand {} has more axes than the first {}", x[1], x[0]))?;
        expect(x, 1, "the second operand", &x[0].shape[tail..])?;
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let (whole, part) = (graph.ty(node.inputs[0]).shape.len(), graph.ty(node.inputs[1]).shape.len());
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        if whole == part {
            return Ok(vec![Some(dy), Some(dy)]);
        }
        let summed = graph.apply1(Op::SumLeading(SumLeading { keep: part }), &node.path, &[dy])?;
        Ok(vec![Some(dy), Some(summed)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (a, b) = (io.x[0], io.x[1]);
        match a.len() == b.len() {
            true => each::map2(&io.work.team, y, (a, b), |a, b| a + b),
            false => each::map2_rows(&io.work.team, y, (a, b), |a, b| a + b),
        }
    }
}
