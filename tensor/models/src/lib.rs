//! The models that a job file can name: mlp, cnn, resnet18 and gpt.
//!
//! Each is a [`Module`](elastic_tensor::nn::Module) like a user's own. Here a job's `ModelKind` meets the
//! shape of its data, and what does not fit is said in the job file's words.

mod cnn;
mod gpt;
mod mlp;
mod resnet;
mod start;

pub use cnn::Cnn;
pub use gpt::Gpt;
pub use mlp::Mlp;
pub use resnet::Resnet18;
pub use start::{Files, start_from};

use elastic_spec::batch::DataShape;
use elastic_spec::job::{Dtype, ModelKind};
use elastic_tensor::nn::Module;
use elastic_tensor::{Decode, Forward, Network, compile_decode, compile_forward, compile_in};

/// Compiles a job's model for shards of `shard_samples`, computed in f32.
pub fn build(kind: &ModelKind, data: &DataShape, shard_samples: usize) -> Result<Box<dyn Network>, String> {
    build_in(Dtype::F32, kind, data, shard_samples)
}

/// The same, with products in `dtype`.
pub fn build_in(
    dtype: Dtype,
    kind: &ModelKind,
    data: &DataShape,
    shard_samples: usize,
) -> Result<Box<dyn Network>, String> {
    build_by(kind, data, &|module| compile_in(dtype, module, data, shard_samples))
}

/// Compiles a job's model to be asked: the forward pass alone, for any number of rows.
pub fn build_forward(dtype: Dtype, kind: &ModelKind, data: &DataShape) -> Result<Box<dyn Forward>, String> {
    build_by(kind, data, &|module| compile_forward(dtype, module, data))
}

/// Compiles a job's model to continue sequences; only one that reads tokens has any.
pub fn build_decode(dtype: Dtype, kind: &ModelKind, data: &DataShape) -> Result<Box<dyn Decode>, String> {
    build_by(kind, data, &|module| compile_decode(dtype, module, data))
}

/// What makes something of a module: a network, most often.
pub type Compile<'a, T = Box<dyn Network>> = dyn Fn(&dyn Module) -> Result<T, String> + 'a;

/// The same, compiled by the caller.
pub fn build_by<T>(kind: &ModelKind, data: &DataShape, compile: &Compile<'_, T>) -> Result<T, String> {
    match kind {
        ModelKind::Mlp { hidden, activation } => {
            features_of("mlp", data)?;
            let hidden = hidden.iter().map(|w| *w as usize).collect();
            compile(&Mlp { hidden, activation: *activation })
        }
        ModelKind::Cnn { image, channels, kernel, hidden, batch_norm } => {
            let image = image_of("cnn", image, data)?;
            if kernel % 2 == 0 {
                return Err(format!("model.kernel is {kernel}, but same padding needs an odd one"));
            }
            let channels = channels.iter().map(|c| *c as usize).collect();
            let (kernel, hidden) = (*kernel as usize, *hidden as usize);
            compile(&Cnn { image, channels, kernel, hidden, batch_norm: *batch_norm })
        }
        ModelKind::Resnet18 { image, stem, width, zero_init_residual } => {
            let image = image_of("resnet18", image, data)?;
            if image[1] != image[2] {
                return Err(format!("model.image is {}×{}, but resnet18 pools over a square", image[1], image[2]));
            }
            let model =
                Resnet18 { image, stem: *stem, width: *width as usize, zero_init_residual: *zero_init_residual };
            compile(&model)
        }
        ModelKind::Gpt { layers, heads, width, context, dropout, norm, positions } => {
            let DataShape::Tokens { context: window, .. } = data else {
                return Err("gpt reads tokens; choose data.kind text, or synthetic for gpt".into());
            };
            if *context as usize != *window {
                return Err(format!("model.context is {context}, but the data's windows have {window} tokens"));
            }
            if *heads == 0 || width % heads != 0 {
                return Err(format!("model.width {width} does not divide into model.heads {heads}"));
            }
            let (layers, heads, width) = (*layers as usize, *heads as usize, *width as usize);
            let (dropout, norm, positions) = (*dropout, *norm, *positions);
            compile(&Gpt { layers, heads, width, dropout, norm, positions })
        }
        ModelKind::Command(_) => Err("a command has no network".to_string()),
        ModelKind::Own { program, .. } => {
            Err(format!("a model of your own is built by its program {program}, not by this worker"))
        }
    }
}

/// The sides of a sample, if it has as many numbers.
fn image_of(model: &str, image: &[u32; 3], data: &DataShape) -> Result<[usize; 3], String> {
    let features = features_of(model, data)?;
    let [c, h, w] = image.map(|n| n as usize);
    match c * h * w {
        numbers if numbers == features => Ok([c, h, w]),
        numbers => Err(format!("model.image {c}×{h}×{w} is {numbers} numbers, but a sample has {features}")),
    }
}

fn features_of(model: &str, data: &DataShape) -> Result<usize, String> {
    match data {
        DataShape::Features { features, .. } => Ok(*features),
        DataShape::Tokens { .. } => {
            Err(format!("{model} reads features, but the data are tokens; choose model kind gpt"))
        }
    }
}
