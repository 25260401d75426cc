//! Bundles for tests, written as the product writes them: weights from a formula, so that every version differs.

use elastic_bundle::{Description, Model, Predictor, Provenance, Rows, Shape, Tensor, write};
use elastic_models::build_forward;
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Positions};
use elastic_transform::Transform;
use std::path::Path;

pub const FEATURES: usize = 64;
pub const CLASSES: usize = 10;
pub const CONTEXT: usize = 12;

pub fn mlp(seed: usize) -> Model {
    let kind = ModelKind::Mlp { hidden: vec![33, 17], activation: Activation::Gelu };
    let labels = (0..CLASSES).map(|class| format!("digit {class}")).collect();
    let shape = Shape::Features { features: FEATURES, classes: CLASSES };
    model("digits", kind, shape, Transform::Scale { scale: 0.0625 }, labels, seed)
}

pub fn cnn(seed: usize) -> Model {
    let kind = ModelKind::Cnn { image: [1, 8, 8], channels: vec![4, 8], kernel: 3, hidden: 16, batch_norm: true };
    let labels = (0..CLASSES).map(|class| class.to_string()).collect();
    let shape = Shape::Features { features: FEATURES, classes: CLASSES };
    model("images", kind, shape, Transform::Scale { scale: 0.0625 }, labels, seed)
}

pub fn gpt(seed: usize) -> Model {
    writer(CONTEXT, seed)
}

/// Reads and says bytes.
pub fn writer(context: usize, seed: usize) -> Model {
    let (norm, positions) = (Norm::Layer, Positions::Learned);
    let kind =
        ModelKind::Gpt { layers: 2, heads: 2, width: 32, context: context as u32, dropout: 0.0, norm, positions };
    model("text", kind, Shape::Tokens { vocab: 256, context }, Transform::Bytes, Vec::new(), seed)
}

fn model(name: &str, kind: ModelKind, data: Shape, transform: Transform, labels: Vec<String>, seed: usize) -> Model {
    let network = build_forward(Dtype::F32, &kind, &data.into()).unwrap();
    let layout = network.layout();
    let mut weights = Vec::new();
    for (at, info) in layout.params.iter().chain(&layout.buffers).enumerate() {
        let value = |i: usize| ((i * 2_654_435_761 + (at + seed) * 97) % 1000) as f32 / 2000.0 - 0.2;
        let positive = info.name.ends_with("running_var");
        let floats: Vec<f32> = (0..info.len).map(|i| if positive { value(i).abs() + 0.5 } else { value(i) }).collect();
        weights.push(Tensor::of_floats(&info.name, &info.shape, &floats));
    }
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    let description = Description { name: name.into(), model: kind, dtype: Dtype::F32, data, transform, labels };
    Model { description, weights, tokenizer: None }
}

pub fn put(dir: &Path, model: &Model) {
    write(dir, model, &Provenance::default()).expect("a bundle is written");
}

/// Rows of numbers as a data file has them.
pub fn rows(count: usize, seed: usize) -> Vec<Vec<f32>> {
    let number = |row: usize, i: usize| (((row + seed) * 31 + i * 7) % 17) as f32;
    (0..count).map(|row| (0..FEATURES).map(|i| number(row, i)).collect()).collect()
}

/// What the bundle's own predictor answers.
pub fn expected(model: &Model, rows: &[Vec<f32>]) -> Vec<f32> {
    let mut predictor = Predictor::new(model, 1).unwrap();
    let mut out = vec![0.0; rows.len() * CLASSES];
    predictor.logits(Rows::Features(&rows.concat()), &mut out);
    out
}
