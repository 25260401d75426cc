//! The graph of a unit: 2^j shards run as one batch, and what one shard adds to the sums stays what it was.
//!
//! A value that depends on the batch exists once a shard; in a unit those of all shards lie one behind the other,
//! as if axis 0 were longer. Most ops treat the rows of axis 0 apart and run on all at once. Sums over the batch
//! axis are made shard by shard and added along the tree (`leaves`), by the op itself where it can, else by `exec`,
//! which can run any op one shard after the other. So every graph has its units; only the speed differs.
//! A sum that others read too (a tied table has two gradients to be added) is kept one leaf a shard, and the leaves
//! are added at the end: the tree of a sum is not the sum of two trees.

use crate::graph::{Graph, OneByOne, Part, Source, Type, Value};
use crate::ops::{Op, SumLeaves};

/// A unit's graph, and where its results are in it.
pub(crate) struct Unit {
    pub graph: Graph,
    pub out: Vec<(Value, usize)>,
    pub keep: Vec<Value>,
}

/// What is asked of one shard's graph: values that end in the output vector, summed over the shards, and values that
/// are kept as they are.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub out: &'a [(Value, usize)],
    pub keep: &'a [Value],
}

/// Whether a value is the same for all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Shared,
    PerShard,
}

/// How a node runs in a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Way {
    /// On shared values alone: as in one shard.
    Once,
    /// All shards' rows in one call; outputs are as many times longer.
    Together,
    /// One call in which the op adds its leaves along the tree.
    Summing,
    /// One call a shard. True for an output that is a sum over the batch axis.
    OneByOne,
}

/// The graph of a unit of `shards` (a power of two, at least two), made of the graph of one shard of `samples`.
pub(crate) fn unit(one: &Graph, asked: Asked<'_>, samples: usize, shards: usize) -> Unit {
    assert!(shards.is_power_of_two() && shards > 1, "a unit is a full subtree, not {shards} shards");
    let live = live_nodes(one, asked);
    let mut read = vec![false; one.values.len()];
    live.iter().flat_map(|node| &one.nodes[*node].inputs).for_each(|v| read[v.0] = true);
    asked.keep.iter().for_each(|v| read[v.0] = true);
    let mut widening = Widening { one, samples, shards, graph: Graph::default(), new: vec![None; one.values.len()] };
    widening.graph.states = one.states.clone();
    for (value, (_, source)) in one.values.iter().enumerate() {
        if !matches!(source, Source::Node { .. }) {
            widening.given(Value(value));
        }
    }
    for node in live {
        widening.node(node, &read);
    }
    let out = asked.out.iter().map(|(value, at)| (widening.summed(*value), *at)).collect();
    let keep = asked.keep.iter().map(|value| widening.place(*value).1).collect();
    Unit { graph: widening.graph, out, keep }
}

fn live_nodes(one: &Graph, asked: Asked<'_>) -> Vec<usize> {
    let mut needed = vec![false; one.values.len()];
    asked.out.iter().map(|(v, _)| v).chain(asked.keep).for_each(|v| needed[v.0] = true);
    let mut live: Vec<usize> = Vec::new();
    for (at, node) in one.nodes.iter().enumerate().rev() {
        if node.outputs.iter().any(|v| needed[v.0]) {
            node.inputs.iter().for_each(|v| needed[v.0] = true);
            live.push(at);
        }
    }
    live.reverse();
    live
}

/// What a value became: the sum over the shards already, or itself.
#[derive(Clone, Copy, Debug)]
enum New {
    Value(Kind, Value),
    Sum(Value),
}

struct Widening<'a> {
    one: &'a Graph,
    samples: usize,
    shards: usize,
    graph: Graph,
    new: Vec<Option<New>>,
}

