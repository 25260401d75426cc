//! Sizes that a model may have: those that a job file may ask for. A description that asks for more is a mistake or an
//! attack, and is refused before anything of that size is made.

use crate::description::Shape;
use elastic_spec::job::ModelKind;
use std::ops::RangeInclusive;

/// Numbers of a sample, classes, tokens.
const WIDTH_MAX: u64 = 1 << 24;
/// Widths of layers, tokens of a context.
const LAYER_MAX: u64 = 1 << 16;
const LAYERS_MAX: u64 = 512;
const HEADS_MAX: u64 = 512;
const KERNEL_MAX: u64 = 15;
/// Sides and channels of images.
const SIDE_MAX: u64 = 4096;
/// Hidden layers of an mlp, blocks of a cnn.
const LIST_MAX: u64 = 64;

/// What is too small or too large, in words.
pub fn check(model: &ModelKind, data: Shape) -> Result<(), String> {
    match data {
        Shape::Features { features, classes } => {
            within("data.features", features as u64, 1..=WIDTH_MAX)?;
            within("data.classes", classes as u64, 1..=WIDTH_MAX)?;
        }
        Shape::Tokens { vocab, context } => {
            within("data.vocab", vocab as u64, 1..=WIDTH_MAX)?;
            within("data.context", context as u64, 1..=LAYER_MAX)?;
        }
    }
    match model {
        ModelKind::Mlp { hidden, .. } => {
            within("the number of model.hidden", hidden.len() as u64, 0..=LIST_MAX)?;
            all_within("model.hidden", hidden, 1..=LAYER_MAX)
        }
        ModelKind::Cnn { image, channels, kernel, hidden, .. } => {
            within_image(image)?;
            within("the number of model.channels", channels.len() as u64, 1..=LIST_MAX)?;
            all_within("model.channels", channels, 1..=SIDE_MAX)?;
            within("model.kernel", u64::from(*kernel), 1..=KERNEL_MAX)?;
            within("model.hidden", u64::from(*hidden), 0..=LAYER_MAX)
        }
        ModelKind::Resnet18 { image, width, .. } => {
            within_image(image)?;
            within("model.width", u64::from(*width), 1..=SIDE_MAX)
        }
        ModelKind::Gpt { layers, heads, width, context, .. } => {
            within("model.layers", u64::from(*layers), 1..=LAYERS_MAX)?;
            within("model.heads", u64::from(*heads), 1..=HEADS_MAX)?;
            within("model.width", u64::from(*width), 1..=LAYER_MAX)?;
            within("model.context", u64::from(*context), 1..=LAYER_MAX)
        }
        ModelKind::Own { .. } | ModelKind::Command(_) => Ok(()),
    }
}

fn within_image(image: &[u32; 3]) -> Result<(), String> {
    all_within("model.image", image, 1..=SIDE_MAX)?;
    within("the numbers of model.image", image.iter().map(|side| u64::from(*side)).product(), 1..=WIDTH_MAX)
}

fn all_within(name: &str, numbers: &[u32], range: RangeInclusive<u64>) -> Result<(), String> {
    numbers.iter().try_for_each(|number| within(name, u64::from(*number), range.clone()))
}

fn within(name: &str, number: u64, range: RangeInclusive<u64>) -> Result<(), String> {
    match range.contains(&number) {
        true => Ok(()),
        false => Err(format!("{name} is {number}, and this program takes {} to {}", range.start(), range.end())),
    }
}
