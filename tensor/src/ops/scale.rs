//! y = factor * x, for a factor fixed when the graph is built.

use super::*;

#[derive(Clone, Debug)]
pub struct Scale {
    pub factor: f64,
}

impl Rule for Scale {
    const NAME: &'static str = "scale";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(graph.apply1(Op::Scale(self.clone()), &node.path, &[dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let factor = F::of(self.factor);
        each::map(&io.work.team, y, io.x[0], |x| factor * x);
    }
}
