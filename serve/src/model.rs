//! What the server knows of a model: what it takes, what it gives, and how its numbers are computed.
//!
//! The bundle's side of it is in [`crate::bundled`]. Everything behind the logits (probabilities, class, label) is made
//! here, once for all protocols, in [`crate::outputs`].

use crate::tensor::{Datatype, Rows};
use crate::text::Writer;
use elastic_bundle::GeneratorSize;

/// A model that is loaded. Shared by everything that answers with it.
pub trait Model: Send + Sync {
    fn face(&self) -> &Face;

    /// Can it compute with these raw numbers? The error names the first that it cannot.
    fn check(&self, rows: &Rows) -> Result<(), String>;

    /// One more place where its numbers can be computed, on so many threads. Each has memory of its own.
    fn predictor(&self, threads: usize) -> Result<Box<dyn Predict>, String>;

    /// What continues texts with it; None where it has no text.
    fn writer(&self, _: GeneratorSize) -> Result<Option<Writer>, String> {
        Ok(None)
    }
}

/// Computes. A row's bits never depend on the rows beside it.
pub trait Predict: Send {
    /// Of raw rows, checked: the model's transform is done to them here. As many numbers as [`Face::logits_of`] says.
    fn logits(&mut self, rows: &Rows) -> Result<Vec<f32>, String>;
}

/// A model as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Face {
    pub takes: Takes,
    /// Names of the classes; empty where they have none.
    pub labels: Vec<String>,
    /// SHA-256 of what the bundle holds; empty for models that are not bundles.
    pub content: String,
    /// Unix time of the files, in s.
    pub created_s: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Rows of numbers, `input` FP32 `[-1, shape…]`; flat rows are taken too. Gives `classes` logits a row.
    Features { shape: Vec<usize>, classes: usize },
    /// Rows of tokens, `tokens` INT32 `[-1, -1]`, each below `vocab`, at most `context` a row. Gives `vocab` logits
    /// a token.
    Tokens { vocab: usize, context: usize },
}

/// One input or output: -1 is any size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: &'static str,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
}

impl Face {
    pub fn input(&self) -> Port {
        match &self.takes {
            Takes::Features { shape, .. } => Port {
                name: "input",
                datatype: Datatype::Fp32,
                shape: [-1].into_iter().chain(shape.iter().map(|n| *n as i64)).collect(),
            },
            Takes::Tokens { .. } => Port { name: "tokens", datatype: Datatype::Int32, shape: vec![-1, -1] },
        }
    }

    pub fn outputs(&self) -> Vec<Port> {
        let port = |output: Output, datatype, shape: Vec<i64>| Port { name: output.name(), datatype, shape };
        match &self.takes {
            Takes::Features { classes, .. } => {
                let wide = vec![-1, *classes as i64];
                let mut ports = vec![
                    port(Output::Logits, Datatype::Fp32, wide.clone()),
                    port(Output::Probabilities, Datatype::Fp32, wide),
                    port(Output::Class, Datatype::Int64, vec![-1]),
                ];
                if !self.labels.is_empty() {
                    ports.push(port(Output::Label, Datatype::Bytes, vec![-1]));
                }
                ports
            }
            Takes::Tokens { vocab, .. } => vec![port(Output::Logits, Datatype::Fp32, vec![-1, -1, *vocab as i64])],
        }
    }

    /// In the order in which they are given to who names none.
    pub fn kinds(&self) -> &'static [Output] {
        match (&self.takes, self.labels.is_empty()) {
            (Takes::Tokens { .. }, _) => &[Output::Logits],
            (Takes::Features { .. }, true) => &[Output::Logits, Output::Probabilities, Output::Class],
            (Takes::Features { .. }, false) => &[Output::Logits, Output::Probabilities, Output::Class, Output::Label],
        }
    }

    /// How many logits such rows have.
    pub fn logits_of(&self, rows: &Rows) -> usize {
        match &self.takes {
            Takes::Features { classes, .. } => rows.count() * classes,
            Takes::Tokens { vocab, .. } => rows.count() * rows.length() * vocab,
        }
    }

    /// Numbers of one row.
    pub fn width(&self) -> usize {
        match &self.takes {
            Takes::Features { shape, .. } => shape.iter().product(),
            Takes::Tokens { context, .. } => *context,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    Logits,
    Probabilities,
    Class,
    Label,
}

impl Output {
    pub fn name(self) -> &'static str {
        match self {
            Output::Logits => "logits",
            Output::Probabilities => "probabilities",
            Output::Class => "class",
            Output::Label => "label",
        }
    }
}
