//! Running statistics of batch norm: one update a step, pooled over the shards' valid samples.

use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::Optimizer;
use elastic_tensor::nn::{Module, Scope};
use elastic_tensor::{LeafKey, Result, Tensor, Update, apply, compile};

const FEATURES: usize = 3;
const SGD: Optimizer = Optimizer::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };

struct Norm;

impl Module for Norm {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        nn.linear("out", &nn.batch_norm("norm", &x)?, nn.outputs())
    }
}

/// Sample `i` of the data: channels far from 0 with little spread, where E[x²] - E[x]² would cancel.
fn sample(i: usize) -> [f32; FEATURES] {
    std::array::from_fn(|c| 1000.0 * c as f32 + ((i * 7 + c * 5) % 11) as f32 * 0.25)
}

/// (mean, variance) buffers after `steps` steps over 16 slots in `shards`, of which the first `valid` count.
fn running(shards: usize, valid: usize, steps: u64) -> (Vec<f32>, Vec<f32>) {
    let m = 16 / shards;
    let network = compile(&Norm, &DataShape::Features { features: FEATURES, classes: 2 }, m).unwrap();
    let (layout, mut state, mut scratch) = (network.layout(), network.init(1), network.new_scratch(1));
    for step in 0..steps {
        let mut sum = vec![0.0; layout.reduced_floats()];
        for shard in 0..shards {
            let slots = shard * m..(shard + 1) * m;
            let batch = Batch {
                features: slots.clone().flat_map(sample).collect(),
                targets: slots.clone().map(|i| if i < valid { (i % 2) as i32 } else { IGNORE }).collect(),
                slots: slots.map(|i| i as u64).collect(),
                ..Batch::default()
            };
            let mut leaf = vec![0.0; sum.len()];
            let key = LeafKey { seed: 0, step, scale: 1.0 / 16.0, label_smoothing: 0.0 };
            network.sum(&mut *scratch, &state, &batch, key, &mut leaf);
            sum.iter_mut().zip(leaf).for_each(|(sum, x)| *sum += x);
        }
        let (reduced, state) = (&mut sum[..], &mut state[..]);
        let correction = 16.0 / valid as f32;
        apply(&SGD, Update { layout, reduced, state, moments: &mut [], step, lr: 0.0, correction, clip_norm: None });
    }
    let part = |name: &str| {
        let info = layout.buffers.iter().find(|b| b.name == name).unwrap();
        state[info.offset..][..info.len].to_vec()
    };
    (part("norm.running_mean"), part("norm.running_var"))
}

/// Mean and unbiased variance of the valid samples, by definition.
fn expected(valid: usize) -> (Vec<f64>, Vec<f64>) {
    let column = |c: usize| (0..valid).map(move |i| sample(i)[c] as f64);
    let mean: Vec<f64> = (0..FEATURES).map(|c| column(c).sum::<f64>() / valid as f64).collect();
    let var = |c: usize| column(c).map(|x| (x - mean[c]).powi(2)).sum::<f64>() / (valid - 1) as f64;
    (mean.clone(), (0..FEATURES).map(var).collect())
}

#[test]
fn one_step_moves_the_mean_a_tenth_of_the_way_for_any_number_of_shards() {
    for valid in [16, 13, 5] {
        let (mean, _) = expected(valid);
        for shards in [1, 2, 4, 8] {
            for (got, wanted) in running(shards, valid, 1).0.iter().zip(&mean) {
                assert!((*got as f64 - 0.1 * wanted).abs() < 1e-4 * wanted.max(1.0), "{shards} shards, {valid} valid");
            }
        }
    }
}

#[test]
fn the_statistics_settle_at_those_of_the_valid_samples() {
    for shards in [1, 2, 4] {
        let ((mean, var), (wanted_mean, wanted_var)) = (running(shards, 16, 300), expected(16));
        for c in 0..FEATURES {
            assert!((mean[c] as f64 - wanted_mean[c]).abs() < 2e-3, "{shards} shards: mean {mean:?} {wanted_mean:?}");
            // The unbiased variance is met exactly by one shard, on average by more.
            let off = (var[c] as f64 / wanted_var[c] - 1.0).abs();
            let most = if shards == 1 { 1e-4 } else { 0.02 };
            assert!(off < most, "{shards} shards: variance {var:?} {wanted_var:?}");
        }
    }
}
