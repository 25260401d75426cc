//! The promise of units: the bits of leaves that were made one by one and added afterwards.

use super::*;
use crate::gemm::{FORCED, Isa};
use crate::nn::{Bias, Conv, Module, Scope, Table};
use crate::tensor::{Result, Tensor};
use crate::{Init, LeafKey, Network, compile, compile_in};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::Dtype;
use elastic_spec::layout::{Tail, canonical};

struct Mlp;

impl Module for Mlp {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let x = nn.linear("in", &x, 37)?.gelu();
        let x = x.add(&nn.linear("mid", &x, 37)?.relu())?;
        nn.linear("out", &x, nn.outputs())
    }
}

struct Image;

impl Module for Image {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let x = x.reshape(&[x.shape()[0], 1, 6, 6])?;
        let x = nn.conv2d("a", &x, Conv { out: 5, kernel: 3, stride: 1, pad: 1, bias: Bias::PerChannel })?;
        let x = nn.batch_norm("norm", &x)?.relu().max_pool(2, 2)?;
        let x = nn.conv2d("b", &x, Conv { out: 4, kernel: 2, stride: 1, pad: 0, bias: Bias::None })?.avg_pool(2, 1)?;
        nn.linear("out", &nn.dropout("drop", &x.flatten()?, 0.3)?, nn.outputs())
    }
}

/// Planes of which a unit of shards does not fit one group of the weight's gradient.
struct Wide;

impl Module for Wide {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let x = x.reshape(&[x.shape()[0], 1, 24, 24])?;
        let x = nn.conv2d("a", &x, Conv { out: 2, kernel: 3, stride: 1, pad: 1, bias: Bias::None })?;
        let x = nn.batch_norm("norm", &x)?.relu();
        let x = nn.conv2d("b", &x, Conv { out: 3, kernel: 3, stride: 2, pad: 1, bias: Bias::None })?.max_pool(2, 2)?;
        nn.linear("out", &x.flatten()?, nn.outputs())
    }
}

struct Text;

impl Module for Text {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let table = Table { rows: nn.outputs(), width: 12, init: Init::Normal { std: 0.5 } };
        let context = x.shape()[1];
        let (x, weight) = nn.embedding("table", &x, table)?;
        let x = x.add(&nn.param("places", &[context, 12], Init::Normal { std: 0.1 })?)?;
        let y = nn.linear("qkv", &nn.layer_norm("norm", &x)?, 36)?.causal_attention(2)?;
        x.add(&nn.dropout("drop", &y.gelu(), 0.3)?)?.linear_with(&weight)
    }
}

/// A decoder with RMS norms and rotary positions.
struct Turned;

impl Module for Turned {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let table = Table { rows: nn.outputs(), width: 12, init: Init::Normal { std: 0.5 } };
        let (x, _) = nn.embedding("table", &x, table)?;
        let y = nn.linear("qkv", &nn.rms_norm("norm", &x)?, 36)?.rotary(2)?.causal_attention(2)?;
        nn.linear("out", &nn.rms_norm("last", &x.add(&y)?)?, nn.outputs())
    }
}

/// Whatever does not fit the usual ways: parameters made of parameters, used twice and beside the batch.
struct Odd;

impl Module for Odd {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let inner = x.shape()[1];
        let normal = Init::Normal { std: 0.4 };
        let (a, b) = (nn.param("a", &[inner, 5], normal)?, nn.param("b", &[5, 9], normal)?);
        let mask = nn.param("mask", &[inner, 9], Init::Constant(0.75))?;
        let made = a.matmul(&b)?.mul(&mask)?.add(&nn.param("shift", &[9], normal)?)?;
        let y = x.matmul(&made)?.add(&x.matmul(&made.mul(&made)?)?)?;
        // A product and a sum with a parameter that is as large as a shard, and a mask for a parameter.
        let here = nn.param("here", &y.shape(), normal)?;
        let y = y.mul(&here)?.add(&nn.dropout("drop", &here, 0.3)?)?.reshape(&[9 * y.shape()[0]])?;
        let y = y.add(&y.scale(0.5))?.reshape(&here.shape())?;
        let square = nn.param("square", &[y.shape()[0], y.shape()[0]], normal)?;
        nn.linear("out", &square.matmul(&y)?, nn.outputs())
    }
}

