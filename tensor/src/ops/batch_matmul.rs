//! C = A B for each of a batch of matrices, possibly read transposed. a: (batch, m, k), b: (batch, k, n).
//!
//! Each product has the bits that `MatMul` gives it alone: one chain over ascending k for each element.

use super::*;
use crate::gemm::{Mat, Start};

#[derive(Clone, Debug, Default)]
pub struct BatchMatMul {
    /// A is stored (batch, k, m).
    pub a_transposed: bool,
    /// B is stored (batch, n, k).
    pub b_transposed: bool,
}

impl BatchMatMul {
    fn sizes(&self, x: [&[usize]; 2]) -> ((usize, usize), (usize, usize)) {
        let swap = |yes, shape: &[usize]| if yes { (shape[2], shape[1]) } else { (shape[1], shape[2]) };
        (swap(self.a_transposed, x[0]), swap(self.b_transposed, x[1]))
    }
}

impl Rule for BatchMatMul {
    const NAME: &'static str = "batched matmul";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the left operand", "batch, row, column")?;
        expect_axes(x, 1, "the right operand", "batch, row, column")?;
        let ((m, k), (k2, n)) = self.sizes([&x[0].shape, &x[1].shape]);
        if k != k2 || x[0].shape[0] != x[1].shape[0] {
            return Err(format!(
                "{} by {}: the left has {k} columns, the right {k2} rows; these and the batch axes must agree",
                x[0], x[1]
            ));
        }
        Ok(vec![Type::float(&[x[0].shape[0], m, n])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        let mut product = |left, right, a_transposed, b_transposed| {
            graph.apply1(Op::BatchMatMul(BatchMatMul { a_transposed, b_transposed }), &node.path, &[left, right])
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
        let ((m, k), (_, n)) = self.sizes([&io.types[0].shape, &io.types[1].shape]);
        let mat = |transposed, x, rows: usize, cols: usize| match transposed {
            false => Mat::rows(x, cols),
            true => Mat::rows(x, rows).transposed(),
        };
        for (i, y) in y.chunks_exact_mut((m * n).max(1)).enumerate() {
            let (a, b) = (&io.x[0][i * m * k..][..m * k], &io.x[1][i * k * n..][..k * n]);
            let (a, b) = (mat(self.a_transposed, a, m, k), mat(self.b_transposed, b, k, n));
            io.work.gemm(Gemm { m, n, k, a, b, start: Start::Zero }, y, n);
        }
    }
}
