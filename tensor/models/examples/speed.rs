//! Milliseconds that one thread needs for a step of each model: all leaves, their sum aside, and the update.
//!
//! `cargo run --release -p elastic-models --example speed`

use elastic_models::build;
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Activation, ModelKind, Optimizer};
use elastic_tensor::{LeafKey, Update, apply, moments_of};
use std::time::{Duration, Instant};

fn main() {
    let digits = DataShape::Features { features: 64, classes: 10 };
    let mnist = DataShape::Features { features: 784, classes: 10 };
    let bytes = |context| DataShape::Tokens { vocab: 256, context };
    let mlp = |hidden: &[u32]| ModelKind::Mlp { hidden: hidden.to_vec(), activation: Activation::Relu };
    let cnn = |side, channels: &[u32]| ModelKind::Cnn {
        image: [1, side, side],
        channels: channels.to_vec(),
        kernel: 3,
        hidden: 64,
        batch_norm: true,
    };
    let gpt = |layers, width, context| ModelKind::Gpt { layers, heads: 4, width, context, dropout: 0.1 };
    for (name, kind, data, shards, m) in [
        ("mlp 64-128-10, 8 shards of 4", mlp(&[128]), digits.clone(), 8, 4),
        ("mlp 784-512-512-10, 8 shards of 8", mlp(&[512, 512]), mnist.clone(), 8, 8),
        ("cnn 8x8, 16-32 channels, 4 shards of 8", cnn(8, &[16, 32]), digits, 4, 8),
        ("cnn 28x28, 16-32 channels, 8 shards of 8", cnn(28, &[16, 32]), mnist, 8, 8),
        ("gpt 2 layers, width 64, context 64, 4 shards of 4", gpt(2, 64, 64), bytes(64), 4, 4),
        ("gpt 6 layers, width 256, context 256, 8 shards of 1", gpt(6, 256, 256), bytes(256), 8, 1),
    ] {
        println!("{name}: {:.3} ms", measure(&kind, &data, shards, m));
    }
}

/// The median step.
fn measure(kind: &ModelKind, data: &DataShape, shards: u64, m: usize) -> f64 {
    let network = build(kind, data, m).expect("the model fits its data");
    let layout = network.layout();
    let (mut state, mut scratch) = (network.init(1), network.new_scratch(1));
    let mut leaf = vec![0.0; layout.reduced_floats()];
    let adam = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 };
    let mut moments = vec![vec![0.0; layout.param_floats()]; moments_of(&adam)];
    let batch = sample(data, m);
    let (mut times, start) = (Vec::new(), Instant::now());
    for step in 0.. {
        let begin = Instant::now();
        for _ in 0..shards {
            let scale = 1.0 / (shards as usize * m) as f32;
            let key = LeafKey { seed: 1, step, scale, label_smoothing: 0.0 };
            network.leaf(&mut *scratch, &state, &batch, key, &mut leaf);
        }
        let (reduced, state, moments) = (&mut leaf[..], &mut state[..], &mut moments[..]);
        apply(&adam, Update { layout, reduced, state, moments, step, lr: 1e-3, correction: 1.0, clip_norm: Some(1.0) });
        times.push(begin.elapsed());
        if start.elapsed() > Duration::from_secs(1) && times.len() > 4 {
            break;
        }
    }
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn sample(data: &DataShape, m: usize) -> Batch {
    let slots = (0..m as u64).collect();
    match *data {
        DataShape::Features { features, classes } => Batch {
            features: (0..m * features).map(|i| (i % 17) as f32 / 17.0).collect(),
            targets: (0..m).map(|i| (i % classes) as i32).collect(),
            slots,
            ..Batch::default()
        },
        DataShape::Tokens { vocab, context } => Batch {
            tokens: (0..m * context).map(|i| (i * 31 % vocab) as i32).collect(),
            targets: (0..m * context).map(|i| (i * 37 % vocab) as i32).collect(),
            slots,
            ..Batch::default()
        },
    }
}
