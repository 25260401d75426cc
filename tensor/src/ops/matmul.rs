//! C = A B of two matrices, each possibly read transposed. c: (m, n), summed over k in ascending order.

use super::*;
use crate::gemm::{Mat, Start};

#[derive(Clone, Debug, Default)]
pub struct MatMul {
    /// A is stored (k, m).
    pub a_transposed: bool,
    /// B is stored (n, k).
    pub b_transposed: bool,
}

impl MatMul {
    /// (m, k) of A and (k, n) of B as they are multiplied.
    fn sizes(&self, x: &[&Type]) -> ((usize, usize), (usize, usize)) {
        let swap = |yes, shape: &[usize]| if yes { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        (swap(self.a_transposed, &x[0].shape), swap(self.b_transposed, &x[1].shape))
    }
}

impl Rule for MatMul {
    const NAME: &'static str = "matmul";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the left operand", "row, column")?;
        expect_axes(x, 1, "the right operand", "row, column")?;
        let ((m, k), (k2, n)) = self.sizes(x);
        if k != k2 {
            let (i, j) = (!self.a_transposed as usize, self.b_transposed as usize);
            return Err(format!(
                "axis {i} of the left operand {} is {k}, axis {j} of the right operand {} is {k2}; they must agree",
                x[0], x[1]
            ));
        }
        Ok(vec![Type::float(&[m, n])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        if !self.a_transposed && !self.b_transposed {
            // The sum over rows has an op of its own: in a unit they are the batch's, if A is made of it.
            let da = MatMul { a_transposed: false, b_transposed: true };
            let da = graph.apply1(Op::MatMul(da), &node.path, &[dy, b])?;
            let db = graph.apply1(Op::LinearGradWeight(LinearGradWeight), &node.path, &[a, dy])?;
            return Ok(vec![Some(da), Some(db)]);
        }
        let mut product = |left, right, a_transposed, b_transposed| {
            graph.apply1(Op::MatMul(MatMul { a_transposed, b_transposed }), &node.path, &[left, right])
        };
        let da = match self.a_transposed {
            false => product(dy, b, false, !self.b_transposed)?,
            true => product(b, dy, self.b_transposed, true)?,
        };
        let db = match self.b_transposed {
            false => product(a, dy, !self.a_transposed, false)?,
            true => product(dy, a, true, self.a_transposed)?,
        };
        Ok(vec![Some(da), Some(db)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let ((m, k), (_, n)) = self.sizes(&[&io.types[0], &io.types[1]]);
        let mat = |transposed, x, rows: usize, cols: usize| match transposed {
            false => Mat::rows(x, cols),
            true => Mat::rows(x, rows).transposed(),
        };
        let (a, b) = (mat(self.a_transposed, io.x[0], m, k), mat(self.b_transposed, io.x[1], k, n));
        io.work.gemm(Gemm { m, n, k, a, b, start: Start::Zero }, y, n);
    }
}
