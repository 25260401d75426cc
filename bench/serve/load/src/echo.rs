//! A model that answers with its input: one linear layer whose weights are the identity. Products with 0 and 1 and sums
//! with 0 are exact, so it is an echo through everything that a real bundle goes through.

use anyhow::{Context, Result, anyhow};
use elastic_bundle::{Description, Model, Provenance, Shape, Tensor};
use elastic_models::build_forward;
use elastic_spec::job::{Activation, Dtype, ModelKind};
use elastic_transform::Transform;
use std::path::Path;

pub fn write(dir: &Path, width: usize) -> Result<()> {
    let kind = ModelKind::Mlp { hidden: Vec::new(), activation: Activation::Relu };
    let data = Shape::Features { features: width, classes: width };
    let network = build_forward(Dtype::F32, &kind, &data.into()).map_err(|why| anyhow!("{why}"))?;
    let one = |info_len: usize, at: usize| f32::from(u8::from(info_len > width && at.is_multiple_of(width + 1)));
    let tensor = |name: &str, shape: &[usize], len: usize| {
        let floats: Vec<f32> = (0..len).map(|at| one(len, at)).collect();
        Tensor::of_floats(name, shape, &floats)
    };
    let mut weights: Vec<Tensor> =
        network.layout().params.iter().map(|info| tensor(&info.name, &info.shape, info.len)).collect();
    weights.sort_by(|a, b| a.name.cmp(&b.name));
    let transform = Transform::Scale { scale: 1.0 };
    let labels = (0..width).map(|at| at.to_string()).collect();
    let description = Description { name: "echo".into(), model: kind, dtype: Dtype::F32, data, transform, labels };
    let model = Model { description, weights, tokenizer: None };
    elastic_bundle::write(dir, &model, &Provenance::default()).map(drop).context("write the bundle")
}
