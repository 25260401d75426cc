//! Models with weights that are made up.

use elastic_bundle::{Description, Model, Shape, Tensor};
use elastic_models::build_forward;
use elastic_spec::job::{Activation, Dtype, ModelKind};
use elastic_transform::Transform;

pub fn features(kind: ModelKind, dtype: Dtype, features: usize) -> Model {
    let labels = (0..10).map(|class| class.to_string()).collect();
    model(kind, dtype, Shape::Features { features, classes: 10 }, Transform::Scale { scale: 0.0625 }, labels)
}

pub fn tokens(kind: ModelKind, dtype: Dtype, context: usize) -> Model {
    model(kind, dtype, Shape::Tokens { vocab: 256, context }, Transform::Bytes, Vec::new())
}

fn model(kind: ModelKind, dtype: Dtype, data: Shape, transform: Transform, labels: Vec<String>) -> Model {
    let network = build_forward(dtype, &kind, &data.into()).unwrap();
    let layout = network.layout();
    let mut weights = Vec::new();
    for (at, info) in layout.params.iter().chain(&layout.buffers).enumerate() {
        let value = |i: usize| ((i * 2_654_435_761 + at * 97) % 1000) as f32 / 2000.0 - 0.2;
        let floats: Vec<f32> = (0..info.len)
            .map(|i| if info.name.ends_with("running_var") { value(i).abs() + 0.5 } else { value(i) })
            .collect();
        weights.push(Tensor::of_floats(&info.name, &info.shape, &floats));
    }
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    let description = Description { name: "test".into(), model: kind, dtype, data, transform, labels };
    Model { description, weights, tokenizer: None }
}

pub fn mlp() -> Model {
    features(ModelKind::Mlp { hidden: vec![33, 17], activation: Activation::Gelu }, Dtype::F32, 64)
}
