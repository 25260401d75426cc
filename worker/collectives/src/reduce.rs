//! Adds up payloads along the fixed tree: the same bits as adding pair by pair, with each byte read once.
//!
//! The sum is element-wise, so it can be taken piece by piece: a piece small enough to stay in the
//! processor's cache goes through the whole tree before the next is touched. That changes no addition and no
//! order, only when memory is read. Which parts make up a tree is the caller's business
//! ([`elastic_spec::tree::parts`]).

use bytes::Bytes;
use elastic_spec::layout::{Layout, Tail, canonical};
use elastic_spec::tree::TreeNode;
use std::collections::BTreeMap;

/// Floats in a piece: with one buffer for each of up to 10 levels this fits a 256 KiB cache.
const PIECE_FLOATS: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SumError {
    #[error("the parts do not cover the tree: node (level {}, index {}) has none", .0.level, .0.index)]
    Missing(TreeNode),
    #[error("the part at node (level {}, index {}) has {bytes} bytes, and chunk {chunk} has {wanted}", node.level, node.index)]
    Size { node: TreeNode, chunk: u32, bytes: usize, wanted: usize },
}

/// The sum of chunk `chunk` over all `shards` leaves, from `parts` that cover the tree.
///
/// Bit for bit what [`elastic_spec::tree::fold`] with [`Layout::add`] gives.
pub fn sum(layout: Layout, chunk: u32, shards: u16, parts: &[(TreeNode, Bytes)]) -> Result<Bytes, SumError> {
    sum_under(layout, chunk, TreeNode::root(shards), parts)
}

/// The same for the subtree of `node`: how a member adds up its own leaves.
pub fn sum_under(layout: Layout, chunk: u32, node: TreeNode, parts: &[(TreeNode, Bytes)]) -> Result<Bytes, SumError> {
    let wanted = layout.bytes(chunk);
    if let Some((node, bytes)) = parts.iter().find(|(_, bytes)| bytes.len() != wanted) {
        return Err(SumError::Size { node: *node, chunk, bytes: bytes.len(), wanted });
    }
    let by_node: BTreeMap<TreeNode, &Bytes> = parts.iter().map(|(node, bytes)| (*node, bytes)).collect();
    let tree = plan(node, &by_node)?;
    if let Plan::Part(bytes) = tree {
        return Ok(bytes.clone());
    }
    let floats = layout.range(chunk).len() * 4;
    let mut out = vec![0u8; wanted];
    // One buffer for each level below the root: the right child's sum while the left one's is held.
    let mut scratch = vec![0u8; usize::from(node.level) * PIECE_FLOATS * 4];
    let mut start = 0;
    for piece in out[..floats].chunks_mut(PIECE_FLOATS * 4) {
        tree.add_up(start, piece, &mut scratch);
        start += piece.len();
    }
    if layout.is_last(chunk) {
        out[floats..].copy_from_slice(&tree.tail(floats).to_bytes());
    }
    Ok(Bytes::from(out))
}

/// The tree as far as it has to be added up.
enum Plan<'a> {
    Part(&'a Bytes),
    Sum(Box<(Plan<'a>, Plan<'a>)>),
}

fn plan<'a>(node: TreeNode, parts: &BTreeMap<TreeNode, &'a Bytes>) -> Result<Plan<'a>, SumError> {
    if let Some(bytes) = parts.get(&node) {
        return Ok(Plan::Part(bytes));
    }
    let (left, right) = node.children().ok_or(SumError::Missing(node))?;
    Ok(Plan::Sum(Box::new((plan(left, parts)?, plan(right, parts)?))))
}

impl Plan<'_> {
    /// Puts the sum of the bytes from `start` on into `out`.
    fn add_up(&self, start: usize, out: &mut [u8], scratch: &mut [u8]) {
        match self {
            Plan::Part(bytes) => out.copy_from_slice(&bytes[start..start + out.len()]),
            Plan::Sum(children) => match &**children {
                (Plan::Part(left), Plan::Part(right)) => {
                    let end = start + out.len();
                    add_two(out, &left[start..end], &right[start..end]);
                }
                (left, Plan::Part(right)) => {
                    left.add_up(start, out, scratch);
                    add_right(out, &right[start..start + out.len()]);
                }
                (Plan::Part(left), right) => {
                    right.add_up(start, out, scratch);
                    add_left(out, &left[start..start + out.len()]);
                }
                (left, right) => {
                    left.add_up(start, out, scratch);
                    let (mine, below) = scratch.split_at_mut(PIECE_FLOATS * 4);
                    let mine = &mut mine[..out.len()];
                    right.add_up(start, mine, below);
                    add_right(out, mine);
                }
            },
        }
    }

    fn tail(&self, at: usize) -> Tail {
        match self {
            Plan::Part(bytes) => Tail::from_bytes(bytes[at..].try_into().expect("the last chunk ends with the tail")),
            // The tail's own bytes round: a NaN gets its one pattern at each node, as in `Layout::add`.
            Plan::Sum(children) => {
                let sum = children.0.tail(at).add(children.1.tail(at));
                Tail::from_bytes(&sum.to_bytes())
            }
        }
    }
}

