//! ONNX: the transform and the network as a graph with its weights.
//!
//! Opset 17, the first with layer norm; the axis of samples has any length, and so has a decoder's axis of tokens, up to its
//! context. Inputs and the output are called as in the bundle's signature. The graph computes in f32, whatever the job did.

mod builder;
mod decoder;
mod images;
mod proto;

pub use builder::swapped;

use anyhow::{Result, bail};
use builder::{Builder, Name};
use bytes::Bytes;
use elastic_bundle::{Description, INPUT, LOGITS, Model, Shape, TOKENS, Tensor};
use elastic_spec::job::{Activation, ModelKind};
use elastic_transform::Transform;
use prost::Message;
use proto::*;

const OPSET: i64 = 17;
const IR_VERSION: i64 = 8;

const MODEL: &str = "model.onnx";
const DATA: &str = "model.onnx.data";

/// Bytes of weights from which on they go into a file beside: a message of protobuf has less than 2 GiB.
const BESIDE_FROM: usize = 1 << 30;
/// Tensors in that file begin at multiples of this, so that it can be mapped.
const PAGE: usize = 4096;

/// The files of a model that was checked.
pub fn files(model: &Model, weights: &[&Tensor]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    files_in(model, weights, BESIDE_FROM)
}

/// The same, with the weights in a file beside from so many bytes on.
pub(crate) fn files_in(model: &Model, weights: &[&Tensor], beside_from: usize) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let description = &model.description;
    let mut builder = Builder::new(weights);
    network(&mut builder, description)?;
    let Builder { nodes, mut tensors, .. } = builder;
    let total: usize = tensors.iter().map(|tensor| tensor.raw_data.as_ref().map_or(0, Bytes::len)).sum();
    let beside = (total >= beside_from).then(|| move_beside(&mut tensors));
    let graph = GraphProto {
        node: nodes,
        name: Some(description.name.clone()),
        initializer: tensors,
        input: vec![input(description)],
        output: vec![output(description)],
    };
    let onnx = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("elastic".into()),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(OPSET) }],
        metadata_props: labels(description).into_iter().collect(),
    };
    let mut files = vec![(MODEL, onnx.encode_to_vec())];
    files.extend(beside.map(|bytes| (DATA, bytes)));
    Ok(files)
}

/// Adds the nodes from the input to the logits.
fn network(b: &mut Builder<'_>, description: &Description) -> Result<()> {
    let features = match description.transform {
        // In bits, as -0 is no 0: what is multiplied by 1 stays as it is.
        Transform::Scale { scale } if scale.to_bits() != 1f32.to_bits() => Some(scale),
        Transform::Scale { .. } | Transform::Bytes | Transform::Tokenizer => None,
    };
    let scaled = |b: &mut Builder<'_>| match features {
        None => INPUT.to_string(),
        Some(scale) => {
            let scale = b.floats("scale", &[], &[scale]);
            b.node("Mul", "scaled", &[INPUT, &scale], vec![])
        }
    };
    match &description.model {
        ModelKind::Mlp { hidden, activation } => {
            let x = scaled(b);
            mlp(b, x, hidden.len(), *activation);
        }
        ModelKind::Cnn { image, channels, kernel, hidden, batch_norm } => {
            let x = scaled(b);
            let cnn = images::Cnn {
                sides: [image[1], image[2]],
                blocks: channels.len(),
                kernel: *kernel,
                hidden: *hidden > 0,
                batch_norm: *batch_norm,
            };
            cnn.build(b, x);
        }
        ModelKind::Resnet18 { stem, .. } => {
            let x = scaled(b);
            images::resnet18(b, x, *stem)?;
        }
        ModelKind::Gpt { layers, heads, width, context, norm, positions, .. } => {
            let [layers, heads, width, context] = [layers, heads, width, context].map(|n| *n as usize);
            decoder::Decoder { layers, heads, width, context, norm: *norm, positions: *positions }.build(b);
        }
        ModelKind::Command(_) => bail!("a command has no network"),
        ModelKind::Own { .. } => bail!("a model of kind \"own\" is a program, of which ONNX has no graph"),
    }
    Ok(())
}

