//! Sum over all axes but the last `keep`: bias gradients. Each column adds its rows in ascending order.
//!
//! Of several shards, each column adds its shards along the tree.

use super::*;
use crate::leaves::tree_sum;

#[derive(Clone, Debug)]
pub struct SumLeading {
    pub keep: usize,
}

impl Rule for SumLeading {
    const NAME: &'static str = "sum over leading axes";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let lead = x[0].shape.len().checked_sub(self.keep);
        let lead = lead.ok_or_else(|| format!("{} has fewer than the {} axes to keep", x[0], self.keep))?;
        Ok(vec![Type::float(&x[0].shape[lead..])])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (x, cols, shards) = (io.x[0], y.len().max(1), io.key.shards);
        let leaf = x.len() / shards;
        let Work { team, rooms } = io.work;
        team.chunks_in(rooms, y, COLUMNS, |room, i, y| {
            tree_sum(shards, y, &mut room.sums, |shard, y| {
                y.fill(F::ZERO);
                for row in x[shard * leaf..][..leaf].chunks_exact(cols) {
                    for (y, x) in y.iter_mut().zip(&row[i * COLUMNS..]) {
                        *y += *x;
                    }
                }
            });
        });
    }
}

/// Columns of a task: two lines of each row are read at once, and one task's sums stay in registers and nearby.
const COLUMNS: usize = 64;
