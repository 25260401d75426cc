//! A trainer small enough to run a million steps a second, and unforgiving: its leaves span many binades
//! and depend on every bit of the state, so a sum in another order, a leaf of another step or a torn
//! state shows in the hash at once.

use crate::chance::mix;
use bytes::Bytes;
use elastic_member::Config;
use elastic_spec::job::schedule::Kind;
use elastic_spec::layout::{Layout, Tail};
use elastic_spec::tree::{TreeNode, fold};
use elastic_spec::{Round, Shard};
use std::collections::BTreeMap;

/// Parameters, one moment for each, and the last validation.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub round: Round,
    pub params: Vec<f32>,
    pub moments: Vec<f32>,
    pub validation: Tail,
}

impl State {
    pub fn init(config: &Config) -> State {
        let params = (0..config.layout.floats).map(|i| (mix(i as u64) >> 40) as f32 / 1e4 - 700.0).collect();
        State { round: Round(0), params, moments: vec![0.0; config.layout.floats], validation: Tail::default() }
    }

    /// The leaf of one shard in one round.
    fn leaf(&self, config: &Config, round: Round, shard: Shard) -> (Vec<f32>, Tail) {
        let layout = config.layout_of(round);
        let key = mix(round.0 << 20 | u64::from(shard.0));
        let probe = self.params[key as usize % self.params.len()];
        let tail = Tail { loss: f64::from(probe) * 1e-3 + (key % 977) as f64, count: 3, correct: key % 4 };
        let value = |i: usize| {
            let bits = mix(key ^ (i as u64) << 32);
            let size = 2f32.powi((bits % 40) as i32 - 20);
            ((bits >> 40) as f32 / 1e7 - 0.8) * size + self.params[i] * 1e-3
        };
        ((0..layout.floats).map(value).collect(), tail)
    }

    /// What a worker computes for one subtree: a payload for each chunk.
    pub fn compute(&self, config: &Config, round: Round, node: TreeNode) -> Vec<Bytes> {
        let layout = config.layout_of(round);
        let leaves: Vec<Vec<Bytes>> = node
            .range()
            .map(|s| {
                let (floats, tail) = self.leaf(config, round, Shard(s));
                layout.cut(&floats, tail)
            })
            .collect();
        (0..layout.chunks())
            .map(|chunk| {
                let parts = node
                    .range()
                    .zip(&leaves)
                    .map(|(s, l)| (TreeNode::leaf(Shard(s)), l[chunk as usize].clone()))
                    .collect();
                sum(layout, chunk, node, &parts)
            })
            .collect()
    }

    /// One update of the state.
    pub fn apply(&mut self, config: &Config, round: Round, chunks: &[Bytes]) {
        assert_eq!(round, self.round, "rounds are applied in order, each once");
        let layout = config.layout_of(round);
        let mut reduced = vec![0.0; layout.floats];
        let tail = layout.join(chunks, &mut reduced);
        match config.schedule.kind(round) {
            Kind::Validate(_) => self.validation = tail,
            Kind::Train(step) => {
                let rate = 1.0 / (step.0 + 2) as f32;
                for ((p, m), g) in self.params.iter_mut().zip(&mut self.moments).zip(&reduced) {
                    *m = *m * 0.9 + g;
                    *p -= *m * rate;
                }
                // The metrics are part of the state, so that they are compared too.
                self.params[0] += tail.loss as f32 * 1e-6;
            }
        }
        self.round = round.next();
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = self.round.0.to_le_bytes().to_vec();
        out.extend(self.validation.to_bytes());
        out.extend(self.params.iter().chain(&self.moments).flat_map(|x| x.to_le_bytes()));
        out
    }

    pub fn from_bytes(bytes: &[u8]) -> State {
        let (head, floats) = bytes.split_at(8 + Tail::BYTES);
        let floats: Vec<f32> =
            floats.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect();
        let (params, moments) = floats.split_at(floats.len() / 2);
        State {
            round: Round(u64::from_le_bytes(head[..8].try_into().expect("eight bytes"))),
            validation: Tail::from_bytes(head[8..].try_into().expect("the tail's bytes")),
            params: params.to_vec(),
            moments: moments.to_vec(),
        }
    }

    /// A hash of every bit of the state.
    pub fn hash(&self) -> u64 {
        self.to_bytes().chunks(8).fold(0, |h, b| {
            let mut word = [0; 8];
            word[..b.len()].copy_from_slice(b);
            mix(h ^ u64::from_le_bytes(word)).wrapping_add(1)
        })
    }
}

/// Finishes `node` of one chunk from parts that cover it.
pub fn sum(layout: Layout, chunk: u32, node: TreeNode, parts: &BTreeMap<TreeNode, Bytes>) -> Bytes {
    fold(node, parts, &mut |a, b| layout.add(chunk, a, b)).expect("the parts cover the node")
}

/// The state hash after each round of a run that nothing disturbs.
pub fn undisturbed(config: &Config) -> Vec<u64> {
    let mut state = State::init(config);
    let mut hashes = vec![state.hash()];
    for round in (0..config.rounds().0).map(Round) {
        let chunks = state.compute(config, round, TreeNode::root(config.shards));
        state.apply(config, round, &chunks);
        hashes.push(state.hash());
    }
    hashes
}
