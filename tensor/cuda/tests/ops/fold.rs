//! Parts added along the tree, against `elastic_spec`'s own fold.

use crate::case::{random, special_bits};
use crate::device::DEVICE;
use elastic_cuda::driver::Arena;
use elastic_cuda::fold::{End, Fold, Part, Target, order};
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use std::collections::BTreeMap;

/// Where parts lie in the arena: at multiples of 16 bytes, or of 4 only.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lie {
    Aligned,
    Anyhow,
}

/// Parts of any bits, one behind the other in an arena with poison between them, and the sum over the last of them or
/// beside them: the spec's bits, and nothing else was written.
fn check(nodes: &[TreeNode], shards: u16, floats: usize, end: End, lie: Lie) {
    let what = format!("{nodes:?}, {floats} floats, {end:?}, {lie:?}");
    // With a tail, the one chunk of its layout; without, the first of two.
    let layout = match end {
        End::Tail => Layout { floats, block_floats: floats.max(1) },
        End::Nothing => Layout { floats: floats + 1, block_floats: floats },
    };
    let leaf = |seed: usize| {
        let mut values = special_bits(&format!("{seed}"), floats);
        values.extend(random("more", layout.floats - floats));
        let loss = [f64::NAN, -0.0, 1e300, f64::INFINITY, f64::NEG_INFINITY, 0.1][seed % 6];
        let tail = Tail { loss, count: u64::MAX - seed as u64, correct: seed as u64 };
        layout.cut(&values, tail).remove(0)
    };
    let held: BTreeMap<TreeNode, _> = nodes.iter().enumerate().map(|(seed, node)| (*node, leaf(seed))).collect();
    let root = TreeNode::root(shards);
    let wanted = tree::fold(root, &held, &mut |a, b| layout.add(0, a, b)).expect("the nodes cover the tree");

    let (first, step) = match lie {
        Lie::Aligned => (16, 16),
        Lie::Anyhow => (4, 4),
    };
    let mut image = vec![0xa5u8; first];
    let mut places = Vec::new();
    for (node, _) in order(root, nodes.iter().copied()).expect("the nodes cover the tree") {
        places.push(image.len());
        image.extend_from_slice(&held[&node]);
        image.resize((image.len() + 8).next_multiple_of(step), 0xa5);
    }
    let beside = image.len();
    image.resize(beside + wanted.len() + 8, 0xa5);
    let (context, stream) = (DEVICE.loaded.context(), &DEVICE.stream);
    let fold = Fold::load(&DEVICE.loaded, stream).expect("the kernel compiles");
    let arena = Arena::new(context, image.len() as u64).expect("there is room");
    let base = arena.whole().address();
    let closes = order(root, nodes.iter().copied()).expect("the nodes cover the tree");
    let parts: Vec<Part> = places
        .iter()
        .zip(&closes)
        .map(|(at, (_, closes))| Part { address: base + *at as u64, closes: *closes })
        .collect();
    for at in [beside, places[0], *places.last().expect("a tree has a part")] {
        stream.copy_in(&arena.whole(), &image).expect("as many bytes");
        let target = Target { address: base + at as u64, floats, end };
        // SAFETY: parts and target lie in the arena, which lives to the end of this loop; the copy waits.
        unsafe { fold.run(stream, &parts, target) }.expect("it runs");
        let mut after = vec![0; image.len()];
        stream.copy_out(&mut after, &arena.whole()).expect("as many bytes");
        let mut whole = image.clone();
        whole[at..at + wanted.len()].copy_from_slice(&wanted);
        let differs = (0..after.len()).find(|byte| after[*byte] != whole[*byte]);
        assert_eq!(differs, None, "{what}: the first byte that differs, the sum being at {at}");
    }
}

fn node(level: u8, index: u16) -> TreeNode {
    TreeNode { level, index }
}

fn leaves(shards: u16) -> Vec<TreeNode> {
    (0..shards).map(|index| node(0, index)).collect()
}

#[test]
fn any_parts_of_a_tree_sum_to_its_bits() {
    let trees: [(u16, Vec<TreeNode>); 6] = [
        (1, vec![node(0, 0)]),
        (2, leaves(2)),
        (8, leaves(8)),
        (8, vec![node(2, 0), node(0, 4), node(0, 5), node(1, 3)]),
        (8, vec![node(0, 0), node(0, 1), node(1, 1), node(2, 1)]),
        (64, leaves(64)),
    ];
    for (shards, nodes) in &trees {
        for floats in [0, 1, 2, 3, 4, 5, 31, 255, 1024, 1037] {
            for lie in [Lie::Aligned, Lie::Anyhow] {
                check(nodes, *shards, floats, End::Tail, lie);
                if floats > 0 {
                    check(nodes, *shards, floats, End::Nothing, lie);
                }
            }
        }
    }
}

#[test]
fn as_many_parts_as_a_launch_takes_and_more_numbers_than_its_threads() {
    check(&leaves(128), 128, 77, End::Tail, Lie::Aligned);
    check(&leaves(2), 2, 4096 * 256 + 4099, End::Tail, Lie::Anyhow);
}
