//! Whole networks in bf16, whose products run on tensor cores. Shards together have the bits of each alone, added along
//! the tree. And they are near the processor's in bf16: both round the same operands and add in an order of their own,
//! so that now and then a number at the edge of two bf16 is rounded the other way. That moves the gradient less than
//! rounding at all does.

use super::{IMAGE, TEXT, batch, on_gpu_in};
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Positions, Stem};
use elastic_spec::layout::Tail;
use elastic_tensor::{LeafKey, Network, leaves};

const SAMPLES: usize = 2;
const SHARDS: usize = 4;
const KEY: LeafKey = LeafKey { seed: 3, step: 5, scale: 0.25, label_smoothing: 0.1 };

fn sum(network: &dyn Network, state: &[f32], batch: &Batch) -> (Vec<f32>, Tail) {
    let mut out = vec![f32::NAN; network.layout().reduced_floats()];
    let tail = network.sum(&mut *network.new_scratch(1), state, batch, KEY, &mut out);
    (out, tail)
}

fn part(whole: &Batch, shard: usize) -> Batch {
    fn of<T: Clone>(all: &[T], shard: usize) -> Vec<T> {
        let len = all.len() / SHARDS;
        all[shard * len..][..len].to_vec()
    }
    Batch {
        features: of(&whole.features, shard),
        tokens: of(&whole.tokens, shard),
        targets: of(&whole.targets, shard),
        slots: of(&whole.slots, shard),
    }
}

fn size(xs: impl Iterator<Item = f64>) -> f64 {
    xs.map(|x| x * x).sum::<f64>().sqrt()
}

fn apart(a: &[f32], b: &[f32]) -> f64 {
    size(a.iter().zip(b).map(|(a, b)| *a as f64 - *b as f64)) / size(b.iter().map(|b| *b as f64))
}

fn check(kind: &ModelKind, data: &DataShape) {
    let gpu = on_gpu_in(Dtype::Bf16, kind, data, SAMPLES);
    let [f32s, bf16s] =
        [Dtype::F32, Dtype::Bf16].map(|dtype| elastic_models::build_in(dtype, kind, data, SAMPLES).expect("it fits"));
    let (state, batch) = (bf16s.init(5), batch(data, 5, SAMPLES * SHARDS));
    let (got, tail) = sum(&*gpu, &state, &batch);

    let all: Vec<_> = (0..SHARDS).map(|shard| sum(&*gpu, &state, &part(&batch, shard)).0).collect();
    let add = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| leaves::add(*a, *b)).collect::<Vec<f32>>();
    let apart_and_added = add(&add(&all[0], &all[1]), &add(&all[2], &all[3]));
    let bits = |xs: &[f32]| xs.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&got) == bits(&apart_and_added), "{kind:?}: shards together and apart");

    let ((wanted, wanted_tail), (exact, _)) = (sum(&*bf16s, &state, &batch), sum(&*f32s, &state, &batch));
    let (from_bf16, from_f32) = (apart(&got, &wanted), apart(&exact, &wanted));
    println!("{kind:?}: {from_bf16:.1e} from the processor's bf16, which is {from_f32:.1e} from f32");
    assert!(from_bf16 < 0.75 * from_f32, "{from_bf16:e} from bf16, which is {from_f32:e} from f32");
    let loss = (tail.loss - wanted_tail.loss).abs() / wanted_tail.loss;
    assert!(loss < 1e-3 && tail.count == wanted_tail.count, "{tail:?}, not {wanted_tail:?}");
}

#[test]
fn an_mlp_in_bf16_is_near_the_processors() {
    check(&ModelKind::Mlp { hidden: vec![33, 17], activation: Activation::Gelu }, &IMAGE);
}

#[test]
fn a_cnn_in_bf16_is_near_the_processors() {
    for batch_norm in [true, false] {
        let kind = ModelKind::Cnn { image: [2, 9, 9], channels: vec![5, 6], kernel: 3, hidden: 11, batch_norm };
        check(&kind, &IMAGE);
    }
}

#[test]
fn a_resnet_in_bf16_is_near_the_processors() {
    let kind = ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Small, width: 4, zero_init_residual: false };
    check(&kind, &DataShape::Features { features: 64, classes: 5 });
}

#[test]
fn a_decoder_in_bf16_is_near_the_processors() {
    for (norm, positions) in [(Norm::Layer, Positions::Learned), (Norm::Rms, Positions::Rotary)] {
        let kind = ModelKind::Gpt { layers: 2, width: 24, heads: 3, context: 21, dropout: 0.1, norm, positions };
        check(&kind, &TEXT);
    }
}
