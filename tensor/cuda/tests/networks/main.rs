//! Whole networks on the tests' GPU against the processor: leaves, metrics and what is seen of each op have the same bits, for
//! one shard and for units of several, launch by launch and replayed as a graph.

mod bf16;
#[path = "../common/mod.rs"]
mod common;
#[path = "../ops/device.rs"]
mod device;
mod forward;
mod resident;

use device::DEVICE;
use elastic_cuda::gpu::OnGpu;
use elastic_spec::batch::{Batch, DataShape, IGNORE};
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Optimizer, Positions, Stem};
use elastic_tensor::backend::Backend;
use elastic_tensor::exec::{At, Watch};
use elastic_tensor::philox::{Stream, unit};
use elastic_tensor::{Held, LeafKey, Network, Update, moments_of};
use std::sync::Arc;

fn on_gpu(kind: &ModelKind, data: &DataShape, samples: usize) -> Box<dyn Network> {
    on_gpu_in(Dtype::F32, kind, data, samples)
}

fn on_gpu_in(dtype: Dtype, kind: &ModelKind, data: &DataShape, samples: usize) -> Box<dyn Network> {
    let backend = OnGpu(Arc::clone(&DEVICE.gpu));
    let compile = |module: &dyn elastic_tensor::nn::Module| backend.compile(dtype, module, data, samples);
    elastic_models::build_by(kind, data, &compile).expect("every op has its kernel")
}

fn on_processor(kind: &ModelKind, data: &DataShape, samples: usize) -> Box<dyn Network> {
    elastic_models::build_in(Dtype::F32, kind, data, samples).expect("the shapes fit")
}

/// `samples` samples, the last of which counts for nothing.
fn batch(data: &DataShape, step: u64, samples: usize) -> Batch {
    let numbers = Stream::new(step, "batch");
    let draw = |i: usize, below: usize| (numbers.words([i as u32, 1, 0, 0])[0] as usize % below) as i32;
    let last = |i: usize, per: usize, value: i32| if i / per + 1 == samples && samples > 1 { IGNORE } else { value };
    let slots = (0..samples as u64).map(|slot| slot + 100 * step).collect();
    match *data {
        DataShape::Features { features, classes } => Batch {
            features: (0..samples * features)
                .map(|i| unit(numbers.words([i as u32, 0, 0, 0])[0]) * 2.0 - 1.0)
                .collect(),
            targets: (0..samples).map(|i| last(i, 1, draw(i, classes))).collect(),
            slots,
            ..Batch::default()
        },
        DataShape::Tokens { vocab, context } => Batch {
            tokens: (0..samples * context).map(|i| draw(i, vocab)).collect(),
            targets: (0..samples * context).map(|i| last(i, context, draw(i + 7, vocab))).collect(),
            slots,
            ..Batch::default()
        },
    }
}

/// What each op wrote, in bits.
#[derive(Default)]
struct Seen(Vec<(String, Vec<u32>)>);

impl Watch for Seen {
    fn after(&mut self, at: At<'_>, written: &mut dyn Iterator<Item = &[f32]>) {
        let what = format!("{} {} at {}", at.index, at.step.op.name(), at.step.path);
        self.0.push((what, written.flatten().map(|x| (*x).to_bits()).collect()));
    }
}

fn check(kind: &ModelKind, data: &DataShape) {
    const SAMPLES: usize = 2;
    let (gpu, processor) = (on_gpu(kind, data, SAMPLES), on_processor(kind, data, SAMPLES));
    assert_eq!(gpu.layout(), processor.layout());
    let (mut there, mut here) = (gpu.new_scratch(1), processor.new_scratch(1));
    let floats = gpu.layout().reduced_floats();
    for shards in [1, 2, 4] {
        // Twice the same, launch by launch and as a graph, and then another state and step.
        for (call, step) in [5, 5, 6].into_iter().enumerate() {
            let state = processor.init(step);
            let batch = batch(data, step, SAMPLES * shards);
            let key = LeafKey { seed: 3, step, scale: 0.25, label_smoothing: 0.1 };
            let (mut got, mut wanted) = (vec![f32::NAN; floats], vec![f32::NAN; floats]);
            let tails = (
                gpu.sum(&mut *there, &state, &batch, key, &mut got),
                processor.sum(&mut *here, &state, &batch, key, &mut wanted),
            );
            if got.iter().zip(&wanted).any(|(a, b)| a.to_bits() != b.to_bits()) {
                first_that_differs(&*gpu, &*processor, &state, &batch, key);
            }
            assert_eq!(tails.0, tails.1, "{shards} shards, call {call}");
            let found = (gpu.evaluate(&mut *there, &state, &batch), processor.evaluate(&mut *here, &state, &batch));
            assert_eq!(found.0, found.1, "evaluation of {shards} shards, call {call}");
        }
    }
}

