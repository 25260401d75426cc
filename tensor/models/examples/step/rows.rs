//! The models of the comparison, as a job file would name them, and their batch.

use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Activation, ModelKind, Norm, Optimizer, Positions};

#[derive(Clone, Debug)]
pub struct Row {
    pub kind: ModelKind,
    pub data: DataShape,
    pub optimizer: Optimizer,
    pub lr: f64,
    pub clip_norm: Option<f64>,
}

const ADAM_W: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

/// `bench/step/peer.py` has the same table.
pub fn row(model: &str) -> Row {
    let mlp = |hidden: &[u32]| ModelKind::Mlp { hidden: hidden.to_vec(), activation: Activation::Relu };
    let features = |features| DataShape::Features { features, classes: 10 };
    match model {
        "gpt" => Row {
            kind: ModelKind::Gpt {
                layers: 6,
                heads: 8,
                width: 256,
                context: 256,
                dropout: 0.0,
                norm: Norm::Layer,
                positions: Positions::Learned,
            },
            data: DataShape::Tokens { vocab: 256, context: 256 },
            optimizer: ADAM_W,
            lr: 1e-3,
            clip_norm: Some(1.0),
        },
        "gpt2" => Row {
            kind: ModelKind::Gpt {
                layers: 12,
                heads: 12,
                width: 768,
                context: 1024,
                dropout: 0.0,
                norm: Norm::Layer,
                positions: Positions::Learned,
            },
            data: DataShape::Tokens { vocab: 50257, context: 1024 },
            optimizer: ADAM_W,
            lr: 1e-4,
            clip_norm: Some(1.0),
        },
        "cnn" => Row {
            kind: ModelKind::Cnn {
                image: [3, 32, 32],
                channels: vec![64, 64, 128, 128],
                kernel: 3,
                hidden: 0,
                batch_norm: true,
            },
            data: features(3 * 32 * 32),
            optimizer: Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 5e-4 },
            lr: 0.01,
            clip_norm: None,
        },
        "mlp" => {
            let (kind, data) = (mlp(&[512, 512]), features(784));
            Row { kind, data, optimizer: ADAM_W, lr: 1e-3, clip_norm: None }
        }
        "digits" => {
            let (kind, data) = (mlp(&[128]), features(64));
            Row { kind, data, optimizer: ADAM_W, lr: 1e-3, clip_norm: Some(1.0) }
        }
        other => panic!("there is no model `{other}`; there are gpt, gpt2, cnn, mlp and digits"),
    }
}

impl Row {
    /// Targets of one sample.
    pub fn targets(&self) -> usize {
        match self.data {
            DataShape::Features { .. } => 1,
            DataShape::Tokens { context, .. } => context,
        }
    }

    /// Samples that differ from each other, and the same whatever the sharding.
    pub fn shard(&self, shard: usize, m: usize) -> Batch {
        let slots = shard * m..(shard + 1) * m;
        let mut batch = Batch { slots: slots.clone().map(|slot| slot as u64).collect(), ..Batch::default() };
        for slot in slots {
            match self.data {
                DataShape::Features { features, classes } => {
                    batch.features.extend((0..features).map(|i| mix(slot * features + i) as f32 / 65_536.0));
                    batch.targets.push((mix(slot + 7) % classes) as i32);
                }
                DataShape::Tokens { vocab, context } => {
                    let token = |i: usize| (mix(slot * (context + 1) + i) % vocab) as i32;
                    batch.tokens.extend((0..context).map(token));
                    batch.targets.extend((1..=context).map(token));
                }
            }
        }
        batch
    }
}

/// Sixteen bits that look random (Knuth's multiplicative hash).
fn mix(i: usize) -> usize {
    ((i as u32 + 1).wrapping_mul(2_654_435_761) >> 16) as usize
}