fn mlp(b: &mut Builder<'_>, mut x: Name, hidden: usize, activation: Activation) {
    for i in 0..hidden {
        let at = format!("layers.{i}");
        let y = linear(b, &at, &format!("{at}.linear"), &x);
        x = match activation {
            Activation::Relu => b.node("Relu", &format!("{at}.relu"), &[&y], vec![]),
            Activation::Gelu => gelu(b, &at, &y),
        };
    }
    linear(b, &format!("layers.{hidden}"), LOGITS, &x);
}

/// x Wᵀ + b of rows.
fn linear(b: &mut Builder<'_>, at: &str, name: &str, x: &str) -> Name {
    let (weight, bias) = (b.weight(&format!("{at}.weight")), b.weight(&format!("{at}.bias")));
    b.node("Gemm", name, &[x, &weight, &bias], vec![AttributeProto::int("transB", 1)])
}

/// x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))), in the order of operations that runtimes know and fuse.
fn gelu(b: &mut Builder<'_>, at: &str, x: &str) -> Name {
    let three = b.floats("gelu.three", &[], &[3.0]);
    let cubic = b.floats("gelu.cubic", &[], &[0.044_715]);
    let slope = b.floats("gelu.slope", &[], &[0.797_884_6]);
    let one = b.floats("gelu.one", &[], &[1.0]);
    let half = b.floats("gelu.half", &[], &[0.5]);
    let name = |word: &str| format!("{at}.gelu.{word}");
    let cube = b.node("Pow", &name("cube"), &[x, &three], vec![]);
    let cubic = b.node("Mul", &name("cubic"), &[&cube, &cubic], vec![]);
    let sum = b.node("Add", &name("sum"), &[x, &cubic], vec![]);
    let angle = b.node("Mul", &name("angle"), &[&sum, &slope], vec![]);
    let tanh = b.node("Tanh", &name("tanh"), &[&angle], vec![]);
    let share = b.node("Add", &name("share"), &[&tanh, &one], vec![]);
    let halved = b.node("Mul", &name("halved"), &[x, &half], vec![]);
    b.node("Mul", &format!("{at}.gelu"), &[&halved, &share], vec![])
}

/// Moves the bytes of the tensors into one file.
fn move_beside(tensors: &mut [TensorProto]) -> Vec<u8> {
    let mut file = Vec::new();
    for tensor in tensors {
        // Runtimes want to see the short ones, such as shapes, while they read the graph.
        let Some(bytes) = tensor.raw_data.take_if(|bytes| bytes.len() >= PAGE) else { continue };
        file.resize(file.len().next_multiple_of(PAGE), 0);
        let entry = |key: &str, value: String| StringStringEntryProto { key: Some(key.into()), value: Some(value) };
        tensor.external_data = vec![
            entry("location", DATA.into()),
            entry("offset", file.len().to_string()),
            entry("length", bytes.len().to_string()),
        ];
        tensor.data_location = Some(1);
        file.extend_from_slice(&bytes);
    }
    file
}

/// Names of the classes, for whoever reads answers without the bundle.
fn labels(description: &Description) -> Option<StringStringEntryProto> {
    let labels = serde_json::to_string(&description.labels).expect("a list of texts has JSON");
    (!description.labels.is_empty()).then(|| StringStringEntryProto { key: Some("labels".into()), value: Some(labels) })
}

fn input(description: &Description) -> ValueInfoProto {
    match description.data {
        Shape::Features { .. } => {
            let mut axes = vec![any("batch")];
            axes.extend(description.sample_shape().into_iter().map(fixed));
            value(INPUT, FLOAT, axes)
        }
        Shape::Tokens { .. } => value(TOKENS, INT64, vec![any("batch"), any("sequence")]),
    }
}

fn output(description: &Description) -> ValueInfoProto {
    match description.data {
        Shape::Features { classes, .. } => value(LOGITS, FLOAT, vec![any("batch"), fixed(classes)]),
        Shape::Tokens { vocab, .. } => value(LOGITS, FLOAT, vec![any("batch"), any("sequence"), fixed(vocab)]),
    }
}

fn value(name: &str, elem_type: i32, dim: Vec<DimensionProto>) -> ValueInfoProto {
    let tensor = TensorTypeProto { elem_type: Some(elem_type), shape: Some(TensorShapeProto { dim }) };
    ValueInfoProto { name: Some(name.into()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}

fn any(name: &str) -> DimensionProto {
    DimensionProto { dim_value: None, dim_param: Some(name.into()) }
}

fn fixed(side: usize) -> DimensionProto {
    DimensionProto { dim_value: Some(side as i64), dim_param: None }
}