/// Ops that eager code brings, of the batch and of parameters, with and without the batch axis.
struct Free;

impl Module for Free {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        use crate::ops::{Each, Permute, Range, Reduce, ReduceKind, Slice, Softmax};
        let normal = Init::Normal { std: 0.4 };
        let one = |x: &Tensor, op: Op, others: &[&Tensor]| Ok(x.apply(op, "free", others)?.swap_remove(0));
        let each = |f: Each, x: &Tensor, others: &[&Tensor]| one(x, Op::Each(f), others);
        let (rows, gain) = (x.shape()[0], nn.param("gain", &[1, 36], normal)?);
        let x = each(Each::Tanh, &each(Each::Mul, &x, &[&gain])?, &[])?;
        // The mean of each row, and one over the shard's rows.
        let mean =
            |x: &Tensor, from: usize| one(x, Op::Reduce(Reduce { kind: ReduceKind::Mean, from, to: from + 1 }), &[]);
        let x = each(Each::Sub, &x, &[&mean(&x, 1)?.reshape(&[rows, 1])?])?;
        let x = each(Each::Silu, &each(Each::Add, &x, &[&mean(&x, 0)?])?, &[])?;
        let shares = one(&nn.linear("in", &x, 12)?, Op::Softmax(Softmax { log: false }), &[])?;
        let turned = one(&shares, Op::Permute(Permute { axes: vec![1, 0] }), &[])?;
        let turned = each(Each::Exp, &each(Each::Max, &turned, &[&nn.param("floor", &[12, 1], normal)?])?, &[])?;
        let back = one(&turned, Op::Permute(Permute { axes: vec![1, 0] }), &[])?;
        let ranges = vec![Range { start: 0, step: 1, len: rows }, Range { start: 11, step: -2, len: 6 }];
        nn.linear("out", &one(&back, Op::Slice(Slice { ranges }), &[])?, nn.outputs())
    }
}

const FEATURES: DataShape = DataShape::Features { features: 36, classes: 3 };
const TOKENS: DataShape = DataShape::Tokens { vocab: 11, context: 5 };
const KEY: LeafKey = LeafKey { seed: 5, step: 9, scale: 0.03, label_smoothing: 0.1 };

/// What the numbers of a batch are like.
#[derive(Clone, Copy, Debug)]
enum Inputs {
    Random,
    ZeroHeavy,
    NegativeZero,
}

/// `samples` from slot 0 on. Some are padding: one in seven, and every one of the third shard.
fn batch(data: &DataShape, samples: usize, m: usize, inputs: Inputs) -> Batch {
    let mut state = samples as u64;
    let mut draw = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as usize
    };
    let (features, tokens, targets, classes) = match *data {
        DataShape::Features { features, classes } => (features, 0, 1, classes),
        DataShape::Tokens { vocab, context } => (0, context, context, vocab),
    };
    let mut feature = || match (inputs, draw()) {
        (Inputs::ZeroHeavy, n) if n % 8 > 0 => 0.0,
        (Inputs::NegativeZero, n) if n % 8 > 0 => -0.0,
        (_, n) => n as f32 / 8e6 - 1.0,
    };
    let features = (0..samples * features).map(|_| feature()).collect();
    let tokens = (0..samples * tokens).map(|_| (draw() % classes) as i32).collect();
    let is_padding = |i: usize| i % 7 == 6 || i / m == 2;
    let target = |i: usize, n: usize| if is_padding(i / targets) { IGNORE } else { (n % classes) as i32 };
    let targets = (0..samples * targets).map(|i| target(i, draw())).collect();
    Batch { features, tokens, targets, slots: (0..samples as u64).collect() }
}