/// Goes through the ops of both, and names the first whose results differ.
fn first_that_differs(gpu: &dyn Network, processor: &dyn Network, state: &[f32], batch: &Batch, key: LeafKey) -> ! {
    let (mut there, mut here, mut leaf) = (Seen::default(), Seen::default(), vec![0.0; gpu.layout().reduced_floats()]);
    gpu.sum_seen(&mut *gpu.new_scratch(1), state, batch, key, &mut leaf, &mut there);
    processor.sum_seen(&mut *processor.new_scratch(1), state, batch, key, &mut leaf, &mut here);
    for ((what, got), (_, wanted)) in there.0.iter().zip(&here.0) {
        let differ = (0..got.len()).filter(|i| got[*i] != wanted[*i]).count();
        assert!(differ == 0, "{what}: {differ} of {} numbers differ", got.len());
    }
    panic!("the leaf differs, and no op does: a graph replays something else");
}

/// Steps with the state on the GPU against steps on the processor: weights, moments, average and report.
fn check_held(kind: &ModelKind, data: &DataShape, optimizer: &Optimizer) {
    const SAMPLES: usize = 4;
    let (gpu, processor) = (on_gpu(kind, data, SAMPLES), on_processor(kind, data, SAMPLES));
    let (mut there, mut here) = (gpu.new_scratch(1), processor.new_scratch(1));
    let (layout, of_optimizer, decay) = (gpu.layout(), moments_of(optimizer), 0.9);
    let mut wanted = processor.init(1);
    let mut moments = vec![vec![0.0; layout.param_floats()]; of_optimizer];
    moments.push(wanted[..layout.param_floats()].to_vec());
    let (mut state, mut kept) = (wanted.clone(), moments.clone());
    let (mut leaf, mut reduced) = (vec![0.0; layout.reduced_floats()], vec![0.0; layout.reduced_floats()]);
    for step in 0..5 {
        let batch = batch(data, step, SAMPLES);
        let key = LeafKey { seed: 3, step, scale: 0.25, label_smoothing: 0.0 };
        // Between two steps lies what moves nothing, as a validation does.
        let version = 2 * step;
        gpu.hold(&mut *there, Some(version));
        let tail = gpu.sum(&mut *there, &state, &batch, key, &mut leaf);
        assert_eq!(tail, processor.sum(&mut *here, &wanted, &batch, key, &mut reduced), "step {step}");
        // One step whose gradient is not finite moves nothing.
        let clip_norm = Some(0.5);
        if step == 2 {
            (leaf[1], reduced[1]) = (f32::INFINITY, f32::INFINITY);
        }
        let (lr, correction) = (0.1 / (step + 1) as f64, 1.25);
        let held = Held {
            from: version,
            to: version + 1,
            optimizer,
            ema: Some(decay),
            reduced: &leaf,
            state: &state,
            moments: &kept,
            step,
            lr,
            correction,
            clip_norm,
        };
        let report = gpu.advance(&mut *there, held).expect("a GPU holds its state");
        gpu.carry(&mut *there, version + 1, version + 2);
        let (reduced, state_here) = (&mut reduced[..], &mut wanted[..]);
        let (own, average) = moments.split_at_mut(of_optimizer);
        let update = Update { layout, reduced, state: state_here, moments: own, step, lr, correction, clip_norm };
        let found = processor.update(&mut *here, optimizer, update);
        if found.not_finite.is_none() {
            processor.follow(&mut *here, decay, &wanted[..average[0].len()], &mut average[0]);
        }
        assert_eq!(report.not_finite, found.not_finite, "step {step}");
        assert!(report.grad_norm.to_bits() == found.grad_norm.to_bits() || found.not_finite.is_some());
        // The host is told now and then; in between its vectors are old ones, which nobody looks at.
        if step % 2 == 1 {
            gpu.read_back(&mut *there, &mut state, &mut kept);
            let bits = |all: &[f32]| all.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert!(bits(&state) == bits(&wanted), "the weights of step {step}");
            let all = kept.iter().zip(&moments);
            all.for_each(|(kept, wanted)| assert!(bits(kept) == bits(wanted), "the moments of step {step}"));
        }
    }
}

