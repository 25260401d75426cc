//! y = the rows of a table that the tokens name. table: (row, channel), tokens: (…), y: (…, channel).

use super::*;

#[derive(Clone, Debug)]
pub struct Embedding;

impl Rule for Embedding {
    const NAME: &'static str = "embedding";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the table", "row, channel")?;
        if x[1].dtype != crate::graph::DType::Int {
            return Err(format!("the tokens {} must be integers", x[1]));
        }
        let mut shape = x[1].shape.clone();
        shape.push(x[0].shape[1]);
        Ok(vec![Type::float(&shape)])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let rows = graph.ty(node.inputs[0]).shape[0];
        let op = Op::EmbeddingGrad(EmbeddingGrad { rows });
        Ok(vec![Some(graph.apply1(op, &node.path, &[dy, node.inputs[1]])?), None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (rows, channels) = (io.types[0].shape[0], io.types[0].shape[1]);
        for (y, token) in y.chunks_exact_mut(channels.max(1)).zip(io.ints[1]) {
            y.copy_from_slice(&io.x[0][row(*token, rows) * channels..][..channels]);
        }
    }
}

/// The table's gradient: each row adds its tokens' gradients in ascending order. Inputs: dy, tokens.
#[derive(Clone, Debug)]
pub struct EmbeddingGrad {
    pub rows: usize,
}

impl Rule for EmbeddingGrad {
    const NAME: &'static str = "embedding gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let (tokens, channels) = x[0].rows_cols();
        if tokens != x[1].len() {
            return Err(format!("the gradient {} has {tokens} rows, the tokens are {}", x[0], x[1]));
        }
        Ok(vec![Type::float(&[self.rows, channels])])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [table, ..] = io.y;
        let channels = io.types[0].rows_cols().1;
        table.fill(F::ZERO);
        for (dy, token) in io.x[0].chunks_exact(channels.max(1)).zip(io.ints[1]) {
            for (sum, dy) in table[row(*token, self.rows) * channels..].iter_mut().zip(dy) {
                *sum += *dy;
            }
        }
    }
}

fn row(token: i32, rows: usize) -> usize {
    assert!((0..rows as i64).contains(&(token as i64)), "the loader promised tokens under {rows}, not {token}");
    token as usize
}
