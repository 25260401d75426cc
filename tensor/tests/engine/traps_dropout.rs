//! Dropout's masks hang on the slot in the global batch, never on how the batch is cut.

use crate::common::{Build, Case, Ints, apply, random};
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_tensor::nn::{Module, Scope};
use elastic_tensor::ops::{Dropout, Op};
use elastic_tensor::{LeafKey, Result, Tensor, compile};

const WIDTH: usize = 50;
const DATA: DataShape = DataShape::Features { features: WIDTH, classes: 2 };
const SLOTS: usize = 16;

struct Masked;

impl Module for Masked {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        nn.linear("out", &nn.dropout("drop", &x, 0.4)?, nn.outputs())
    }
}

/// Gradients when `slot` alone counts, computed in a shard of `m`: zero where the mask is.
fn gradient_of(slot: usize, m: usize) -> Vec<u32> {
    let network = compile(&Masked, &DATA, m).unwrap();
    let slots = slot / m * m..(slot / m + 1) * m;
    let sample = |slot: usize| random(&format!("sample {slot}"), WIDTH).into_iter().map(|x| x as f32 + 2.0);
    let batch = Batch {
        features: slots.clone().flat_map(sample).collect(),
        targets: slots.clone().map(|s| if s == slot { 1 } else { IGNORE }).collect(),
        slots: slots.map(|s| s as u64).collect(),
        ..Batch::default()
    };
    let mut out = vec![f32::NAN; network.layout().reduced_floats()];
    let key = LeafKey { seed: 3, step: 7, scale: 1.0 / SLOTS as f32, label_smoothing: 0.0 };
    network.sum(&mut *network.new_scratch(1), &network.init(1), &batch, key, &mut out);
    let weight = network.layout().params.iter().find(|p| p.shape.len() == 2).unwrap();
    // Adding zero makes one zero of both.
    out[weight.offset..][..weight.len].iter().map(|x| (x + 0.0).to_bits()).collect()
}

#[test]
fn a_slot_has_one_mask_in_every_sharding() {
    for slot in [0, 5, 15] {
        let alone = gradient_of(slot, 1);
        let dropped = alone.iter().filter(|bits| **bits == 0).count();
        assert!(dropped > 10 && dropped < 2 * WIDTH - 10, "{dropped} of {} dropped", 2 * WIDTH);
        for m in [2, 4, 8, SLOTS] {
            assert!(gradient_of(slot, m) == alone, "slot {slot} in a shard of {m}");
        }
        assert_ne!(gradient_of((slot + 1) % SLOTS, 1), alone, "other slots have other masks");
    }
}

fn check_share(p: f64, build: Build) {
    let (samples, width) = (64, 1_000);
    let case = Case { shapes: vec![vec![samples, width]], ints: Ints::default(), smoothing: 0.0, build };
    let ones = vec![1.0; samples * width];
    let out = case.run::<f32>(std::slice::from_ref(&ones), &ones);
    assert_eq!(out.dx[0], out.y, "the gradient draws the same mask again");
    let (n, dropped) = ((samples * width) as f64, out.y.iter().filter(|y| **y == 0.0).count() as f64);
    let sigma = (n * p * (1.0 - p)).sqrt();
    assert!((dropped - n * p).abs() < 4.0 * sigma, "{dropped} of {n} dropped at p = {p}");
}

#[test]
fn the_share_dropped_is_within_four_sigma_and_the_gradient_draws_the_same_mask() {
    check_share(0.1, |g, x, _| apply(g, Op::Dropout(Dropout { p: 0.1 }), x));
    check_share(0.5, |g, x, _| apply(g, Op::Dropout(Dropout { p: 0.5 }), x));
    check_share(0.9, |g, x, _| apply(g, Op::Dropout(Dropout { p: 0.9 }), x));
}
