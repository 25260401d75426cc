//! y = x Wᵀ + b. x: (…, in), W: (out, in), b: (out), y: (…, out).

use super::*;
use crate::gemm::{Mat, Start};

#[derive(Clone, Debug)]
pub struct Linear;

impl Rule for Linear {
    const NAME: &'static str = "linear";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 1, "the weight", "out, in")?;
        let (out, inner) = (x[1].shape[0], x[1].shape[1]);
        let last = x[0].shape.len().checked_sub(1).ok_or("the input is a scalar, but needs axes (…, in)")?;
        if x[0].shape[last] != inner {
            return Err(format!(
                "axis {last} of the input {} is {}, but axis 1 of the weight {} (out, in) is {inner}",
                x[0], x[0].shape[last], x[1]
            ));
        }
        if x.len() == 3 {
            expect(x, 2, "the bias", &[out])?;
        }
        let mut shape = x[0].shape.clone();
        shape[last] = out;
        Ok(vec![Type::float(&shape)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None; node.inputs.len()]) };
        let (x, w) = (node.inputs[0], node.inputs[1]);
        let whole = graph.ty(x).shape.clone();
        let ((rows, inner), (_, out)) = (graph.ty(x).rows_cols(), graph.ty(dy).rows_cols());
        let flat =
            |graph: &mut Graph, v, shape: Vec<usize>| graph.apply1(Op::Reshape(Reshape { shape }), &node.path, &[v]);
        let dy = flat(graph, dy, vec![rows, out])?;
        let x = flat(graph, x, vec![rows, inner])?;
        let dx = graph.apply1(Op::MatMul(MatMul::default()), &node.path, &[dy, w])?;
        let dx = flat(graph, dx, whole)?;
        let dw = graph.apply1(Op::LinearGradWeight(LinearGradWeight), &node.path, &[dy, x])?;
        let mut grads = vec![Some(dx), Some(dw)];
        if node.inputs.len() == 3 {
            grads.push(Some(graph.apply1(Op::SumLeading(SumLeading { keep: 1 }), &node.path, &[dy])?));
        }
        Ok(grads)
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let ((m, k), n) = (io.types[0].rows_cols(), io.types[1].shape[0]);
        let b = Mat::rows(io.x[1], k).transposed();
        let gemm = Gemm { m, n, k, a: Mat::rows(io.x[0], k), b, start: Start::Zero };
        let bias = if io.types.len() == 3 { io.x[2] } else { &[] };
        F::product(TeamGemm { gemm, shards: 1, bias }, y, n, io.work);
    }
}

/// dW = dyᵀ x, each element one chain over ascending rows; of several shards, one chain a shard, added along the tree.
/// dy: (row, out), x: (row, in), dW: (out, in).
#[derive(Clone, Debug)]
pub struct LinearGradWeight;

impl Rule for LinearGradWeight {
    const NAME: &'static str = "linear weight gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the gradient", "row, out")?;
        expect_axes(x, 1, "the input", "row, in")?;
        expect(x, 1, "the input", &[x[0].shape[0], x[1].shape[1]])?;
        Ok(vec![Type::float(&[x[0].shape[1], x[1].shape[1]])])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dw, ..] = io.y;
        let ((k, m), n) = (io.types[0].rows_cols(), io.types[1].shape[1]);
        let (a, b) = (Mat::rows(io.x[0], m).transposed(), Mat::rows(io.x[1], n));
        let gemm = Gemm { m, n, k, a, b, start: Start::Zero };
        F::product(TeamGemm { gemm, shards: io.key.shards, bias: &[] }, dw, n, io.work);
    }
}
