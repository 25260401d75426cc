//! Adds parts along the tree on a stream: what the owner of a chunk does with the contributions to it. The kernel is
//! `kernels/tree.cu`; how contributions come to the GPU is others' business.

use crate::driver::{Argument, Function, LaunchShape, Stream};
use crate::error::Result;
use crate::loaded::Loaded;
use elastic_spec::layout::Tail;
use elastic_spec::tree::TreeNode;
use std::collections::BTreeSet;

/// Most parts of one launch, which go with it as a parameter.
pub const PARTS_MAX: usize = 128;
const THREADS: u32 = 256;
/// Enough for the largest GPU several times over.
const BLOCKS_MAX: u64 = 4096;
/// Of a left sibling that waits, in each thread.
const SLOT_BYTES: u32 = 16;

/// A subtree's sum in the GPU's memory, in its place from left to right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub address: u64,
    /// How many nodes of the tree are whole with it.
    pub closes: u8,
}

/// Where a sum goes, and of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub address: u64,
    pub floats: usize,
    pub end: End,
}

/// What lies behind the floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Nothing,
    /// [`Tail`]: in a round's last chunk.
    Tail,
}

/// The nodes from left to right, each with the number of sums that close behind it. `None` if they do not cover `root`.
pub fn order(root: TreeNode, nodes: impl IntoIterator<Item = TreeNode>) -> Option<Vec<(TreeNode, u8)>> {
    fn walk(node: TreeNode, held: &BTreeSet<TreeNode>, out: &mut Vec<(TreeNode, u8)>) -> Option<()> {
        if held.contains(&node) {
            out.push((node, 0));
            return Some(());
        }
        let (left, right) = node.children()?;
        walk(left, held, out)?;
        walk(right, held, out)?;
        out.last_mut().expect("a right child was just put there").1 += 1;
        Some(())
    }
    let mut out = Vec::new();
    walk(root, &nodes.into_iter().collect(), &mut out)?;
    Some(out)
}

/// The kernels, loaded.
pub struct Fold {
    by_fours: Function,
    by_ones: Function,
}

impl Fold {
    /// Loads the kernels and runs each once over nothing: a driver may load code as late as at the first launch, and
    /// wait for all that runs, which a transfer that waits for another rank would make a wait for ever.
    pub fn load(loaded: &Loaded, stream: &Stream) -> Result<Fold> {
        let function = |name| loaded.function("tree", name, 0);
        let fold = Fold { by_fours: function("fold_fours")?, by_ones: function("fold_ones")? };
        let nothing = Part { address: 0, closes: 0 };
        for function in [&fold.by_fours, &fold.by_ones] {
            // SAFETY: the kernel's parameters; of no numbers, it reads and writes nothing.
            unsafe {
                stream.launch(function, shape(1, 0), &arguments(&[nothing], 0, 0, 0))?;
            }
        }
        stream.wait()?;
        Ok(fold)
    }

    /// Puts the sum of at most [`PARTS_MAX`] parts on the stream; one alone is copied. The target may be one of them.
    ///
    /// # Safety
    /// Each part, and the target, has the target's floats and end, at a multiple of four bytes, in memory that stays until
    /// the stream was waited for. The parts are in the tree's order, as [`order`] says.
    pub unsafe fn run(&self, stream: &Stream, parts: &[Part], target: Target) -> Result<()> {
        assert!((1..=PARTS_MAX).contains(&parts.len()), "a launch has room for {} parts", parts.len());
        let Target { address, floats, end } = target;
        let words = match end {
            End::Nothing => 0,
            End::Tail => (Tail::BYTES / 8) as u32,
        };
        let is_aligned = parts.iter().map(|part| part.address).chain([address]).all(|address| address % 16 == 0);
        let (function, numbers) =
            if is_aligned { (&self.by_fours, floats.div_ceil(4)) } else { (&self.by_ones, floats) };
        let threads = numbers.max(words as usize) as u64;
        let given = arguments(parts, address, floats as u64, words);
        // SAFETY: the kernel's parameters; the rest is the caller's promise.
        unsafe { stream.launch(function, shape(threads, depth(parts)), &given) }
    }
}

/// How many left siblings wait at a time, at most.
fn depth(parts: &[Part]) -> u32 {
    let (mut waiting, mut most) = (0, 0);
    for part in &parts[1..] {
        waiting += 1;
        most = most.max(waiting);
        let closes = u32::from(part.closes);
        waiting = u32::checked_sub(waiting, closes).expect("no more close than wait");
    }
    assert!(waiting == 0, "the parts are one tree");
    most
}

fn shape(threads: u64, depth: u32) -> LaunchShape {
    let blocks = threads.div_ceil(u64::from(THREADS)).min(BLOCKS_MAX) as u32;
    LaunchShape { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: depth * THREADS * SLOT_BYTES }
}

/// `struct Parts` lies as the addresses, then a byte for each `closes`.
fn arguments(parts: &[Part], to: u64, floats: u64, words: u32) -> [Argument; 5] {
    let mut list: Vec<u64> = parts.iter().map(|part| part.address).collect();
    list.resize(PARTS_MAX, 0);
    let mut closes = [0u8; PARTS_MAX];
    closes.iter_mut().zip(parts).for_each(|(slot, part)| *slot = part.closes);
    list.extend(closes.chunks_exact(8).map(|eight| u64::from_ne_bytes(eight.try_into().expect("eight bytes"))));
    let count = parts.len() as u32;
    [Argument::Address(to), Argument::Struct(list), Argument::U32(count), Argument::U64(floats), Argument::U32(words)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(level: u8, index: u16) -> TreeNode {
        TreeNode { level, index }
    }

    #[test]
    fn nodes_close_from_left_to_right() {
        let root = TreeNode::root(8);
        let nodes = [node(1, 0), node(1, 3), node(0, 2), node(0, 3), node(1, 2)];
        let wanted = [(node(1, 0), 0), (node(0, 2), 0), (node(0, 3), 2), (node(1, 2), 0), (node(1, 3), 2)];
        assert_eq!(order(root, nodes).as_deref(), Some(&wanted[..]));
        assert_eq!(order(root, [root]).as_deref(), Some(&[(root, 0)][..]));
        assert_eq!(order(root, [node(2, 0), node(1, 2)]), None);
    }

    #[test]
    fn as_many_wait_as_there_are_open_left_siblings() {
        let depth_of = |shards: u16, nodes: &[TreeNode]| {
            let order = order(TreeNode::root(shards), nodes.iter().copied()).expect("they cover the tree");
            depth(&order.into_iter().map(|(_, closes)| Part { address: 0, closes }).collect::<Vec<_>>())
        };
        assert_eq!(depth_of(8, &[TreeNode::root(8)]), 0);
        assert_eq!(depth_of(8, &(0..8).map(|i| node(0, i)).collect::<Vec<_>>()), 3);
        assert_eq!(depth_of(8, &[node(0, 0), node(0, 1), node(1, 1), node(2, 1)]), 1);
        // All that a launch may have fits into the shared memory that needs no asking.
        let all: Vec<TreeNode> = (0..64).map(|i| node(0, i)).chain([node(6, 1)]).collect();
        assert!(shape(1, depth_of(128, &all) + 4).shared_bytes <= 48 << 10);
    }
}
