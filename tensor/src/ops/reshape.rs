//! The same elements in another shape. The planner makes it a second name of the same memory.

use super::*;

#[derive(Clone, Debug)]
pub struct Reshape {
    pub shape: Vec<usize>,
}

impl Rule for Reshape {
    const NAME: &'static str = "reshape";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let len: usize = self.shape.iter().product();
        if len != x[0].len() {
            return Err(format!("{} has {} elements, shape {:?} has {len}", x[0], x[0].len(), self.shape));
        }
        Ok(vec![Type { dtype: x[0].dtype, shape: self.shape.clone() }])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let shape = graph.ty(node.inputs[0]).shape.clone();
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(graph.apply1(Op::Reshape(Reshape { shape }), &node.path, &[dy])?)])
    }

    /// Never runs in a plan, where both names lie in one place.
    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        y.copy_from_slice(io.x[0]);
    }
}
