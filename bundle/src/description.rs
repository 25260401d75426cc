//! `model.json`: what the network is, what it reads, and what its answers mean.

use crate::sizes;
use elastic_spec::batch::DataShape;
use elastic_spec::job::{Dtype, ModelKind};
use elastic_transform::Transform;
use serde::{Deserialize, Serialize};

/// What a bundle says of its model. The same model has the same bytes of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The job's name.
    pub name: String,
    pub model: ModelKind,
    /// What products are computed in.
    #[serde(default)]
    pub dtype: Dtype,
    pub data: Shape,
    pub transform: Transform,
    /// Names of the classes, by number; empty for tokens.
    #[serde(default)]
    pub labels: Vec<String>,
}

/// [`DataShape`], as a file says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Shape {
    Features { features: usize, classes: usize },
    Tokens { vocab: usize, context: usize },
}

impl From<&DataShape> for Shape {
    fn from(shape: &DataShape) -> Shape {
        match *shape {
            DataShape::Features { features, classes } => Shape::Features { features, classes },
            DataShape::Tokens { vocab, context } => Shape::Tokens { vocab, context },
        }
    }
}

impl From<Shape> for DataShape {
    fn from(shape: Shape) -> DataShape {
        match shape {
            Shape::Features { features, classes } => DataShape::Features { features, classes },
            Shape::Tokens { vocab, context } => DataShape::Tokens { vocab, context },
        }
    }
}

/// Why a description cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadDescription {
    #[error("model.json: {0}")]
    Json(String),
    #[error("model.json: {0}")]
    Size(String),
    #[error("model.json: there are {labels} labels for {classes} classes")]
    Labels { labels: usize, classes: usize },
    #[error("model.json: a transform of {transform} does not make {data}")]
    Transform { transform: &'static str, data: &'static str },
    #[error(
        "model.json: a model of kind \"own\" is a program; its weights can be exported as safetensors or npz, but not be served"
    )]
    Own,
}

impl Description {
    /// Pretty JSON with a line end: the same bytes for the same description.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).expect("a description has only plain values");
        text.push('\n');
        text.into_bytes()
    }

    pub fn parse(json: &[u8]) -> Result<Description, BadDescription> {
        let description: Description =
            serde_json::from_slice(json).map_err(|error| BadDescription::Json(error.to_string()))?;
        description.check()?;
        Ok(description)
    }

    pub fn check(&self) -> Result<(), BadDescription> {
        if matches!(self.model, ModelKind::Own { .. } | ModelKind::Command(_)) {
            return Err(BadDescription::Own);
        }
        sizes::check(&self.model, self.data).map_err(BadDescription::Size)?;
        let transform = match self.transform {
            Transform::Scale { .. } => "scale",
            Transform::Bytes => "bytes",
            Transform::Tokenizer => "tokenizer",
        };
        match self.data {
            Shape::Features { classes, .. } => {
                if self.labels.len() != classes {
                    return Err(BadDescription::Labels { labels: self.labels.len(), classes });
                }
                match self.transform {
                    Transform::Scale { scale } if scale.is_finite() => Ok(()),
                    _ => Err(BadDescription::Transform { transform, data: "features" }),
                }
            }
            Shape::Tokens { vocab, .. } => {
                if !self.labels.is_empty() {
                    return Err(BadDescription::Labels { labels: self.labels.len(), classes: 0 });
                }
                match self.transform {
                    Transform::Bytes if vocab != 256 => {
                        Err(BadDescription::Transform { transform, data: "this vocabulary" })
                    }
                    // Tokens made from the seed alone have no text.
                    Transform::Bytes | Transform::Tokenizer | Transform::Scale { .. } => Ok(()),
                }
            }
        }
    }

    /// Sides of a sample, without the axis of samples.
    pub fn sample_shape(&self) -> Vec<usize> {
        match (&self.model, self.data) {
            (ModelKind::Cnn { image, .. } | ModelKind::Resnet18 { image, .. }, _) => image.map(|n| n as usize).to_vec(),
            (_, Shape::Features { features, .. }) => vec![features],
            (_, Shape::Tokens { context, .. }) => vec![context],
        }
    }
}
