//! A look at each op of a step: it changes no bit, and finds where a number that is not finite began.

use elastic_models::build;
use elastic_spec::batch::{Batch, DataShape};
use elastic_spec::job::{Activation, ModelKind, Norm, Positions, Stem};
use elastic_tensor::exec::{At, Phase, Watch};
use elastic_tensor::{LeafKey, Network};

const KEY: LeafKey = LeafKey { seed: 1, step: 2, scale: 0.125, label_smoothing: 0.0 };

/// Each op with its place and whether all that it wrote is finite.
#[derive(Default)]
struct Seen(Vec<(&'static str, String, Phase, bool)>);

impl Watch for Seen {
    fn after(&mut self, at: At<'_>, written: &mut dyn Iterator<Item = &[f32]>) {
        assert_eq!(at.index, self.0.len(), "one after the other");
        let finite = written.flatten().all(|x| x.is_finite());
        self.0.push((at.step.op.name(), at.step.path.clone(), at.phase, finite));
    }
}

fn networks() -> Vec<(Box<dyn Network>, Batch)> {
    let image = DataShape::Features { features: 64, classes: 10 };
    let tokens = DataShape::Tokens { vocab: 11, context: 8 };
    let kinds = [
        (ModelKind::Mlp { hidden: vec![12], activation: Activation::Relu }, &image),
        (ModelKind::Cnn { image: [1, 8, 8], channels: vec![4, 6], kernel: 3, hidden: 5, batch_norm: true }, &image),
        (ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Full, width: 2, zero_init_residual: false }, &image),
        (
            ModelKind::Gpt {
                layers: 2,
                heads: 2,
                width: 8,
                context: 8,
                dropout: 0.1,
                norm: Norm::Layer,
                positions: Positions::Learned,
            },
            &tokens,
        ),
    ];
    let batch = |data: &DataShape| match data {
        DataShape::Features { .. } => Batch {
            features: (0..8 * 64).map(|i| (i % 13) as f32 * 0.1).collect(),
            targets: (0..8).collect(),
            slots: (0..8).collect(),
            ..Batch::default()
        },
        DataShape::Tokens { .. } => Batch {
            tokens: (0..64).map(|i| i % 11).collect(),
            targets: (0..64).map(|i| (i * 3) % 11).collect(),
            slots: (0..8).collect(),
            ..Batch::default()
        },
    };
    kinds.into_iter().map(|(kind, data)| (build(&kind, data, 4).unwrap(), batch(data))).collect()
}

#[test]
fn a_look_changes_no_bit_and_a_step_of_finite_numbers_shows_no_other() {
    for (network, batch) in networks() {
        let state = network.init(3);
        let mut scratch = network.new_scratch(2);
        let mut out = [(); 2].map(|()| vec![f32::NAN; network.layout().reduced_floats()]);
        let mut seen = Seen::default();
        let tail = network.sum(&mut *scratch, &state, &batch, KEY, &mut out[0]);
        let other = network.sum_seen(&mut *scratch, &state, &batch, KEY, &mut out[1], &mut seen);
        assert_eq!(other, Some(tail));
        let [plain, looked] = out.map(|out| out.into_iter().map(f32::to_bits).collect::<Vec<_>>());
        assert!(plain == looked, "a look changes bits");
        let not = seen.0.iter().find(|(.., finite)| !finite);
        assert!(not.is_none(), "{not:?}");
        let backward = seen.0.iter().position(|(.., phase, _)| *phase == Phase::Backward).expect("a backward pass");
        assert!(seen.0[..backward].iter().any(|(op, ..)| *op == "cross entropy"), "the loss is of the forward pass");
        assert!(seen.0[..backward].iter().all(|(op, ..)| !op.contains("gradient")), "{:?}", &seen.0[..backward]);
    }
}

#[test]
fn the_first_op_whose_result_is_not_finite_is_the_one_that_reads_the_bad_weight() {
    let (network, batch) = networks().pop().expect("the gpt");
    let mut state = network.init(3);
    let bad = network.layout().params.iter().find(|p| p.name == "h.1.mlp.c_fc.weight").expect("a weight").clone();
    state[bad.offset + 3] = f32::INFINITY;
    let (mut out, mut seen) = (vec![0.0; network.layout().reduced_floats()], Seen::default());
    network.sum_seen(&mut *network.new_scratch(1), &state, &batch, KEY, &mut out, &mut seen).expect("it has ops");
    let (op, path, phase, _) = seen.0.into_iter().find(|(.., finite)| !finite).expect("it shows");
    assert_eq!((op, phase), ("linear", Phase::Forward));
    assert!(path.contains("h.1.mlp.c_fc"), "{path}");
}
