//! The sums of a round on a GPU's stream, by `elastic_cuda`'s kernel: what [`round::run`](crate::round::run) wants of a
//! device.
//!
//! A chunk with more contributions than one launch takes is added up in pieces. A piece's sum lies where one of its parts
//! did, and that is a part from the inbox, which the next step fills anew: the rank's own are never written to, since an
//! aborted round sends them again.

use crate::error::Result;
use crate::ffi::cudaStream_t;
use crate::plan::{Region, Sum};
use crate::round::{Device, Memory};
use elastic_cuda::driver::Stream;
use elastic_cuda::fold::{self, End, Fold, PARTS_MAX, Part, Target};
use elastic_cuda::loaded::Loaded;
use elastic_spec::layout::Layout;
use elastic_spec::tree::TreeNode;
use std::collections::BTreeMap;

/// A stream for reductions, and the kernel that adds on it. Outlives views.
pub struct Adder {
    stream: Stream,
    fold: Fold,
}

impl Adder {
    /// Makes the calling thread's GPU that of the kernels, as NCCL wants it. To be made before anything waits for another
    /// rank on this GPU: loading code may wait for all that runs.
    pub fn new(loaded: &Loaded) -> Result<Adder> {
        let stream = Stream::new(loaded.context())?;
        let fold = Fold::load(loaded, &stream)?;
        Ok(Adder { stream, fold })
    }

    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// For the rounds of one layout.
    pub fn with(&self, layout: Layout, shards: u16) -> Adding<'_> {
        Adding { adder: self, layout, shards }
    }
}

/// An [`Adder`] that knows what it adds.
pub struct Adding<'a> {
    adder: &'a Adder,
    layout: Layout,
    shards: u16,
}

impl Device for Adding<'_> {
    fn stream(&self) -> cudaStream_t {
        self.adder.stream.handle()
    }

    fn sum(&mut self, sum: &Sum, memory: &Memory) -> std::result::Result<(), String> {
        let place = |place| memory.address(place) as u64;
        let sources = sum.parts.iter().map(|(node, at)| {
            let is_ours = matches!(at.region, Region::Segment(_));
            (*node, Source { address: place(at), is_ours })
        });
        let end = if self.layout.is_last(sum.chunk) { End::Tail } else { End::Nothing };
        let floats = self.layout.range(sum.chunk).len();
        for run in runs(TreeNode::root(self.shards), sources.collect(), place(&sum.to), PARTS_MAX) {
            let target = Target { address: run.to, floats, end };
            // SAFETY: each place has the chunk's bytes (`Memory::address` holds them within its memory), at multiples of
            // four; whoever runs the round leaves the memory alone and waits for the stream.
            let given = unsafe { self.adder.fold.run(&self.adder.stream, &run.parts, target) };
            given.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn is_done(&mut self) -> std::result::Result<bool, String> {
        self.adder.stream.is_done().map_err(|error| error.to_string())
    }
}

/// A subtree's sum of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Source {
    address: u64,
    /// Of this rank's own segments, which are only read.
    is_ours: bool,
}

/// One launch: the parts in the tree's order, and where their sum goes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    parts: Vec<Part>,
    to: u64,
}

/// The launches that add up `sources`, which cover the tree, with at most `room` parts each.
fn runs(root: TreeNode, mut sources: BTreeMap<TreeNode, Source>, to: u64, room: usize) -> Vec<Run> {
    assert!(room >= 2, "a sum has two parts");
    let mut out = Vec::new();
    while sources.len() > room {
        for node in pieces(root, &sources, room) {
            let order = fold::order(node, sources.keys().copied()).expect("the plan's parts cover the tree");
            let others = order.iter().map(|(node, _)| sources[node]).find(|source| !source.is_ours);
            let to = others.expect("two siblings of one rank would be one part: a plan has maximal subtrees");
            out.push(Run { parts: parts(&order, &sources), to: to.address });
            sources.retain(|part, _| !order.iter().any(|(node, _)| node == part));
            sources.insert(node, to);
        }
    }
    let order = fold::order(root, sources.keys().copied()).expect("the plan's parts cover the tree");
    out.push(Run { parts: parts(&order, &sources), to });
    out
}

fn parts(order: &[(TreeNode, u8)], sources: &BTreeMap<TreeNode, Source>) -> Vec<Part> {
    order.iter().map(|(node, closes)| Part { address: sources[node].address, closes: *closes }).collect()
}

/// The largest subtrees that have 2 to `room` parts.
fn pieces(node: TreeNode, sources: &BTreeMap<TreeNode, Source>, room: usize) -> Vec<TreeNode> {
    let inside =
        sources.keys().filter(|part| part.range().start >= node.range().start && part.range().end <= node.range().end);
    match (inside.count(), node.children()) {
        (0 | 1, _) | (_, None) => Vec::new(),
        (count, _) if count <= room => vec![node],
        (_, Some((left, right))) => [pieces(left, sources, room), pieces(right, sources, room)].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::tree;
    use proptest::prelude::*;

    /// Runs launches on texts in place of memories.
    fn interpret(runs: &[Run], memory: &mut BTreeMap<u64, String>) {
        for Run { parts, to } in runs {
            let mut waiting: Vec<String> = Vec::new();
            for part in parts {
                waiting.push(memory[&part.address].clone());
                for _ in 0..part.closes {
                    let (right, left) = (waiting.pop().unwrap(), waiting.pop().unwrap());
                    waiting.push(format!("({left}+{right})"));
                }
            }
            memory.insert(*to, waiting.pop().unwrap());
            assert!(waiting.is_empty());
        }
    }

    proptest! {
        #[test]
        fn launches_with_little_room_add_along_the_tree_and_write_to_no_segment(
            levels in 0u32..7, ranks in 1u16..6, room in 2usize..9, seed in any::<u64>(),
        ) {
            let shards = 1u16 << levels;
            let mut state = seed;
            let mut draw = move || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as u16
            };
            let owners: Vec<u16> = (0..shards).map(|_| draw() % ranks).collect();
            let (mut sources, mut memory, mut held) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
            for rank in 0..ranks {
                for node in tree::cover(shards, |shard| owners[usize::from(shard.0)] == rank) {
                    let address = 1000 + sources.len() as u64;
                    let text = format!("{}.{}", node.level, node.index);
                    sources.insert(node, Source { address, is_ours: rank == 0 });
                    memory.insert(address, text.clone());
                    held.insert(node, text);
                }
            }
            let root = TreeNode::root(shards);
            let runs = runs(root, sources.clone(), 1, room);
            prop_assert!(runs.iter().all(|run| run.parts.len() <= room));
            let before = memory.clone();
            interpret(&runs, &mut memory);
            let wanted = tree::fold(root, &held, &mut |a, b| format!("({a}+{b})")).unwrap();
            prop_assert_eq!(&memory[&1], &wanted);
            for source in sources.values().filter(|source| source.is_ours) {
                prop_assert_eq!(&memory[&source.address], &before[&source.address]);
            }
        }
    }
}
