//! Builds a graph node by node. Nodes, tensors and their names come in the order in which a model asks for them.

use super::proto::{AttributeProto, FLOAT, INT64, NodeProto, TensorProto};
use bytes::Bytes;
use elastic_bundle::Tensor;
use std::collections::BTreeMap;

/// The name of a value: a node's output, a tensor or an input.
pub type Name = String;

pub struct Builder<'a> {
    /// By name. Every one that a model asks for is there: the weights were checked against the network.
    weights: BTreeMap<&'a str, &'a Tensor>,
    pub nodes: Vec<NodeProto>,
    pub tensors: Vec<TensorProto>,
    /// Those that were added, by their place in `tensors`.
    added: BTreeMap<Name, usize>,
}

impl<'a> Builder<'a> {
    pub fn new(weights: &[&'a Tensor]) -> Builder<'a> {
        let weights = weights.iter().map(|tensor| (tensor.name.as_str(), *tensor)).collect();
        Builder { weights, nodes: Vec::new(), tensors: Vec::new(), added: BTreeMap::new() }
    }

    pub fn tensor(&self, name: &str) -> &'a Tensor {
        self.weights.get(name).expect("the weights were checked against the network")
    }

    /// A node of one output, which is called as the node is.
    pub fn node(&mut self, op: &str, name: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> Name {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|input| input.to_string()).collect(),
            output: vec![name.into()],
            name: Some(name.into()),
            op_type: Some(op.into()),
            attribute: attributes,
        });
        name.into()
    }

    /// Parts of `x` along its last axis, each `width` wide, called `at` and its word.
    pub fn split<const N: usize>(&mut self, at: &str, words: [&str; N], x: &str, width: usize) -> [Name; N] {
        let widths = self.ints(&format!("{at}.widths"), &[N], &[width as i64; N]);
        let name = format!("{at}.split");
        self.node("Split", &name, &[x, &widths], vec![AttributeProto::int("axis", -1)]);
        let names = words.map(|word| format!("{at}.{word}"));
        self.nodes.last_mut().expect("one was added").output = names.to_vec();
        names
    }

    /// One of the model's tensors as it is.
    pub fn weight(&mut self, name: &str) -> Name {
        let tensor = self.tensor(name);
        self.add(name, &tensor.shape, FLOAT, tensor.bytes.clone())
    }

    /// A linear layer's weight, (out, in), as (in, out).
    pub fn swapped(&mut self, name: &str) -> Name {
        let tensor = self.tensor(name);
        self.add(name, &[tensor.shape[1], tensor.shape[0]], FLOAT, swapped(tensor))
    }

    pub fn floats(&mut self, name: &str, shape: &[usize], floats: &[f32]) -> Name {
        self.add(name, shape, FLOAT, floats.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    pub fn ints(&mut self, name: &str, shape: &[usize], ints: &[i64]) -> Name {
        self.add(name, shape, INT64, ints.iter().flat_map(|x| x.to_le_bytes()).collect())
    }

    /// Once: the same name again is the same tensor.
    fn add(&mut self, name: &str, shape: &[usize], data_type: i32, bytes: Bytes) -> Name {
        let at = *self.added.entry(name.into()).or_insert(self.tensors.len());
        let tensor = TensorProto {
            dims: shape.iter().map(|side| *side as i64).collect(),
            data_type: Some(data_type),
            name: Some(name.into()),
            raw_data: Some(bytes),
            ..TensorProto::default()
        };
        match self.tensors.get(at) {
            None => self.tensors.push(tensor),
            Some(there) => assert!(*there == tensor, "two different tensors are called {name}"),
        }
        name.into()
    }
}

/// A matrix of four-byte numbers with its axes swapped.
pub fn swapped(tensor: &Tensor) -> Bytes {
    let &[rows, cols] = &tensor.shape[..] else { panic!("{} is a matrix", tensor.name) };
    let mut out = Vec::with_capacity(tensor.bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            out.extend_from_slice(&tensor.bytes[4 * (row * cols + col)..][..4]);
        }
    }
    out.into()
}
