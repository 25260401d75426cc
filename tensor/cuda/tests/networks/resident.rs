//! Steps whose state stays on the GPU, against the processor's: state, moments, tails and reports have the same bits after a
//! step that runs launch by launch, one that is recorded, and those that are replayed; for one unit and for a tree of them.

use crate::device::DEVICE;
use crate::{IMAGE, TEXT, batch};
use elastic_cuda::network::CudaNetwork;
use elastic_cuda::optim::{Now, Rule};
use elastic_cuda::resident::{Resident, Units};
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Optimizer, Positions};
use elastic_spec::layout::Tail;
use elastic_tensor::leaves::tree_sum;
use elastic_tensor::nn::Module;
use elastic_tensor::{LeafKey, Network, Update, compile_in, moments_of};
use std::cell::RefCell;

const SAMPLES: usize = 2;
const STEPS: u64 = 4;
const LR: f64 = 0.01;

fn both(kind: &ModelKind, data: &DataShape) -> (CudaNetwork, Box<dyn Network>) {
    let on_gpu = RefCell::new(None);
    let compile = |module: &dyn Module| {
        *on_gpu.borrow_mut() = Some(CudaNetwork::new(&DEVICE.gpu, Dtype::F32, module, data, SAMPLES)?);
        compile_in(Dtype::F32, module, data, SAMPLES)
    };
    let processor = elastic_models::build_by(kind, data, &compile).expect("every op has its kernel");
    (on_gpu.take().expect("the model was compiled"), processor)
}

/// The units' batches of a step, and how much of them counts.
fn batches(data: &DataShape, step: u64, units: Units) -> (Vec<Batch>, f32) {
    let all = (0..units.units as u64).map(|unit| batch(data, 10 * step + unit, SAMPLES * units.shards));
    let all: Vec<Batch> = all.collect();
    let targets: Vec<i32> = all.iter().flat_map(|batch| batch.targets.clone()).collect();
    let valid = targets.iter().filter(|target| **target != elastic_spec::batch::IGNORE).count();
    (all, targets.len() as f32 / valid as f32)
}

fn bits(numbers: &[f32]) -> Vec<u32> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

fn check(kind: &ModelKind, data: &DataShape, units: Units, rule: Rule) {
    let (network, processor) = both(kind, data);
    let layout = processor.layout();
    let mut state = processor.init(1);
    let (first, _) = batches(data, 0, units);
    let mut resident = Resident::new(&network, rule, units, &first[0], &state).expect("it fits");
    let mut moments = vec![vec![0.0; layout.param_floats()]; moments_of(&rule.optimizer)];
    let (mut scratch, mut room) = (processor.new_scratch(1), Vec::new());
    for step in 0..STEPS {
        let (all, correction) = batches(data, step, units);
        let key = LeafKey { seed: 5, step, scale: 0.125, label_smoothing: 0.1 };
        let found = resident.step(&all, key, Now { step, lr: LR, correction }).expect("it runs");

        let (mut reduced, mut tail) = (vec![0.0; layout.reduced_floats()], Tail::default());
        tree_sum(units.units, &mut reduced, &mut room, |unit, sum| {
            tail = tail.add(processor.sum(&mut *scratch, &state, &all[unit], key, sum));
        });
        let Rule { optimizer, clip_norm, .. } = &rule;
        let update = Update {
            layout,
            reduced: &mut reduced,
            state: &mut state,
            moments: &mut moments,
            step,
            lr: LR,
            correction,
            clip_norm: *clip_norm,
        };
        let report = processor.update(&mut *scratch, optimizer, update);
        assert_eq!((found.0.count, found.0.correct, found.1), (tail.count, tail.correct, report), "step {step}");
        // The units' losses are added along the tree there and one after the other here.
        assert!((found.0.loss - tail.loss).abs() < 1e-9 * tail.loss.abs(), "step {step}: {found:?}, not {tail:?}");
        assert!(bits(&resident.state().expect("a copy")) == bits(&state), "{units:?}, the state after step {step}");
        let there = resident.moments().expect("copies");
        assert!(there.iter().zip(&moments).all(|(a, b)| bits(a) == bits(b)), "{units:?}, moments after step {step}");
    }
}

const ADAM_W: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };
const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, nesterov: false, weight_decay: 5e-4 };

fn each_way(kind: &ModelKind, data: &DataShape, rule: Rule) {
    for (units, shards) in [(1, 1), (1, 4), (4, 1), (2, 2)] {
        check(kind, data, Units { units, shards }, rule);
    }
}

#[test]
fn an_mlps_steps_have_the_processors_bits() {
    let kind = ModelKind::Mlp { hidden: vec![33], activation: Activation::Relu };
    each_way(&kind, &IMAGE, Rule { optimizer: ADAM_W, clip_norm: Some(0.01), ema: None });
}

#[test]
fn a_cnns_steps_have_the_processors_bits() {
    let kind = ModelKind::Cnn { image: [2, 9, 9], channels: vec![5], kernel: 3, hidden: 0, batch_norm: true };
    each_way(&kind, &IMAGE, Rule { optimizer: SGD, clip_norm: None, ema: None });
}

#[test]
fn a_decoders_steps_have_the_processors_bits() {
    let (norm, positions) = (Norm::Layer, Positions::Learned);
    let kind = ModelKind::Gpt { layers: 1, width: 24, heads: 3, context: 21, dropout: 0.1, norm, positions };
    check(&kind, &TEXT, Units { units: 2, shards: 2 }, Rule { optimizer: ADAM_W, clip_norm: Some(1.0), ema: None });
}

#[test]
fn a_gradient_that_is_not_finite_moves_nothing() {
    let kind = ModelKind::Mlp { hidden: vec![7], activation: Activation::Relu };
    let (network, processor) = both(&kind, &IMAGE);
    let (units, state) = (Units { units: 1, shards: 1 }, processor.init(1));
    let (mut all, correction) = batches(&IMAGE, 0, units);
    all[0].features[3] = f32::INFINITY;
    let rule = Rule { optimizer: ADAM_W, clip_norm: None, ema: None };
    let mut resident = Resident::new(&network, rule, units, &all[0], &state).expect("it fits");
    for step in 0..3 {
        let key = LeafKey { seed: 5, step, scale: 0.125, label_smoothing: 0.0 };
        let (_, report) = resident.step(&all, key, Now { step, lr: LR, correction }).expect("it runs");
        assert!(report.not_finite.is_some(), "step {step}: {report:?}");
        assert!(bits(&resident.state().expect("a copy")) == bits(&state), "step {step}");
    }
}
