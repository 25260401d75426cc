//! The numerics class of this machine: one number that equals another's where all kernels give equal bits.
//!
//! A tiny fixed model goes through every kernel of training, in the job's dtype; the leaf's and the updated state's bits
//! are hashed. Workers of different classes must not share an exact job. bf16 is a class of its own, to which machines
//! without an instruction for it belong as well: they make the same bits, more slowly.

use crate::graph::ShapeError;
use crate::nn::{Bias, Conv, Module, Scope, Table};
use crate::tensor::{Result, Tensor};
use crate::{Init, LeafKey, Network, Update, compile_in};
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Dtype, Optimizer};
use sha2::{Digest, Sha256};

/// Of the device that this process trains on.
pub fn probe(dtype: Dtype) -> u64 {
    probe_by(dtype, &|module, data, samples| compile_in(dtype, module, data, samples)).expect("the probe's shapes fit")
}

/// What makes a network of a module for shards of so many samples.
pub type Compile<'a> = dyn Fn(&dyn Module, &DataShape, usize) -> std::result::Result<Box<dyn Network>, String> + 'a;

/// Of networks that are made in this way; what it refuses is its error.
pub fn probe_by(dtype: Dtype, compile: &Compile<'_>) -> std::result::Result<u64, String> {
    let mut hash = Sha256::new();
    let image = DataShape::Features { features: 72, classes: 3 };
    let text = DataShape::Tokens { vocab: 11, context: 9 };
    for (module, data) in [(&Image as &dyn Module, image), (&Text, text)] {
        let network = compile(module, &data, 2)?;
        for value in train(dtype, &*network, &data) {
            hash.update(value.to_bits().to_le_bytes());
        }
    }
    let bytes = hash.finalize();
    Ok(u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")))
}

/// State after two steps, and the last leaf.
fn train(dtype: Dtype, network: &dyn Network, data: &DataShape) -> Vec<f32> {
    // Sums of few bf16 products of one size are exact, and so the same in any order: these are of many sizes.
    let size = |i: usize| if dtype == Dtype::Bf16 { 1.0 / (1u32 << (i * 5 % 16)) as f32 } else { 1.0 };
    let batch = match *data {
        DataShape::Features { features, .. } => Batch {
            features: (0..2 * features).map(|i| ((i % 13) as f32 * 0.17 - 0.9) * size(i)).collect(),
            targets: vec![2, 0],
            slots: vec![0, 1],
            ..Batch::default()
        },
        DataShape::Tokens { vocab, context } => Batch {
            tokens: (0..2 * context).map(|i| (i * 7 % vocab) as i32).collect(),
            targets: (0..2 * context).map(|i| (i * 5 % vocab) as i32).collect(),
            slots: vec![0, 1],
            ..Batch::default()
        },
    };
    let adam = Optimizer::AdamW { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1 };
    let layout = network.layout();
    let mut state = network.init(1);
    let mut scratch = network.new_scratch(1);
    let mut leaf = vec![0.0; layout.reduced_floats()];
    let mut moments = vec![vec![0.0; layout.param_floats()]; 2];
    for step in 0..2 {
        let key = LeafKey { seed: 3, step, scale: 0.5, label_smoothing: 0.1 };
        let tail = network.sum(&mut *scratch, &state, &batch, key, &mut leaf);
        let (reduced, state, moments) = (&mut leaf[..], &mut state[..], &mut moments[..]);
        let update = Update { layout, reduced, state, moments, step, lr: 0.01, correction: 1.0, clip_norm: Some(0.5) };
        let report = crate::apply(&adam, update);
        moments[0][0] += (tail.loss + report.grad_norm) as f32;
    }
    let tail = network.evaluate(&mut *scratch, &state, &batch)[0];
    state.extend(leaf);
    state.extend_from_slice(&moments[0]);
    state.push(tail.loss as f32);
    state
}

struct Image;

impl Module for Image {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let x = x.reshape(&[x.shape()[0], 2, 6, 6])?;
        let conv = Conv { out: 5, kernel: 3, stride: 1, pad: 1, bias: Bias::PerChannel };
        let x = nn.conv2d("conv", &x, conv)?;
        let x = nn.batch_norm("norm", &x)?.relu();
        let conv = Conv { out: 4, kernel: 3, stride: 2, pad: 2, bias: Bias::None };
        let x = nn.conv2d("narrow", &x, conv)?.relu().max_pool(2, 1)?.avg_pool(2, 1)?;
        nn.linear("out", &x.flatten()?, nn.outputs())
    }
}

struct Text;

impl Module for Text {
    fn forward(&self, nn: &Scope, x: Tensor) -> std::result::Result<Tensor, ShapeError> {
        let table = Table { rows: nn.outputs(), width: 12, init: Init::Normal { std: 0.3 } };
        let (x, weight) = nn.embedding("table", &x, table)?;
        let y = nn.linear("qkv", &nn.layer_norm("norm", &x)?, 36)?.causal_attention(2)?;
        let x = x.add(&nn.dropout("drop", &y, 0.2)?.gelu())?;
        x.linear_with(&weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{FORCED, Isa};

    /// The class of every machine so far. A change here means that jobs begun before cannot go on: say so in
    /// the changelog.
    const CLASS: u64 = 0x0c3e_ffea_13ed_2a56;
    /// The same of jobs in bf16.
    const BF16: u64 = 0x0d04_f3ab_12f3_bf70;

    #[test]
    fn every_instruction_set_is_of_one_class() {
        for (dtype, class) in [(Dtype::F32, CLASS), (Dtype::Bf16, BF16)] {
            for isa in Isa::here() {
                FORCED.set(Some(isa));
                assert_eq!(format!("{:016x}", probe(dtype)), format!("{class:016x}"), "{isa:?}");
            }
        }
    }
}