fn part(whole: &Batch, shards: usize, shard: usize) -> Batch {
    fn cut<T: Clone>(xs: &[T], shards: usize, shard: usize) -> Vec<T> {
        xs[xs.len() / shards * shard..][..xs.len() / shards].to_vec()
    }
    Batch {
        features: cut(&whole.features, shards, shard),
        tokens: cut(&whole.tokens, shards, shard),
        targets: cut(&whole.targets, shards, shard),
        slots: cut(&whole.slots, shards, shard),
    }
}

type Bits = (Vec<u32>, Tail);

fn unit_bits(network: &dyn Network, threads: usize, state: &[f32], batch: &Batch) -> Bits {
    let mut out = vec![f32::NAN; network.layout().reduced_floats()];
    let tail = network.sum(&mut *network.new_scratch(threads), state, batch, KEY, &mut out);
    (out.iter().map(|x| x.to_bits()).collect(), tail)
}

/// Siblings are added until one is left.
fn by_levels(mut leaves: Vec<Bits>) -> Bits {
    let add = |a: &u32, b: &u32| canonical(f32::from_bits(*a) + f32::from_bits(*b)).to_bits();
    while leaves.len() > 1 {
        let pair = |p: &[Bits]| (p[0].0.iter().zip(&p[1].0).map(|(a, b)| add(a, b)).collect(), p[0].1.add(p[1].1));
        leaves = leaves.chunks_exact(2).map(pair).collect();
    }
    leaves.swap_remove(0)
}

fn check(dtype: Dtype, module: &dyn Module, data: &DataShape, m: usize, inputs: Inputs) {
    let network = compile_in(dtype, module, data, m).unwrap();
    let state = network.init(3);
    let shards_max = if m > 7 { 4 } else { 16 };
    assert!(network.shards_max() >= shards_max, "units are compiled as far as they are small");
    FORCED.set(None);
    let whole = batch(data, shards_max * m, m, inputs);
    let leaves: Vec<Bits> =
        (0..shards_max).map(|s| unit_bits(&*network, 1, &state, &part(&whole, shards_max, s))).collect();
    let mut shards = 1;
    while shards <= shards_max {
        let wanted = by_levels(leaves[..shards].to_vec());
        let here = part(&whole, shards_max / shards, 0);
        for isa in Isa::here() {
            FORCED.set(Some(isa));
            for threads in [1, 2, 3] {
                let got = unit_bits(&*network, threads, &state, &here);
                let at = got.0.iter().zip(&wanted.0).position(|(a, b)| a != b);
                let name = at.map(|at| {
                    let params = network.layout().params.iter().chain(&network.layout().buffers);
                    params.filter(|p| p.offset <= at).map(|p| p.name.clone()).next_back()
                });
                let what = format!("{dtype:?}, {shards} shards of {m}, {inputs:?}, {isa:?}, {threads} threads");
                assert!(at.is_none(), "{what}: {name:?} differs at {at:?}");
                assert_eq!(got.1, wanted.1, "{what}");
            }
        }
        shards *= 2;
    }
    FORCED.set(None);
}

fn check_all(dtype: Dtype, module: &dyn Module, data: &DataShape, inputs: &[Inputs]) {
    for m in [1, 2, 3, 4, 7, 32] {
        inputs.iter().for_each(|inputs| check(dtype, module, data, m, *inputs));
    }
}

const ALL: [Inputs; 3] = [Inputs::Random, Inputs::ZeroHeavy, Inputs::NegativeZero];

#[test]
fn an_mlps_units_have_the_bits_of_single_shards() {
    check_all(Dtype::F32, &Mlp, &FEATURES, &ALL);
}