#[test]
fn a_state_that_stays_on_the_gpu_moves_as_the_processors() {
    let (beta1, beta2, eps, weight_decay) = (0.9, 0.99, 1e-8, 0.1);
    let kind = ModelKind::Mlp { hidden: vec![33, 17], activation: Activation::Gelu };
    check_held(&kind, &IMAGE, &Optimizer::AdamW { beta1, beta2, eps, weight_decay });
    check_held(&kind, &IMAGE, &Optimizer::Sgd { momentum: 0.9, nesterov: true, weight_decay });
    let kind = ModelKind::Cnn { image: [2, 9, 9], channels: vec![5], kernel: 3, hidden: 0, batch_norm: true };
    check_held(&kind, &IMAGE, &Optimizer::Adam { beta1, beta2, eps, weight_decay });
}

const IMAGE: DataShape = DataShape::Features { features: 2 * 9 * 9, classes: 5 };
const TEXT: DataShape = DataShape::Tokens { vocab: 37, context: 21 };

#[test]
fn an_mlp_has_the_processors_bits() {
    for activation in [Activation::Relu, Activation::Gelu] {
        check(&ModelKind::Mlp { hidden: vec![33, 17], activation }, &IMAGE);
    }
}

#[test]
fn a_cnn_has_the_processors_bits() {
    for batch_norm in [true, false] {
        let kind = ModelKind::Cnn { image: [2, 9, 9], channels: vec![5, 6], kernel: 3, hidden: 11, batch_norm };
        check(&kind, &IMAGE);
    }
}

#[test]
fn a_resnet_has_the_processors_bits() {
    let kind = |stem| ModelKind::Resnet18 { image: [1, 8, 8], stem, width: 4, zero_init_residual: false };
    check(&kind(Stem::Small), &DataShape::Features { features: 64, classes: 5 });
}

#[test]
fn a_decoder_has_the_processors_bits() {
    for (norm, positions) in [(Norm::Layer, Positions::Learned), (Norm::Rms, Positions::Rotary)] {
        let kind = ModelKind::Gpt { layers: 2, width: 24, heads: 3, context: 21, dropout: 0.1, norm, positions };
        check(&kind, &TEXT);
    }
}

#[test]
fn a_state_that_is_held_is_copied_once_and_another_one_again() {
    let kind = ModelKind::Mlp { hidden: vec![7], activation: Activation::Relu };
    let (gpu, data) = (on_gpu(&kind, &IMAGE, 2), &IMAGE);
    let (mut scratch, batch) = (gpu.new_scratch(1), batch(data, 1, 2));
    let key = LeafKey { seed: 3, step: 1, scale: 0.25, label_smoothing: 0.0 };
    let mut loss = |version: Option<u64>, state: u64| {
        let mut leaf = vec![0.0; gpu.layout().reduced_floats()];
        gpu.hold(&mut *scratch, version);
        gpu.sum(&mut *scratch, &gpu.init(state), &batch, key, &mut leaf).loss
    };
    let (one, two) = (loss(None, 1), loss(None, 2));
    assert_ne!(one, two);
    assert_eq!([loss(Some(7), 1), loss(Some(7), 2)], [one, one], "what is held is not looked at again");
    assert_eq!([loss(Some(8), 2), loss(Some(8), 1)], [two, two]);
    assert_eq!([loss(None, 1), loss(None, 2), loss(Some(8), 1)], [one, two, one], "nothing is held in between");
}
