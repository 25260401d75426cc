//! What the self-test reduces: leaves of all magnitudes with special values between them, so that the order of a sum shows,
//! and a NaN's bits do.

use bytes::Bytes;
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::TreeNode;
use elastic_spec::view::{Pace, Role, View, ViewMember};
use elastic_spec::{Digest, Epoch, JobId, NodeId, Rank, WorkerId};

pub const SHARDS: u16 = 8;

/// A round's sum over the shards of a node, chunk by chunk, by the spec alone.
pub fn sum(layout: Layout, round: u64, node: TreeNode) -> Vec<Bytes> {
    let Some((left, right)) = node.children() else { return leaf(layout, round, node.index) };
    let (left, right) = (sum(layout, round, left), sum(layout, round, right));
    (0u32..).zip(left.iter().zip(&right)).map(|(chunk, (left, right))| layout.add(chunk, left, right)).collect()
}

/// SHA-256 of what every rank must have at the end of a round.
pub fn digest(layout: Layout, round: u64) -> String {
    Digest::of(&sum(layout, round, TreeNode::root(SHARDS)).concat()).to_string()
}

fn leaf(layout: Layout, round: u64, shard: u16) -> Vec<Bytes> {
    let mut state = round * 1000 + u64::from(shard) + 1;
    let mut draw = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as u32
    };
    let mut float = move || match draw() % 1009 {
        0 => f32::from_bits(0x7f80_0001 | draw()),
        1 => f32::NEG_INFINITY,
        2 => f32::INFINITY,
        3 => -0.0,
        4 => f32::from_bits(draw() & 0x007f_ffff),
        magnitude => (draw() as f32 / 1e9 - 1.0) * 1.7f32.powi((magnitude % 24) as i32 - 12),
    };
    let floats: Vec<f32> = (0..layout.floats).map(|_| float()).collect();
    layout.cut(&floats, Tail { loss: f64::from(shard) / 3.0 + round as f64, count: 2, correct: u64::from(shard) })
}

/// The view of so many ranks: shards in intervals, as the coordinator maps them.
pub fn view(world: u16) -> View {
    let member = |rank: u16| ViewMember {
        worker: WorkerId(u64::from(rank) + 1),
        node: NodeId::parse("node").expect("a name"),
        address: String::new(),
        role: Role::Active,
    };
    View {
        job: JobId::parse("selftest").expect("a name"),
        epoch: Epoch::new(1, 1),
        pace: Pace::Run,
        members: (0..world).map(member).collect(),
        shard_map: (0..SHARDS).map(|shard| Rank(shard * world / SHARDS)).collect(),
    }
}