fn float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn add_two(out: &mut [u8], left: &[u8], right: &[u8]) {
    for ((o, a), b) in out.chunks_exact_mut(4).zip(left.chunks_exact(4)).zip(right.chunks_exact(4)) {
        o.copy_from_slice(&canonical(float(a) + float(b)).to_le_bytes());
    }
}

fn add_right(out: &mut [u8], right: &[u8]) {
    for (o, b) in out.chunks_exact_mut(4).zip(right.chunks_exact(4)) {
        let sum = canonical(float(o) + float(b));
        o.copy_from_slice(&sum.to_le_bytes());
    }
}

fn add_left(out: &mut [u8], left: &[u8]) {
    for (o, a) in out.chunks_exact_mut(4).zip(left.chunks_exact(4)) {
        let sum = canonical(float(a) + float(o));
        o.copy_from_slice(&sum.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::layout::BLOCK_FLOATS;
    use elastic_spec::{Shard, tree};
    use proptest::prelude::*;

    /// Any bits at all: NaNs with payloads, infinities, denormals, both zeros.
    fn odd_float(draw: u64) -> f32 {
        match draw % 11 {
            0 => -0.0,
            1 => f32::from_bits(0x7f80_0001 | (draw >> 32) as u32 & 0x007f_ffff),
            2 => f32::from_bits((draw >> 40) as u32 & 0x007f_ffff),
            3 => -f32::INFINITY,
            4 => f32::INFINITY,
            5 => f32::MAX,
            _ => f32::from_bits((draw >> 32) as u32),
        }
    }

    fn leaves(layout: Layout, shards: u16, seed: u64) -> Vec<(TreeNode, Vec<Bytes>)> {
        let mut state = seed;
        let mut draw = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state ^ state >> 29
        };
        (0..shards)
            .map(|shard| {
                let floats: Vec<f32> = (0..layout.floats).map(|_| odd_float(draw())).collect();
                let loss = if draw() % 9 == 0 { f64::NAN } else { draw() as f64 / 1e12 };
                (TreeNode::leaf(Shard(shard)), layout.cut(&floats, Tail { loss, count: draw(), correct: draw() }))
            })
            .collect()
    }

    fn check(floats: usize, shards: u16, owners: u16, seed: u64) {
        let layout = Layout::new(floats);
        let leaves = leaves(layout, shards, seed);
        for chunk in 0..layout.chunks() {
            let held: BTreeMap<TreeNode, Bytes> =
                leaves.iter().map(|(node, chunks)| (*node, chunks[chunk as usize].clone())).collect();
            let mut add = |a: &Bytes, b: &Bytes| layout.add(chunk, a, b);
            let naive = tree::fold(TreeNode::root(shards), &held, &mut add).unwrap();
            let parts: Vec<(TreeNode, Bytes)> = held.into_iter().collect();
            assert_eq!(sum(layout, chunk, shards, &parts).unwrap(), naive);
            // The same through segments that `owners` members have summed up before.
            let mut segments = Vec::new();
            for owner in 0..owners {
                for node in tree::cover(shards, |s| (u64::from(s.0) * 7 + seed) % u64::from(owners) == u64::from(owner))
                {
                    segments.push((node, sum_under(layout, chunk, node, &parts).unwrap()));
                }
            }
            assert_eq!(sum(layout, chunk, shards, &segments).unwrap(), naive);
        }
    }

    #[test]
    fn the_sum_has_the_bits_of_adding_pair_by_pair() {
        for (floats, shards) in [(0, 64), (1, 1), (1, 2), (7, 64), (4095, 8), (4097, 16), (BLOCK_FLOATS + 3, 4)] {
            check(floats, shards, 3, 42);
        }
    }

    proptest! {
        #[test]
        fn any_split_of_any_bits_sums_alike(floats in 0usize..300, levels in 0u32..7, owners in 1u16..9, seed in any::<u64>()) {
            check(floats, 1 << levels, owners, seed);
        }
    }

    #[test]
    fn a_lack_and_a_wrong_size_are_named() {
        let layout = Layout::new(3);
        let mut parts: Vec<_> = leaves(layout, 4, 1).into_iter().map(|(node, mut c)| (node, c.remove(0))).collect();
        let lost = parts.remove(2).0;
        assert_eq!(sum(layout, 0, 4, &parts), Err(SumError::Missing(lost)));
        parts[1].1 = Bytes::from_static(b"short");
        let error = sum(layout, 0, 4, &parts).unwrap_err().to_string();
        assert_eq!(error, "the part at node (level 0, index 1) has 5 bytes, and chunk 0 has 36");
    }
}
