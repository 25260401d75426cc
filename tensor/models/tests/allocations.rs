//! A captured step allocates nothing: memory is planned before the first one, and grows no more after it.
//!
//! This file is a program of its own because it counts what the whole process allocates.

use elastic_models::build_in;
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Optimizer, Positions, Stem};
use elastic_tensor::{GroupRates, LeafKey, Update, moments_of};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static CALLS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is the system allocator's; counting changes nothing about it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is handed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        CALLS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is handed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const ADAM_W: Optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

fn models() -> Vec<(&'static str, ModelKind, DataShape)> {
    let image = DataShape::Features { features: 3 * 16 * 16, classes: 10 };
    vec![
        (
            "mlp",
            ModelKind::Mlp { hidden: vec![64, 64], activation: Activation::Relu },
            DataShape::Features { features: 48, classes: 10 },
        ),
        (
            "cnn",
            ModelKind::Cnn { image: [3, 16, 16], channels: vec![8, 16], kernel: 3, hidden: 0, batch_norm: true },
            image.clone(),
        ),
        (
            "resnet18",
            ModelKind::Resnet18 { image: [3, 16, 16], width: 8, stem: Stem::Full, zero_init_residual: false },
            image,
        ),
        (
            "gpt",
            ModelKind::Gpt {
                layers: 2,
                heads: 2,
                width: 32,
                context: 24,
                dropout: 0.1,
                norm: Norm::Layer,
                positions: Positions::Learned,
            },
            DataShape::Tokens { vocab: 50, context: 24 },
        ),
    ]
}

fn batch(data: &DataShape, samples: usize) -> Batch {
    let mut batch = Batch { slots: (0..samples as u64).collect(), ..Batch::default() };
    match *data {
        DataShape::Features { features, classes } => {
            batch.features = (0..samples * features).map(|i| (i * 7 % 13) as f32 * 0.2 - 1.2).collect();
            batch.targets = (0..samples).map(|i| (i % classes) as i32).collect();
        }
        DataShape::Tokens { vocab, context } => {
            batch.tokens = (0..samples * context).map(|i| (i * 7 % vocab) as i32).collect();
            batch.targets = (0..samples * context).map(|i| (i * 5 % vocab) as i32).collect();
        }
    }
    batch
}

/// Allocations of the third and fourth step of four shards, and of an evaluation.
fn allocations(dtype: Dtype, kind: &ModelKind, data: &DataShape, threads: usize) -> usize {
    let mut network = build_in(dtype, kind, data, 4).expect("the model fits its data");
    // Groups have rates of their own: every other tensor is in one.
    for info in network.layout_mut().params.iter_mut().step_by(2) {
        info.group = GroupRates { lr_scale: 0.5, weight_decay: Some(0.2) };
    }
    let layout = network.layout();
    let mut scratch = network.new_scratch(threads);
    let (mut state, mut reduced) = (network.init(1), vec![0.0; layout.reduced_floats()]);
    let mut moments = vec![vec![0.0; layout.param_floats()]; moments_of(&ADAM_W)];
    let batch = batch(data, 16);
    assert!(network.shards_max() >= 4);
    let mut before = 0;
    for step in 0..4 {
        if step == 2 {
            before = CALLS.load(Ordering::SeqCst);
        }
        let key = LeafKey { seed: 1, step, scale: 0.01, label_smoothing: 0.1 };
        network.sum(&mut *scratch, &state, &batch, key, &mut reduced);
        let (reduced, state, moments) = (&mut reduced[..], &mut state[..], &mut moments[..]);
        let update = Update { layout, reduced, state, moments, step, lr: 1e-3, correction: 1.0, clip_norm: Some(1.0) };
        network.update(&mut *scratch, &ADAM_W, update);
    }
    CALLS.load(Ordering::SeqCst) - before
}

#[test]
fn a_captured_step_allocates_nothing() {
    for (name, kind, data) in models() {
        for (dtype, threads) in [Dtype::F32, Dtype::Bf16].into_iter().flat_map(|dtype| [1, 2, 3].map(|n| (dtype, n))) {
            assert_eq!(allocations(dtype, &kind, &data, threads), 0, "{name} in {dtype:?} on {threads} threads");
        }
    }
}
