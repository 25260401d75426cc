//! How fast payloads are added up along the tree, beside adding them pair by pair.

use bytes::Bytes;
use elastic_collectives::reduce;
use elastic_spec::Shard;
use elastic_spec::layout::{BLOCK_FLOATS, Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() {
    for (floats, shards) in [(BLOCK_FLOATS, 64u16), (BLOCK_FLOATS, 4), (1000, 64)] {
        let layout = Layout::new(floats);
        let leaf = |s: u16| layout.cut(&vec![f32::from(s) * 0.37; floats], Tail::default()).remove(0);
        let parts: BTreeMap<TreeNode, Bytes> = (0..shards).map(|s| (TreeNode::leaf(Shard(s)), leaf(s))).collect();
        let listed: Vec<(TreeNode, Bytes)> = parts.clone().into_iter().collect();
        let read = (floats * 4 * usize::from(shards)) as f64 / 1e9;
        let speed = |what: &dyn Fn() -> Bytes| {
            let repeats = (0.3 / read) as u32 + 1;
            what();
            let start = Instant::now();
            (0..repeats).for_each(|_| drop(std::hint::black_box(what())));
            read * f64::from(repeats) / start.elapsed().as_secs_f64()
        };
        let tree = speed(&|| reduce::sum(layout, 0, shards, &listed).expect("all parts are there"));
        let mut add = |a: &Bytes, b: &Bytes| layout.add(0, a, b);
        let add = std::cell::RefCell::new(&mut add);
        let pairs =
            speed(&|| tree::fold(TreeNode::root(shards), &parts, *add.borrow_mut()).expect("all parts are there"));
        println!("{floats} floats, V = {shards}: {tree:.1} GB/s read, pair by pair {pairs:.1} GB/s");
    }
}
