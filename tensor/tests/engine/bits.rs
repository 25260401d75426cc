//! Bits depend on the arguments alone: not on earlier calls, nor on the rows computed beside.

use crate::common::{Build, Case, Ints, apply, random};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::Dtype;
use elastic_spec::layout::Tail;
use elastic_tensor::nn::{Bias, Conv, Module, Scope, Table};
use elastic_tensor::ops::*;
use elastic_tensor::{Init, LeafKey, Network, Result, Tensor, compile, compile_in};
use proptest::prelude::*;

fn bits(xs: &[f32]) -> Vec<u32> {
    xs.iter().map(|x| x.to_bits()).collect()
}

/// Each sample's output and input gradient, alone and among `n`, have the same bits. The first input has
/// the samples on axis 0; the others are parameters.
fn check_rows(sample: &[usize], params: &[&[usize]], build: Build) {
    let shapes = |n: usize| {
        let first = [&[n], sample].concat();
        [first].into_iter().chain(params.iter().map(|p| p.to_vec())).collect::<Vec<_>>()
    };
    let case = |n| Case { shapes: shapes(n), ints: Ints::default(), smoothing: 0.0, build };
    const N: usize = 37;
    let (many, one) = (case(N), case(1));
    let inputs = many.inputs();
    let dy = random("dy", many.output_len());
    let all = many.run::<f32>(&inputs, &dy);
    let (x, y) = (inputs[0].len() / N, dy.len() / N);
    for i in 0..N {
        let mut alone = inputs.clone();
        alone[0] = inputs[0][i * x..][..x].to_vec();
        let got = one.run::<f32>(&alone, &dy[i * y..][..y]);
        assert_eq!(bits(&got.y), bits(&all.y[i * y..][..y]), "output of sample {i}");
        assert_eq!(bits(&got.dx[0]), bits(&all.dx[0][i * x..][..x]), "input gradient of sample {i}");
    }
}

#[test]
fn a_sample_has_the_same_bits_alone_and_among_others() {
    check_rows(&[19], &[&[33, 19], &[33]], |g, x, _| apply(g, Op::Linear(Linear), x));
    check_rows(&[300], &[&[5, 300], &[5]], |g, x, _| apply(g, Op::Linear(Linear), x));
    check_rows(&[3, 19], &[&[19], &[19]], |g, x, _| apply(g, Op::LayerNorm(LayerNorm { eps: 1e-5 }), x));
    check_rows(&[19], &[], |g, x, _| apply(g, Op::Gelu(Gelu), x));
    check_rows(&[1_000], &[], |g, x, _| apply(g, Op::Gelu(Gelu), x));
    check_rows(&[2, 7, 5], &[&[6, 2, 3, 3], &[6]], |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 1, pad: 1 }), x));
    check_rows(&[2, 7, 5], &[], |g, x, _| apply(g, Op::MaxPool(MaxPool { kernel: 2, stride: 2 }), x));
    check_rows(&[1, 24], &[], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
    check_rows(&[67, 48], &[], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
    check_rows(&[9, 24], &[], |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x));
}

struct Image;

impl Module for Image {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let x = x.reshape(&[x.shape()[0], 1, 4, 4])?;
        let x = nn.conv2d("conv", &x, Conv { out: 3, kernel: 3, stride: 1, pad: 1, bias: Bias::None })?;
        let x = nn.batch_norm("norm", &x)?.relu();
        nn.linear("out", &nn.dropout("drop", &x.flatten()?, 0.3)?, nn.outputs())
    }
}

struct Text;

impl Module for Text {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let table = Table { rows: nn.outputs(), width: 8, init: Init::Normal { std: 0.5 } };
        let (x, weight) = nn.embedding("table", &x, table)?;
        let y = nn.linear("qkv", &nn.layer_norm("norm", &x)?, 24)?.causal_attention(2)?;
        x.add(&nn.dropout("drop", &y.gelu(), 0.3)?)?.linear_with(&weight)
    }
}

fn batch(data: &DataShape, seed: u64, valid: usize) -> Batch {
    let mut state = seed;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as usize
    };
    match *data {
        DataShape::Features { features, classes } => Batch {
            features: (0..4 * features).map(|_| draw() as f32 / 8e6 - 1.0).collect(),
            targets: (0..4).map(|i| if i < valid { (draw() % classes) as i32 } else { IGNORE }).collect(),
            slots: (0..4).collect(),
            ..Batch::default()
        },
        DataShape::Tokens { vocab, context } => Batch {
            tokens: (0..4 * context).map(|_| (draw() % vocab) as i32).collect(),
            targets: (0..4 * context)
                .map(|i| if i < valid * context { (draw() % vocab) as i32 } else { IGNORE })
                .collect(),
            slots: (0..4).collect(),
            ..Batch::default()
        },
    }
}

