//! Decides how a traced network continues sequences: each node becomes a step over rows of new tokens.

use super::session::Session;
use super::{Decode, DecodeMemory, DecodeSize, Decoding};
use crate::graph::{Graph, Node, Source, Type, Value};
use crate::network::StateLayout;
use crate::nn::{Mode, Module};
use crate::ops::{CacheShape, CausalAttention, Op, Rotary};
use crate::passes::{lay_out, trace};
use crate::real::Single;
use crate::simd::Set;
use elastic_spec::batch::DataShape;
use std::marker::PhantomData;
use std::ops::Range;

/// A buffer of rows, one for each token of the pass.
pub(super) type Buffer = usize;

/// What one node does with the new tokens. Ranges are of the floats that are kept as they are.
#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Rows of a table, named by the tokens.
    Embed {
        table: Table,
        to: Buffer,
    },
    /// Adds rows of a table, named by the tokens' places.
    Place {
        table: Table,
        from: Buffer,
        to: Buffer,
    },
    Product {
        linear: Linear,
        from: Buffer,
        to: Buffer,
    },
    Turn {
        rotary: Rotary,
        from: Buffer,
        to: Buffer,
    },
    Attend {
        cache: usize,
        from: Buffer,
        to: Buffer,
    },
    /// What treats rows by themselves.
    Rows {
        op: Op,
        path: String,
        from: Vec<From>,
        to: Vec<Buffer>,
        types: Vec<Type>,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Table {
    pub at: Range<usize>,
    pub channels: usize,
}

#[derive(Clone, Debug)]
pub(super) enum From {
    Buffer(Buffer),
    Kept(Range<usize>),
}

#[derive(Clone, Debug)]
pub(super) struct Linear {
    /// Among the packed weights.
    pub weight: usize,
    pub bias: Option<Range<usize>>,
}

/// A weight (out, inner) that products read, where it lies in the state.
#[derive(Clone, Debug)]
pub(super) struct Weight {
    pub at: Range<usize>,
    pub out: usize,
    pub inner: usize,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Program {
    pub steps: Vec<Step>,
    /// Floats of a row of each buffer.
    pub widths: Vec<usize>,
    /// Parts of the state that are read as they are, one behind the other.
    pub kept: Vec<Range<usize>>,
    pub weights: Vec<Weight>,
    pub caches: Vec<(CausalAttention, usize)>,
    /// What makes scores of a row of the last buffer.
    pub scores: Option<(Linear, Buffer)>,
    pub context: usize,
    pub vocab: usize,
}

pub(super) struct Decoder<F> {
    float: PhantomData<F>,
    layout: StateLayout,
    program: Program,
}

impl<F: Single> Decoder<F> {
    pub(super) fn new(module: &dyn Module, data: &DataShape) -> Result<Decoder<F>, String> {
        let DataShape::Tokens { vocab, context } = *data else {
            return Err("a network that reads features has no sequence to continue".into());
        };
        let trace = trace(module, data, 1, Mode::Evaluate).map_err(|error| error.to_string())?;
        let (layout, offsets) = lay_out(&trace);
        let program = Program { context, vocab, ..Program::default() };
        let mut compiling = Compiling { graph: &trace.graph, offsets: &offsets, program, buffers: Buffers::default() };
        compiling.run(trace.scores)?;
        Ok(Decoder { float: PhantomData, layout, program: compiling.program })
    }
}

impl<F: Single> Decode for Decoder<F> {
    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn context(&self) -> usize {
        self.program.context
    }

    fn vocab(&self) -> usize {
        self.program.vocab
    }

    fn memory(&self, size: DecodeSize) -> DecodeMemory {
        let DecodeSize { seats, rows, .. } = size;
        let program = &self.program;
        let float = size_of::<F>() as u64;
        let kept: usize = program.kept.iter().map(Range::len).sum();
        let packed = program.weights.iter().map(super::product::bytes::<F>);
        let caches = program.caches.iter().map(|(op, channels)| {
            op.cache_bytes::<F>(CacheShape { channels: *channels, seats, context: program.context })
        });
        let widest = program.weights.iter().map(|weight| weight.out.max(weight.inner)).max().unwrap_or(0);
        let row: usize = program.widths.iter().sum::<usize>() + 2 * widest;
        DecodeMemory {
            weights: packed.sum::<u64>() + kept as u64 * float,
            cache: caches.sum(),
            pass: (row as u64).saturating_mul(rows as u64).saturating_mul(float),
        }
    }

    fn start(&self, state: &[f32], size: DecodeSize) -> Box<dyn Decoding> {
        assert_eq!(state.len(), self.layout.floats(), "the state has the layout's length");
        Box::new(Session::<F>::new(&self.program, F::of_floats(state), size, Set::best()))
    }
}

/// Buffers by liveness: what nobody reads any more is written again.
#[derive(Default)]
struct Buffers {
    of: Vec<Option<Buffer>>,
    free: Vec<Buffer>,
}

struct Compiling<'a> {
    graph: &'a Graph,
    /// Of each state, in the layout.
    offsets: &'a [usize],
    program: Program,
    buffers: Buffers,
}

impl Compiling<'_> {
    fn run(&mut self, scores: Value) -> Result<(), String> {
        let graph = self.graph;
        let Source::Node { node: last, .. } = graph.source(scores) else {
            return Err("the scores are no node's output".into());
        };
        if !matches!(graph.nodes()[last].op, Op::Linear(_)) {
            return Err(refused(&graph.nodes()[last], "scores that no linear layer makes"));
        }
        let live = live(graph, last);
        let mut last_use = vec![0; graph.values.len()];
        for &node in &live {
            graph.nodes()[node].inputs.iter().for_each(|value| last_use[value.0] = node);
        }
        self.buffers.of = vec![None; graph.values.len()];
        for &node in &live {
            if node == last {
                let node = &graph.nodes()[last];
                let linear = self.linear(node)?;
                self.program.scores = Some((linear, self.rows_of(node, 0)?));
                break;
            }
            self.step(&graph.nodes()[node])?;
            let ends = graph.nodes()[node].inputs.iter().chain(&graph.nodes()[node].outputs);
            for value in ends.filter(|value| last_use[value.0] <= node) {
                if let Some(buffer) = self.buffers.of[value.0].take() {
                    self.buffers.free.push(buffer);
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, node: &Node) -> Result<(), String> {
        let step = match &node.op {
            Op::Embedding(_) => {
                let table = self.table(node, 0)?;
                if self.graph.source(node.inputs[1]) != Source::Tokens {
                    return Err(refused(node, "a table that is not read by the tokens"));
                }
                Step::Embed { table, to: self.output(node, 0)? }
            }
            Op::Linear(_) => {
                let (linear, from) = (self.linear(node)?, self.rows_of(node, 0)?);
                Step::Product { linear, from, to: self.output(node, 0)? }
            }
            Op::Rotary(rotary) => {
                let from = self.rows_of(node, 0)?;
                Step::Turn { rotary: rotary.clone(), from, to: self.output(node, 0)? }
            }
            Op::CausalAttention(op) => {
                let channels = self.graph.ty(node.outputs[0]).rows_cols().1;
                self.program.caches.push((*op, channels));
                let (cache, from) = (self.program.caches.len() - 1, self.rows_of(node, 0)?);
                Step::Attend { cache, from, to: self.output(node, 0)? }
            }
            Op::Add(_) if self.is_table_of_places(node.inputs[1]) => {
                let (from, table) = (self.rows_of(node, 0)?, self.table(node, 1)?);
                Step::Place { table, from, to: self.output(node, 0)? }
            }
            Op::Add(_) | Op::Mul(_) | Op::LayerNorm(_) | Op::RmsNorm(_) | Op::Gelu(_) | Op::Relu(_) | Op::Scale(_) => {
                self.by_rows(node)?
            }
            _ => return Err(refused(node, "an op that sees more than one token")),
        };
        self.program.steps.push(step);
        Ok(())
    }

    fn by_rows(&mut self, node: &Node) -> Result<Step, String> {
        let mut from = Vec::new();
        for (at, value) in node.inputs.iter().enumerate() {
            let is_vector = self.graph.ty(*value).shape.len() == 1;
            from.push(match self.graph.source(*value) {
                Source::State(_) if is_vector && at > 0 => From::Kept(self.kept(node, at)?),
                _ => From::Buffer(self.rows_of(node, at)?),
            });
        }
        let to = (0..node.outputs.len()).map(|at| self.output(node, at)).collect::<Result<_, _>>()?;
        let types = node.inputs.iter().map(|value| self.graph.ty(*value).clone()).collect();
        Ok(Step::Rows { op: node.op.clone(), path: node.path.clone(), from, to, types })
    }

    fn is_table_of_places(&self, value: Value) -> bool {
        let is_state = matches!(self.graph.source(value), Source::State(_));
        is_state && matches!(self.graph.ty(value).shape[..], [rows, _] if rows == self.program.context)
    }

    fn linear(&mut self, node: &Node) -> Result<Linear, String> {
        let at = self.state(node, 1)?;
        let [out, inner] = self.graph.ty(node.inputs[1]).shape[..] else { unreachable!("a weight has two axes") };
        self.program.weights.push(Weight { at, out, inner });
        let bias = if node.inputs.len() == 3 { Some(self.kept(node, 2)?) } else { None };
        Ok(Linear { weight: self.program.weights.len() - 1, bias })
    }

    fn table(&mut self, node: &Node, input: usize) -> Result<Table, String> {
        Ok(Table { at: self.kept(node, input)?, channels: self.graph.ty(node.inputs[input]).rows_cols().1 })
    }

    /// Where a node's input lies in the state.
    fn state(&self, node: &Node, input: usize) -> Result<Range<usize>, String> {
        let value = node.inputs[input];
        match self.graph.source(value) {
            Source::State(index) => Ok(self.offsets[index]..self.offsets[index] + self.graph.ty(value).len()),
            _ => Err(refused(node, "a weight that is computed")),
        }
    }

    /// Where the same lies among what is kept.
    fn kept(&mut self, node: &Node, input: usize) -> Result<Range<usize>, String> {
        let range = self.state(node, input)?;
        let mut start = 0;
        for kept in &self.program.kept {
            if *kept == range {
                return Ok(start..start + range.len());
            }
            start += kept.len();
        }
        self.program.kept.push(range.clone());
        Ok(start..start + range.len())
    }

    /// The buffer of an input that has a row for each token.
    fn rows_of(&self, node: &Node, input: usize) -> Result<Buffer, String> {
        let value = node.inputs[input];
        let shape = &self.graph.ty(value).shape;
        match self.buffers.of[value.0] {
            Some(buffer) if matches!(shape[..], [1, rows, _] if rows == self.program.context) => Ok(buffer),
            _ => Err(refused(node, "an input without a row for each token")),
        }
    }

    fn output(&mut self, node: &Node, output: usize) -> Result<Buffer, String> {
        let value = node.outputs[output];
        let len = self.graph.ty(value).len();
        if !len.is_multiple_of(self.program.context) {
            return Err(refused(node, "an output without a row for each token"));
        }
        let width = len / self.program.context;
        let buffer = match self.buffers.free.pop() {
            Some(buffer) => buffer,
            None => {
                self.program.widths.push(0);
                self.program.widths.len() - 1
            }
        };
        self.program.widths[buffer] = self.program.widths[buffer].max(width);
        self.buffers.of[value.0] = Some(buffer);
        Ok(buffer)
    }
}

fn refused(node: &Node, why: &str) -> String {
    format!("{} at `{}`: {why} cannot be continued token by token", node.op.name(), node.path)
}

/// The nodes that a node's outputs depend on, itself among them, in order.
fn live(graph: &Graph, last: usize) -> Vec<usize> {
    let mut is_live = vec![false; last + 1];
    is_live[last] = true;
    for node in (0..=last).rev() {
        if !is_live[node] {
            continue;
        }
        for value in &graph.nodes()[node].inputs {
            if let Source::Node { node, .. } = graph.source(*value) {
                is_live[node] = true;
            }
        }
    }
    (0..=last).filter(|node| is_live[*node]).collect()
}