impl Widening<'_> {
    /// The shards' values one behind the other.
    fn wide(&self, ty: &Type) -> Type {
        Type { dtype: ty.dtype, shape: self.wide_shape(&ty.shape) }
    }

    fn wide_shape(&self, shape: &[usize]) -> Vec<usize> {
        match shape {
            [] => vec![self.shards],
            [first, rest @ ..] => [&[first * self.shards], rest].concat(),
        }
    }

    /// A value that no node makes.
    fn given(&mut self, value: Value) {
        let (ty, source) = &self.one.values[value.0];
        let (kind, ty) = match source {
            Source::State(_) => (Kind::Shared, ty.clone()),
            _ => (Kind::PerShard, self.wide(ty)),
        };
        self.new[value.0] = Some(New::Value(kind, self.graph.push(ty, *source)));
    }

    fn place(&self, value: Value) -> (Kind, Value) {
        match self.new[value.0] {
            Some(New::Value(kind, value)) => (kind, value),
            other => unreachable!("a value that is read is there for each shard, not {other:?}"),
        }
    }

    fn node(&mut self, at: usize, read: &[bool]) {
        let one = self.one;
        let node = &one.nodes[at];
        let (kinds, inputs): (Vec<Kind>, Vec<Value>) = node.inputs.iter().map(|v| self.place(*v)).unzip();
        let types: Vec<&Type> = node.inputs.iter().map(|v| one.ty(*v)).collect();
        let sums = sums(&node.op);
        let mut way = way(&node.op, &kinds, &types, self.samples);
        let is_sum: Vec<bool> = (0..).zip(&node.outputs).map(|(i, v)| sums.contains(&i) && !read[v.0]).collect();
        if way == Way::Summing && is_sum.iter().zip(0..).any(|(is_sum, i)| *is_sum != sums.contains(&i)) {
            way = Way::OneByOne;
        }
        let out_types = node.outputs.iter().zip(&is_sum).map(|(v, is_sum)| match (&way, is_sum) {
            (Way::Once, _) | (Way::Summing | Way::OneByOne, true) => one.ty(*v).clone(),
            _ => self.wide(one.ty(*v)),
        });
        let out_types: Vec<Type> = out_types.collect();
        let one_by_one = (way == Way::OneByOne).then(|| OneByOne {
            shards: self.shards,
            x: kinds.iter().map(|kind| *kind == Kind::PerShard).collect(),
            y: is_sum.iter().map(|is_sum| if *is_sum { Part::Sum } else { Part::OneBehindTheOther }).collect(),
            types: types.into_iter().cloned().collect(),
            out_types: node.outputs.iter().map(|v| one.ty(*v).clone()).collect(),
        });
        let op = if matches!(way, Way::Together | Way::Summing) { self.wide_op(&node.op) } else { node.op.clone() };
        let outputs = self.graph.push_node(op, &node.path, &inputs, out_types, one_by_one);
        for ((old, new), is_sum) in node.outputs.iter().zip(outputs).zip(is_sum) {
            self.new[old.0] = Some(match (&way, is_sum) {
                (Way::Once, _) => New::Value(Kind::Shared, new),
                (Way::Summing | Way::OneByOne, true) => New::Sum(new),
                _ => New::Value(Kind::PerShard, new),
            });
        }
    }

    /// An op that holds a shape along axis 0, for all shards.
    fn wide_op(&self, op: &Op) -> Op {
        let mut op = op.clone();
        match &mut op {
            Op::Reshape(op) => op.shape = self.wide_shape(&op.shape),
            Op::Seed(op) => op.shape = self.wide_shape(&op.shape),
            Op::Conv2dGradInput(op) => op.image = self.wide_shape(&op.image),
            Op::AvgPoolGrad(op) => op.image = self.wide_shape(&op.image),
            _ => {}
        }
        op
    }

    /// The sum over the shards of a value that ends in the output.
    fn summed(&mut self, value: Value) -> Value {
        let (kind, wide) = match self.new[value.0] {
            Some(New::Sum(sum)) => return sum,
            _ => self.place(value),
        };
        assert!(kind == Kind::PerShard, "what a leaf consists of depends on the batch");
        let shape = self.one.ty(value).shape.clone();
        let op = Op::SumLeaves(SumLeaves { shards: self.shards, shape });
        self.graph.apply1(op, "unit", &[wide]).expect("leaves lie one behind the other")
    }
}

