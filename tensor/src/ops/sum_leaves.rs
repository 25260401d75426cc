//! The sum over the shards of a unit of values that lie one behind the other, along the tree.

use super::*;
use crate::leaves::tree_sum;

#[derive(Clone, Debug)]
pub struct SumLeaves {
    pub shards: usize,
    /// Of one shard's value.
    pub shape: Vec<usize>,
}

impl Rule for SumLeaves {
    const NAME: &'static str = "sum of leaves";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let y = Type::float(&self.shape);
        if x[0].len() != self.shards * y.len() {
            return Err(format!("{} is not {} times {y}", x[0], self.shards));
        }
        Ok(vec![y])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (x, len) = (io.x[0], y.len());
        let Work { team, rooms } = io.work;
        team.chunks_in(rooms, y, CHUNK, |room, i, y| {
            let leaf = |shard: usize, y: &mut [F]| y.copy_from_slice(&x[shard * len + i * CHUNK..][..y.len()]);
            tree_sum(self.shards, y, &mut room.sums, leaf);
        });
    }
}

/// Floats of a task: its levels stay in the first-level cache.
const CHUNK: usize = 1024;
