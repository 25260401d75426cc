//! What an op costs by its shapes: bytes to and from memory, and floating-point operations.
//!
//! For a profile, to set beside the time that was measured. A product counts two operations for each pair of numbers
//! that it multiplies and adds; of attention only the scores that the mask leaves. Everything else counts what its
//! formula has for each number, a function such as exp or tanh as one: such ops wait for memory, so their bytes say more.

use crate::graph::Type;
use crate::ops::Op;
use crate::optim::moments_of;
use crate::plan::Step;
use elastic_spec::job::Optimizer;

/// Each input read once and each output written once, whatever the caches do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub flops: u64,
}

impl Cost {
    pub fn bytes(self) -> u64 {
        self.read_bytes + self.written_bytes
    }

    pub fn plus(self, other: Cost) -> Cost {
        Cost {
            read_bytes: self.read_bytes + other.read_bytes,
            written_bytes: self.written_bytes + other.written_bytes,
            flops: self.flops + other.flops,
        }
    }
}

/// Of one step of a plan.
pub fn of_step(step: &Step) -> Cost {
    let len = |types: &[Type]| types.iter().map(|t| t.len() as u64).sum::<u64>();
    // A table's rows are read, not the table.
    let read = match step.op {
        Op::Embedding(_) => step.types[1].len() as u64 + len(&step.out_types),
        _ => len(&step.types),
    };
    Cost {
        read_bytes: 4 * read,
        written_bytes: 4 * len(&step.out_types),
        flops: match &step.one_by_one {
            // A leaf a shard: what one costs, as often as there are shards.
            Some(one) => one.shards as u64 * flops(&step.op, &one.types, &one.out_types),
            None => flops(&step.op, &step.types, &step.out_types),
        },
    }
}

fn flops(op: &Op, types: &[Type], out_types: &[Type]) -> u64 {
    let x = |i: usize| types[i].len() as u64;
    let axis = |i: usize, axis: usize| types[i].shape[axis].max(1) as u64;
    let y: u64 = out_types.first().map_or(0, |t| t.len() as u64);
    let bias = if types.len() == 3 { y } else { 0 };
    match op {
        // y: (row, out), W: (out, in)
        Op::Linear(_) => 2 * y * axis(1, 1) + bias,
        // dy: (…, out), dW: (out, in)
        Op::LinearGradWeight(_) => 2 * x(0) * out_types[0].shape[1] as u64,
        Op::MatMul(_) => 2 * x(0) * out_types[0].shape[1] as u64,
        // y: (sample, out, h, w), W: (out, in, kh, kw)
        Op::Conv2d(_) => 2 * y * (x(1) / axis(1, 0)) + bias,
        // W, dy
        Op::Conv2dGradInput(_) => 2 * x(1) * (x(0) / axis(0, 0)),
        // x, dy; dW
        Op::Conv2dGradWeight(_) => 2 * x(1) * (y / out_types[0].shape[0].max(1) as u64),
        // Two products forward, of (token, token + 1) / 2 scores each; five backward, which makes the scores again.
        Op::CausalAttention(_) => 2 * (axis(0, 1) + 1) * x(0) / 3,
        Op::CausalAttentionGrad(_) => 5 * (axis(0, 1) + 1) * x(0) / 3,
        Op::Copy(_) | Op::Reshape(_) | Op::Seed(_) | Op::Embedding(_) | Op::MaxPool(_) => 0,
        Op::Add(_) | Op::Mul(_) | Op::Relu(_) | Op::ReluGrad(_) | Op::Scale(_) | Op::Dropout(_) => y,
        Op::Conv2dGradBias(_) | Op::SumLeading(_) | Op::SumLeaves(_) | Op::AvgPool(_) => x(0),
        Op::AvgPoolGrad(_) | Op::MaxPoolGrad(_) | Op::EmbeddingGrad(_) => x(0),
        Op::Gelu(_) => 9 * y,
        Op::GeluGrad(_) => 16 * y,
        Op::LayerNorm(_) | Op::BatchNorm(_) => 8 * x(0),
        Op::BatchNormEval(_) => 4 * x(0),
        Op::LayerNormGrad(_) | Op::BatchNormGrad(_) => 14 * x(0),
        Op::RmsNorm(_) => 5 * x(0),
        Op::RmsNormGrad(_) => 9 * x(0),
        // Six of each pair of queries and keys, two thirds of the elements.
        Op::Rotary(_) => 2 * x(0),
        Op::CrossEntropy(_) | Op::CrossEntropyGrad(_) => 4 * x(0),
        // a: (batch, m, k) or (batch, k, m)
        Op::BatchMatMul(op) => 2 * y * axis(0, if op.a_transposed { 1 } else { 2 }),
        Op::Each(_) => y,
        Op::Fused(op) => op.steps.len() as u64 * y,
        Op::Reduce(_) | Op::ArgMax(_) => x(0),
        Op::Softmax(_) | Op::SoftmaxGrad(_) => 4 * y,
        Op::TakeGrad(_) | Op::GatherGrad(_) => x(0),
        Op::BroadcastTo(_) | Op::Permute(_) | Op::Slice(_) | Op::SliceGrad(_) | Op::Concat(_) | Op::Fill(_) => 0,
        Op::Take(_) | Op::Gather(_) => 0,
    }
}

