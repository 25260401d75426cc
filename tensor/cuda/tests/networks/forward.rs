//! The forward pass alone: rows have the processor's bits however many come together, launch by launch and replayed.

use super::{DEVICE, IMAGE, TEXT};
use elastic_cuda::gpu::OnGpu;
use elastic_spec::batch::DataShape;
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Positions, Stem};
use elastic_tensor::backend::Backend;
use elastic_tensor::philox::{Stream, unit};
use elastic_tensor::{Forward, Rows, compile_forward};
use std::sync::Arc;

fn numbers(seed: u64, count: usize) -> impl Iterator<Item = u32> {
    let stream = Stream::new(seed, "rows");
    (0..count).map(move |i| stream.words([i as u32, 0, 0, 0])[0])
}

fn scores(
    network: &dyn Forward,
    scratch: &mut dyn std::any::Any,
    data: &DataShape,
    seed: u64,
    rows: usize,
) -> Vec<u32> {
    let mut out = vec![f32::NAN; rows * network.scores_len()];
    let len = rows * network.input_len();
    match *data {
        DataShape::Features { .. } => {
            let features: Vec<f32> = numbers(seed, len).map(|word| unit(word) * 2.0 - 1.0).collect();
            network.scores(scratch, Rows::Features(&features), &mut out);
        }
        DataShape::Tokens { vocab, .. } => {
            let tokens: Vec<i32> = numbers(seed, len).map(|word| (word as usize % vocab) as i32).collect();
            network.scores(scratch, Rows::Tokens(&tokens), &mut out);
        }
    }
    out.into_iter().map(f32::to_bits).collect()
}

fn check(kind: &ModelKind, data: &DataShape) {
    let backend = OnGpu(Arc::clone(&DEVICE.gpu));
    let gpu = elastic_models::build_by(kind, data, &|module| backend.compile_forward(Dtype::F32, module, data));
    let gpu = gpu.expect("every op has its kernel");
    let processor = elastic_models::build_by(kind, data, &|module| compile_forward(Dtype::F32, module, data));
    let processor = processor.expect("the shapes fit");
    assert_eq!(gpu.layout(), processor.layout());
    let state = |seed| Arc::new(numbers(seed, gpu.layout().floats()).map(|word| unit(word) - 0.5).collect::<Vec<_>>());
    // Two that share a state, and one with another: whoever comes later changes nothing for the others.
    let (first, other) = (state(1), state(2));
    let mut there: Vec<_> =
        [&first, &first, &other, &first].map(|state| gpu.new_scratch(state, 1).expect("room for a model")).into();
    let mut here: Vec<_> =
        [&first, &first, &other, &first].map(|state| processor.new_scratch(state, 1).expect("memory")).into();
    // 5 rows are 4 and 1; the third time a graph is replayed.
    for (seed, rows) in [(5, 1), (6, 5), (7, 1), (8, 2), (9, 1), (10, 5)] {
        for (who, (there, here)) in there.iter_mut().zip(&mut here).enumerate() {
            let got = scores(&*gpu, &mut **there, data, seed, rows);
            let wanted = scores(&*processor, &mut **here, data, seed, rows);
            assert!(got == wanted, "{kind:?}: {rows} rows, scratch {who}");
        }
    }
}

#[test]
fn rows_that_are_asked_have_the_processors_bits() {
    check(&ModelKind::Mlp { hidden: vec![33, 17], activation: Activation::Gelu }, &IMAGE);
    let (image, channels) = ([2, 9, 9], vec![5, 6]);
    check(&ModelKind::Cnn { image, channels, kernel: 3, hidden: 11, batch_norm: true }, &IMAGE);
    let resnet = ModelKind::Resnet18 { image: [1, 8, 8], stem: Stem::Small, width: 4, zero_init_residual: false };
    check(&resnet, &DataShape::Features { features: 64, classes: 5 });
    for (norm, positions) in [(Norm::Layer, Positions::Learned), (Norm::Rms, Positions::Rotary)] {
        check(&ModelKind::Gpt { layers: 2, width: 24, heads: 3, context: 21, dropout: 0.1, norm, positions }, &TEXT);
    }
}