#[test]
fn units_of_convolutions_and_batch_norm_have_the_bits_of_single_shards() {
    check_all(Dtype::F32, &Image, &FEATURES, &ALL);
}

#[test]
fn units_of_wide_images_have_the_bits_of_single_shards() {
    let data = DataShape::Features { features: 576, classes: 3 };
    for dtype in [Dtype::F32, Dtype::Bf16] {
        check(dtype, &Wide, &data, 7, Inputs::Random);
        check(dtype, &Wide, &data, 32, Inputs::Random);
    }
}

#[test]
fn units_of_a_decoder_with_a_tied_table_have_the_bits_of_single_shards() {
    check_all(Dtype::F32, &Text, &TOKENS, &ALL[..1]);
    check_all(Dtype::F32, &Turned, &TOKENS, &ALL[..1]);
}

#[test]
fn any_other_graph_has_units_with_the_bits_of_single_shards() {
    check_all(Dtype::F32, &Odd, &FEATURES, &ALL);
}

#[test]
fn units_in_bf16_have_the_bits_of_single_shards() {
    for (module, data) in [(&Mlp as &dyn Module, &FEATURES), (&Image, &FEATURES), (&Text, &TOKENS), (&Odd, &FEATURES)] {
        check_all(Dtype::Bf16, module, data, if data == &TOKENS { &ALL[..1] } else { &ALL });
    }
}

#[test]
fn units_of_a_module_with_eager_ops_have_the_bits_of_single_shards() {
    check_all(Dtype::F32, &Free, &FEATURES, &ALL);
}

#[test]
fn an_evaluation_of_several_shards_gives_each_its_own_tail() {
    for (module, data) in [(&Image as &dyn Module, FEATURES), (&Text, TOKENS)] {
        let network = compile(module, &data, 3).unwrap();
        let (state, whole) = (network.init(3), batch(&data, 12, 3, Inputs::Random));
        let mut scratch = network.new_scratch(2);
        let wanted: Vec<Tail> =
            (0..4).flat_map(|shard| network.evaluate(&mut *scratch, &state, &part(&whole, 4, shard))).collect();
        assert_eq!(network.evaluate(&mut *scratch, &state, &whole), wanted);
        assert!(wanted[0].count > 0 && wanted[2].count == 0, "one shard is of padding alone");
    }
}

/// Which ops of a module's unit run one shard after the other.
fn one_by_one(module: &dyn Module, data: &DataShape) -> Vec<&'static str> {
    let trace = crate::passes::trace(module, data, 4, crate::nn::Mode::Train).unwrap();
    let mut graph = trace.graph;
    let shape = graph.ty(trace.loss).shape.clone();
    let seed = graph.apply1(Op::Seed(crate::ops::Seed { shape }), "loss", &[]).unwrap();
    let params: Vec<Value> =
        (0..graph.values.len()).map(Value).filter(|v| matches!(graph.source(*v), Source::State(_))).collect();
    let grads = crate::autograd::backward(&mut graph, trace.loss, seed, &params).unwrap();
    let out: Vec<(Value, usize)> = grads.into_iter().flatten().map(|grad| (grad, 0)).collect();
    let unit = unit(&graph, Asked { out: &out, keep: &[trace.loss] }, 4, 8);
    let mut names: Vec<_> =
        unit.graph.nodes.iter().filter(|n| n.one_by_one.is_some()).map(|node| node.op.name()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn the_usual_models_run_as_a_whole() {
    assert_eq!(one_by_one(&Mlp, &FEATURES), [""; 0]);
    assert_eq!(one_by_one(&Image, &FEATURES), ["batch norm", "batch norm gradient"]);
    assert_eq!(one_by_one(&Turned, &TOKENS), [""; 0]);
    // The tied table's two gradients are added leaf by leaf.
    assert_eq!(one_by_one(&Text, &TOKENS), ["embedding gradient", "linear weight gradient"]);
}