/// Of one update of `params` parameters: the norm's pass over the gradient, then the formula's.
pub fn of_update(optimizer: &Optimizer, params: usize) -> Cost {
    let (params, moments) = (params as u64, moments_of(optimizer) as u64);
    let formula = match optimizer {
        Optimizer::Sgd { .. } => 4 + 2 * moments,
        Optimizer::Adam { .. } | Optimizer::AdamW { .. } => 15,
    };
    Cost {
        read_bytes: 4 * params * (3 + moments),
        written_bytes: 4 * params * (1 + moments),
        flops: params * (3 + 2 + formula),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{OneByOne, Part};
    use crate::ops::{CausalAttention, Conv2d, Linear, LinearGradWeight};

    fn step(op: Op, types: &[&[usize]], out_types: &[&[usize]]) -> Step {
        let types_of = |shapes: &[&[usize]]| shapes.iter().map(|shape| Type::float(shape)).collect();
        let (types, out_types) = (types_of(types), types_of(out_types));
        Step { op, path: "m".into(), inputs: vec![], types, outputs: vec![], out_types, one_by_one: None }
    }

    #[test]
    fn a_product_counts_two_operations_for_each_pair_of_numbers() {
        let linear = step(Op::Linear(Linear), &[&[10, 3], &[5, 3], &[5]], &[&[10, 5]]);
        let cost = of_step(&linear);
        assert_eq!((cost.read_bytes, cost.written_bytes), (4 * (30 + 15 + 5), 4 * 50));
        assert_eq!(cost.flops, 2 * 10 * 3 * 5 + 50);
        // 2 samples, 3 to 4 channels, a kernel of 3x3 on 5x5 pixels.
        let conv = Op::Conv2d(Conv2d { stride: 1, pad: 1 });
        let conv = step(conv, &[&[2, 3, 5, 5], &[4, 3, 3, 3]], &[&[2, 4, 5, 5]]);
        assert_eq!(of_step(&conv).flops, 2 * (2 * 4 * 25) * (3 * 9));
    }

    #[test]
    fn a_weight_gradient_counts_its_rows_however_they_are_cut() {
        // x: (2, 5, 3), dy: (2, 5, 7), dW: (7, 3); then the same rows as two shards, whose leaves lie apart.
        let whole = step(Op::LinearGradWeight(LinearGradWeight), &[&[2, 5, 7], &[2, 5, 3]], &[&[7, 3]]);
        assert_eq!(of_step(&whole).flops, 2 * 10 * 7 * 3);
        let one = step(Op::LinearGradWeight(LinearGradWeight), &[&[1, 5, 7], &[1, 5, 3]], &[&[7, 3]]);
        let mut apart = step(Op::LinearGradWeight(LinearGradWeight), &[&[2, 5, 7], &[2, 5, 3]], &[&[14, 3]]);
        let (types, out_types) = (one.types, one.out_types);
        let y = vec![Part::OneBehindTheOther];
        apart.one_by_one = Some(OneByOne { shards: 2, x: vec![true, true], y, types, out_types });
        assert_eq!(of_step(&apart).flops, of_step(&whole).flops);
    }

    #[test]
    fn attention_counts_the_scores_that_its_mask_leaves() {
        // 2 samples of 4 tokens, 6 channels: 10 scores a sample, of 6 products each, twice.
        let attention = Op::CausalAttention(CausalAttention { heads: 3 });
        let attention = step(attention, &[&[2, 4, 18]], &[&[2, 4, 6], &[2, 3, 4]]);
        assert_eq!(of_step(&attention).flops, 2 * (2 * 10 * 6 * 2));
    }

    #[test]
    fn adam_reads_and_writes_32_bytes_a_parameter() {
        let (beta1, beta2, eps, weight_decay) = (0.9, 0.99, 1e-8, 0.0);
        assert_eq!(of_update(&Optimizer::AdamW { beta1, beta2, eps, weight_decay }, 10).bytes(), 320);
    }
}
