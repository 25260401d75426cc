//! Small models of every kind, with weights of a seed.

use elastic_bundle::{Description, Model, Shape, Tensor};
use elastic_models::build_forward;
use elastic_spec::job::{Activation, Dtype, ModelKind, Norm, Positions, Stem};
use elastic_transform::Transform;

/// Numbers below 1 and not below -1, of a seed.
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn below(&mut self, bound: usize) -> usize {
        ((self.next() + 1.0) / 2.0 * bound as f32) as usize % bound
    }
}

pub fn model(name: &str, kind: ModelKind, dtype: Dtype, data: Shape, transform: Transform) -> Model {
    let labels = match data {
        Shape::Features { classes, .. } => (0..classes).map(|class| format!("class {class}")).collect(),
        Shape::Tokens { .. } => Vec::new(),
    };
    let description = Description { name: name.into(), model: kind, dtype, data, transform, labels };
    let network = build_forward(dtype, &description.model, &data.into()).unwrap();
    let mut draw = Draw(7);
    let layout = network.layout();
    let mut weights = Vec::new();
    for info in layout.params.iter().chain(&layout.buffers) {
        let rows = info.shape.first().copied().unwrap_or(1);
        // The spread keeps the size of what goes through a matrix.
        let spread = (3.0 / (info.len / rows) as f32).sqrt();
        let floats: Vec<f32> = (0..info.len)
            .map(|_| match info.name.rsplit('.').next() {
                Some("one") => 1.0,
                Some("running_var") => 1.0 + draw.next() / 2.0,
                Some("weight") if info.shape.len() == 1 => 1.0 + draw.next() / 2.0,
                Some("weight") => draw.next() * spread,
                _ => draw.next() / 4.0,
            })
            .collect();
        weights.push(Tensor::of_floats(&info.name, &info.shape, &floats));
    }
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    Model { description, weights, tokenizer: None }
}

fn features(name: &str, kind: ModelKind, dtype: Dtype, features: usize, scale: f32) -> Model {
    model(name, kind, dtype, Shape::Features { features, classes: 10 }, Transform::Scale { scale })
}

pub const CONTEXT: usize = 12;

pub fn gpt(name: &str, norm: Norm, positions: Positions, dtype: Dtype) -> Model {
    let context = CONTEXT as u32;
    let kind = ModelKind::Gpt { layers: 2, heads: 3, width: 24, context, dropout: 0.1, norm, positions };
    model(name, kind, dtype, Shape::Tokens { vocab: 256, context: CONTEXT }, Transform::Bytes)
}

/// Those that transformers has a class for.
pub fn decoders() -> Vec<Model> {
    vec![
        gpt("gpt", Norm::Layer, Positions::Learned, Dtype::F32),
        gpt("gpt-rotary", Norm::Layer, Positions::Rotary, Dtype::F32),
        gpt("gpt-rms-rotary", Norm::Rms, Positions::Rotary, Dtype::F32),
        gpt("gpt-bf16", Norm::Layer, Positions::Learned, Dtype::Bf16),
    ]
}

pub fn all() -> Vec<Model> {
    let mlp = |hidden: &[u32], activation| ModelKind::Mlp { hidden: hidden.to_vec(), activation };
    let cnn = |image: [u32; 3], kernel, hidden, batch_norm| ModelKind::Cnn {
        image,
        channels: vec![4, 6, 8],
        kernel,
        hidden,
        batch_norm,
    };
    let resnet18 = |image, stem| ModelKind::Resnet18 { image, stem, width: 4, zero_init_residual: false };
    let f32 = Dtype::F32;
    let mut models = vec![
        features("mlp-relu", mlp(&[33, 17], Activation::Relu), f32, 64, 0.0625),
        features("mlp-gelu", mlp(&[32, 16], Activation::Gelu), f32, 64, 0.0625),
        features("mlp-linear", mlp(&[], Activation::Relu), f32, 5, 1.0),
        features("cnn", cnn([1, 8, 8], 3, 0, false), f32, 64, 0.0625),
        features("cnn-norm-hidden", cnn([3, 7, 6], 5, 16, true), f32, 126, 1.0),
        features("cnn-bf16", cnn([1, 8, 8], 3, 16, true), Dtype::Bf16, 64, 0.0625),
        features("resnet18-small", resnet18([1, 9, 9], Stem::Small), f32, 81, 0.0625),
        features("resnet18-full", resnet18([3, 33, 33], Stem::Full), f32, 3267, 1.0),
        gpt("gpt-rms", Norm::Rms, Positions::Learned, f32),
    ];
    models.extend(decoders());
    models
}

/// A decoder whose tokens are those of a tokenizer, which is still to be given.
pub fn of_tokenizer(name: &str, vocab: usize) -> Model {
    let kind = gpt(name, Norm::Layer, Positions::Learned, Dtype::F32).description.model;
    model(name, kind, Dtype::F32, Shape::Tokens { vocab, context: CONTEXT }, Transform::Tokenizer)
}
