//! What a bundle reads and answers, in the words of the open inference protocol (KServe v2).

use crate::description::{Description, Shape};
use serde::Serialize;

/// Element types that a bundle reads or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Datatype {
    Fp32,
    Int32,
    Int64,
    Bytes,
}

impl Datatype {
    pub fn as_str(self) -> &'static str {
        match self {
            Datatype::Fp32 => "FP32",
            Datatype::Int32 => "INT32",
            Datatype::Int64 => "INT64",
            Datatype::Bytes => "BYTES",
        }
    }
}

/// One input or output. -1 in a shape: any length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Port {
    pub name: &'static str,
    pub datatype: Datatype,
    pub shape: Vec<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signature {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// Names of ports.
pub const INPUT: &str = "input";
pub const TOKENS: &str = "tokens";
pub const LOGITS: &str = "logits";
pub const PROBABILITIES: &str = "probabilities";
pub const CLASS: &str = "class";
pub const LABEL: &str = "label";

impl Description {
    /// A model of features reads `input`, raw numbers as they stand in the data's files, and answers `logits`,
    /// `probabilities` (their softmax), `class` (the first of the largest) and its `label`. A model of tokens reads `tokens`
    /// and answers `logits`, of each place the scores of the token behind it.
    pub fn signature(&self) -> Signature {
        let port = |name, datatype, shape: &[i64]| Port { name, datatype, shape: shape.to_vec() };
        match self.data {
            Shape::Features { classes, .. } => {
                let mut input = vec![-1];
                input.extend(self.sample_shape().iter().map(|n| *n as i64));
                let classes = classes as i64;
                Signature {
                    inputs: vec![port(INPUT, Datatype::Fp32, &input)],
                    outputs: vec![
                        port(LOGITS, Datatype::Fp32, &[-1, classes]),
                        port(PROBABILITIES, Datatype::Fp32, &[-1, classes]),
                        port(CLASS, Datatype::Int64, &[-1]),
                        port(LABEL, Datatype::Bytes, &[-1]),
                    ],
                }
            }
            Shape::Tokens { vocab, .. } => Signature {
                inputs: vec![port(TOKENS, Datatype::Int32, &[-1, -1])],
                outputs: vec![port(LOGITS, Datatype::Fp32, &[-1, -1, vocab as i64])],
            },
        }
    }
}
