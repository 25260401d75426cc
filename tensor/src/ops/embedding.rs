//! y = the rows of a table that the tokens name. table: (row, channel), tokens: (…), y: (…, channel).

use super::*;
use crate::leaves::tree_sum;

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

/// The table's gradient: each row adds its tokens' gradients in ascending order, and the shards' along the tree.
/// Inputs: dy, tokens. A task owns some rows and looks through all tokens for theirs.
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
        let channels = io.types[0].rows_cols().1.max(1);
        let (dy, tokens, shards) = (io.x[0], io.ints[1], io.key.shards);
        let leaf = tokens.len() / shards;
        let rows = (TASK / channels).max(1);
        let Work { team, rooms } = io.work;
        team.chunks_in(rooms, table, rows * channels, |room, i, table| {
            let first = i * rows;
            tree_sum(shards, table, &mut room.sums, |shard, table| {
                table.fill(F::ZERO);
                let tokens = &tokens[shard * leaf..][..leaf];
                for (dy, token) in dy[shard * leaf * channels..].chunks_exact(channels).zip(tokens) {
                    let Some(at) = row(*token, self.rows).checked_sub(first).filter(|at| *at < rows) else { continue };
                    for (sum, dy) in table[at * channels..].iter_mut().zip(dy) {
                        *sum += *dy;
                    }
                }
            });
        });
    }
}

fn row(token: i32, rows: usize) -> usize {
    assert!((0..rows as i64).contains(&(token as i64)), "the loader promised tokens under {rows}, not {token}");
    token as usize
}

/// Floats of the table that one task owns: enough that looking through the tokens costs little beside them.
const TASK: usize = 16 << 10;
