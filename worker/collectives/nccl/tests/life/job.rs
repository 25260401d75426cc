//! A small job of rounds: what its leaves are, what a round does to the weights, what its end is without any NCCL. And
//! the words in which parent and ranks speak.

use bytes::Bytes;
use elastic_nccl::Spread;
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{self, TreeNode};
use elastic_spec::view::{Pace, Role, View, ViewMember};
use elastic_spec::{Digest, Epoch, JobId, NodeId, Rank, Shard, WorkerId};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Job {
    /// The folder with the library.
    pub library: PathBuf,
    pub rounds: u64,
    pub shards: u16,
    pub floats: usize,
    pub spread: Spread,
    /// A bound on each wait of a rank.
    pub patience: Duration,
}

impl Job {
    pub fn layout(&self) -> Layout {
        Layout { floats: self.floats, block_floats: 64 }
    }

    /// For the environment of a rank.
    pub fn to_text(&self) -> String {
        let Job { library, rounds, shards, floats, spread, patience } = self;
        let spread = if *spread == Spread::Sends { "sends" } else { "broadcast" };
        format!("{rounds} {shards} {floats} {spread} {} {}", patience.as_millis(), library.display())
    }

    pub fn from_text(text: &str) -> Job {
        let words: Vec<&str> = text.splitn(6, ' ').collect();
        let number = |i: usize| words[i].parse::<u64>().expect("a number");
        Job {
            rounds: number(0),
            shards: number(1) as u16,
            floats: number(2) as usize,
            spread: if words[3] == "sends" { Spread::Sends } else { Spread::Broadcast },
            patience: Duration::from_millis(number(4)),
            library: words[5].into(),
        }
    }
}

pub fn start(job: &Job) -> (Vec<f32>, Digest) {
    ((0..job.floats).map(|i| (i as f32 * 0.37).sin()).collect(), Digest::of(b"start"))
}

/// The leaves of a round, by shard and chunk: of all magnitudes, so that the order of a sum shows.
pub fn leaves(job: &Job, round: u64, weights: &[f32]) -> Vec<Vec<Bytes>> {
    let leaf = |shard: u16| {
        let mut state = round * 1000 + u64::from(shard) + 1;
        let mut draw = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        let scale = |draw: u32| 1.7f32.powi((draw % 24) as i32 - 12);
        let floats = weights.iter().map(|w| (draw() as f32 / 1e9 - 1.0 + w) * scale(draw()));
        let floats: Vec<f32> = floats.collect();
        job.layout().cut(&floats, Tail { loss: f64::from(shard) / 3.0, count: 2, correct: u64::from(shard) })
    };
    (0..job.shards).map(leaf).collect()
}

/// What a round's value does to the weights, and to the digest of all values so far.
pub fn apply(digest: Digest, weights: &mut [f32], reduced: &[u8], layout: Layout) -> Digest {
    let mut at = 0;
    let chunks: Vec<Bytes> = (0..layout.chunks())
        .map(|chunk| {
            let bytes = &reduced[at..at + layout.bytes(chunk)];
            at += bytes.len();
            Bytes::copy_from_slice(bytes)
        })
        .collect();
    let mut sum = vec![0.0; weights.len()];
    layout.join(&chunks, &mut sum);
    weights.iter_mut().zip(sum).for_each(|(w, g)| *w = 0.5 * *w + (g * 0.01).tanh());
    Digest::of(&[&digest.0[..], reduced].concat())
}

/// The job's end by the spec alone: each round's leaves, folded along the tree.
pub fn undisturbed(job: &Job) -> Digest {
    let layout = job.layout();
    let (mut weights, mut digest) = start(job);
    for round in 0..job.rounds {
        let leaves = leaves(job, round, &weights);
        let mut reduced = Vec::new();
        for chunk in 0..layout.chunks() {
            let held: BTreeMap<TreeNode, Bytes> = (0..job.shards)
                .map(|s| (TreeNode::leaf(Shard(s)), leaves[usize::from(s)][chunk as usize].clone()))
                .collect();
            let sum = tree::fold(TreeNode::root(job.shards), &held, &mut |a, b| layout.add(chunk, a, b));
            reduced.extend_from_slice(&sum.expect("all leaves are there"));
        }
        digest = apply(digest, &mut weights, &reduced, layout);
    }
    digest
}

/// A view as a line: its gen, its workers, the rank of each shard.
pub fn view_line(gen_: u64, workers: &[u64], shards: u16) -> String {
    let list = |items: Vec<u64>| items.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
    let world = workers.len() as u64;
    let map = (0..u64::from(shards)).map(|s| s * world / u64::from(shards)).collect();
    format!("view {gen_} {} {}", list(workers.to_vec()), list(map))
}

pub fn view_of(gen_: &str, workers: &str, map: &str) -> View {
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let member = |id: &str| ViewMember {
        worker: WorkerId(number(id)),
        node: NodeId::parse("n").expect("a name"),
        address: String::new(),
        role: Role::Active,
    };
    let view = View {
        job: JobId::parse("j").expect("a name"),
        epoch: Epoch::new(1, number(gen_)),
        pace: Pace::Run,
        members: workers.split(',').map(member).collect(),
        shard_map: map.split(',').map(|rank| Rank(number(rank) as u16)).collect(),
    };
    view.check().expect("a view");
    view
}

pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn from_hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits"))
        .collect()
}