/// Outputs that are sums over the batch axis.
fn sums(op: &Op) -> &'static [usize] {
    match op {
        Op::LinearGradWeight(_)
        | Op::SumLeading(_)
        | Op::EmbeddingGrad(_)
        | Op::Conv2dGradWeight(_)
        | Op::Conv2dGradBias(_) => &[0],
        Op::LayerNormGrad(_) | Op::BatchNormGrad(_) => &[1, 2],
        Op::RmsNormGrad(_) => &[1],
        Op::BatchNorm(_) => &[3, 4],
        _ => &[],
    }
}

/// How an op runs on inputs of these kinds and types (of one shard).
fn way(op: &Op, kinds: &[Kind], types: &[&Type], samples: usize) -> Way {
    use Kind::{PerShard, Shared};
    let draws = matches!(op, Op::Dropout(_) | Op::Seed(_));
    if !draws && kinds.iter().all(|kind| *kind == Shared) {
        return Way::Once;
    }
    let axes = |i: usize| types[i].shape.len();
    let all = kinds.iter().all(|kind| *kind == PerShard);
    // The first input comes from the batch, with more than one axis; the others are parameters.
    let rows = kinds.first() == Some(&PerShard) && kinds[1..].iter().all(|kind| *kind == Shared);
    let is_apart = match op {
        Op::Seed(_) => true,
        Op::Relu(_) | Op::Gelu(_) | Op::Scale(_) | Op::Copy(_) | Op::Reshape(_) => all,
        Op::Mul(_) | Op::ReluGrad(_) | Op::GeluGrad(_) => all,
        Op::Add(_) => (all && axes(0) == axes(1)) || (rows && axes(0) > axes(1)),
        Op::Linear(_) | Op::LayerNorm(_) | Op::RmsNorm(_) => rows && axes(0) > 1,
        Op::MatMul(op) => rows && !op.a_transposed,
        Op::Conv2d(_) | Op::BatchNormEval(_) => rows,
        Op::Embedding(_) => kinds == [Shared, PerShard],
        Op::CausalAttention(_) | Op::CausalAttentionGrad(_) | Op::Rotary(_) => all,
        Op::MaxPool(_) | Op::MaxPoolGrad(_) | Op::AvgPool(_) | Op::AvgPoolGrad(_) => all,
        Op::CrossEntropy(_) | Op::CrossEntropyGrad(_) => all && axes(0) > 1,
        Op::Conv2dGradInput(_) => kinds == [Shared, PerShard],
        // A mask is drawn for each sample by its slot.
        Op::Dropout(_) => all && types[0].shape.first() == Some(&samples),
        Op::LinearGradWeight(_) | Op::Conv2dGradWeight(_) | Op::Conv2dGradBias(_) if all => return Way::Summing,
        Op::EmbeddingGrad(_) if all && axes(0) > 1 => return Way::Summing,
        Op::LayerNormGrad(_) if kinds == [PerShard, Shared, PerShard, PerShard, PerShard] && axes(0) > 1 => {
            return Way::Summing;
        }
        // Row by row, wherever axis 0 is nobody's to mix.
        Op::Each(_) => each_apart(kinds, types),
        Op::Softmax(_) | Op::SoftmaxGrad(_) => all && axes(0) > 1,
        Op::Reduce(op) => all && op.from > 0,
        Op::RmsNormGrad(_) if kinds == [PerShard, Shared, PerShard, PerShard] && axes(0) > 1 => return Way::Summing,
        Op::SumLeading(op) if all && op.keep < axes(0) => return Way::Summing,
        _ => false,
    };
    if is_apart { Way::Together } else { Way::OneByOne }
}

/// Operands of the batch have all axes of the result and its rows, and parameters are repeated over them.
fn each_apart(kinds: &[Kind], types: &[&Type]) -> bool {
    let axes = types.iter().map(|ty| ty.shape.len()).max().unwrap_or(0);
    let rows = types.iter().filter(|ty| ty.shape.len() == axes).map(|ty| ty.shape.first().copied().unwrap_or(1)).max();
    axes > 0
        && kinds.iter().zip(types).all(|(kind, ty)| match kind {
            Kind::PerShard => ty.shape.len() == axes && Some(ty.shape[0]) == rows,
            Kind::Shared => ty.shape.len() < axes || ty.shape[0] == 1,
        })
}

#[cfg(test)]
mod tests;