const KEY: LeafKey = LeafKey { seed: 5, step: 9, scale: 0.125, label_smoothing: 0.1 };
const IMAGE: DataShape = DataShape::Features { features: 16, classes: 3 };
const TEXT: DataShape = DataShape::Tokens { vocab: 7, context: 5 };

const EACH: [(Dtype, &dyn Module, DataShape); 4] =
    [(Dtype::F32, &Image, IMAGE), (Dtype::F32, &Text, TEXT), (Dtype::Bf16, &Image, IMAGE), (Dtype::Bf16, &Text, TEXT)];

fn leaf(
    network: &dyn Network,
    scratch: &mut dyn std::any::Any,
    state: &[f32],
    batch: &Batch,
    key: LeafKey,
) -> (Vec<u32>, Tail) {
    // What was in the output before must not matter.
    let mut out = vec![f32::NAN; network.layout().reduced_floats()];
    let tail = network.sum(scratch, state, batch, key, &mut out);
    (bits(&out), tail)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn a_leaf_has_the_same_bits_after_any_other_calls(seed in any::<u64>(), valid in 0usize..5, other in any::<u64>()) {
        for (dtype, module, data) in EACH {
            let network = compile_in(dtype, module, &data, 4).unwrap();
            let (state, elsewhere) = (network.init(seed), network.init(other));
            let batch_here = batch(&data, seed, valid);
            let first = leaf(&*network, &mut *network.new_scratch(1), &state, &batch_here, KEY);
            let mut used = network.new_scratch(1);
            leaf(&*network, &mut *used, &elsewhere, &batch(&data, other, 4), LeafKey { step: 1, ..KEY });
            network.evaluate(&mut *used, &elsewhere, &batch(&data, other, 2));
            prop_assert_eq!(&leaf(&*network, &mut *used, &state, &batch_here, KEY), &first);
            prop_assert!(first.0.iter().all(|b| f32::from_bits(*b).is_finite()));
        }
    }
}

#[test]
fn padding_samples_change_nothing_whatever_they_hold() {
    for (dtype, module, data) in EACH {
        let network = compile_in(dtype, module, &data, 4).unwrap();
        let (state, mut scratch) = (network.init(1), network.new_scratch(1));
        let one = batch(&data, 1, 3);
        let mut other = one.clone();
        let tail = |len: usize| len - len / 4..len;
        let (floats, tokens) = (tail(one.features.len()), tail(one.tokens.len()));
        other.features[floats].fill(77.0);
        other.tokens[tokens].fill(3);
        assert_eq!(
            leaf(&*network, &mut *scratch, &state, &one, KEY),
            leaf(&*network, &mut *scratch, &state, &other, KEY)
        );
        assert_eq!(network.evaluate(&mut *scratch, &state, &one), network.evaluate(&mut *scratch, &state, &other));
    }
}

#[test]
fn a_shard_of_padding_alone_is_a_leaf_of_zeros() {
    for (dtype, module, data) in EACH {
        let network = compile_in(dtype, module, &data, 4).unwrap();
        let (state, mut scratch) = (network.init(1), network.new_scratch(1));
        let (out, tail) = leaf(&*network, &mut *scratch, &state, &batch(&data, 1, 0), KEY);
        assert!(out.iter().all(|b| f32::from_bits(*b) == 0.0), "no gradient and no moments");
        assert_eq!(tail, Tail::default());
    }
}

#[test]
fn dropout_follows_the_step_and_the_slot() {
    let network = compile(&Image, &IMAGE, 4).unwrap();
    let (state, mut scratch) = (network.init(1), network.new_scratch(1));
    let here = batch(&IMAGE, 1, 4);
    let elsewhere = Batch { slots: vec![4, 5, 6, 7], ..here.clone() };
    let first = leaf(&*network, &mut *scratch, &state, &here, KEY);
    assert_ne!(first, leaf(&*network, &mut *scratch, &state, &elsewhere, KEY));
    assert_ne!(first, leaf(&*network, &mut *scratch, &state, &here, LeafKey { step: 10, ..KEY }));
    assert_ne!(first, leaf(&*network, &mut *scratch, &state, &here, LeafKey { seed: 6, ..KEY }));
    assert_eq!(network.evaluate(&mut *scratch, &state, &here), network.evaluate(&mut *scratch, &state, &elsewhere));
}
