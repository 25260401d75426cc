//! The closed set of ops. One file per op, or family of ops: shape rule, gradient rule and kernel side by side.
//!
//! A kernel is written once over [`Real`]; it sees slices and knows nothing of plans and arenas. Its result
//! depends on its inputs alone, each row's bits never on how many other rows there are.

mod add;
mod avg_pool;
mod batch_matmul;
mod batch_norm;
mod causal_attention;
mod conv2d;
mod copy;
mod cross_entropy;
mod dropout;
mod each;
mod embedding;
mod fused;
mod gelu;
mod layer_norm;
mod linear;
mod matmul;
mod max_pool;
mod mul;
mod pointwise;
mod reduce;
mod relu;
mod reshape;
mod rms_norm;
mod rotary;
mod scale;
mod seed;
mod softmax;
mod sum_leading;
mod sum_leaves;
mod take;
mod view;
mod walk;
mod windows;

pub use add::Add;
pub use avg_pool::{AvgPool, AvgPoolGrad};
pub use batch_matmul::BatchMatMul;
pub use batch_norm::{BatchNorm, BatchNormEval, BatchNormGrad};
pub(crate) use causal_attention::{Cache, CacheShape, Part, Tiles};
pub use causal_attention::{CausalAttention, CausalAttentionGrad};
pub use conv2d::{Conv2d, Conv2dGradBias, Conv2dGradInput, Conv2dGradWeight};
pub use copy::Copy;
pub use cross_entropy::{CrossEntropy, CrossEntropyGrad};
pub use dropout::Dropout;
pub use embedding::{Embedding, EmbeddingGrad};
pub use fused::{FUSED_OUTPUTS_MAX, FUSED_STEPS_MAX, Fused, FusedInput, FusedStep};
pub use gelu::{Gelu, GeluGrad};
pub use layer_norm::{LayerNorm, LayerNormGrad};
pub use linear::{Linear, LinearGradWeight};
pub use matmul::MatMul;
pub use max_pool::{MaxPool, MaxPoolGrad};
pub use mul::Mul;
pub use pointwise::Each;
pub use reduce::{ArgMax, Reduce, ReduceKind};
pub use relu::{Relu, ReluGrad};
pub use reshape::Reshape;
pub use rms_norm::{RmsNorm, RmsNormGrad};
pub use rotary::Rotary;
pub use scale::Scale;
pub use seed::Seed;
pub use softmax::{Softmax, SoftmaxGrad};
pub use sum_leading::SumLeading;
pub use sum_leaves::SumLeaves;
pub use take::{Gather, GatherGrad, Take, TakeGrad};
pub use view::{BroadcastTo, Concat, Fill, Permute, Range, Slice, SliceGrad};
pub use walk::{AXES_MAX, Strides, broadcast_shape, contiguous, repeated};

use crate::gemm::{Gemm, Pack, TeamGemm};
use crate::graph::{Graph, Node, ShapeError, Type, Value};
use crate::real::Real;
use crate::team::Team;

/// What an op must say about itself.
pub trait Rule {
    const NAME: &'static str;

    /// The outputs' types, or which axes do not fit.
    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String>;

    /// Writes the gradient into the graph: for each input its gradient, given those of the outputs.
    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let _ = (graph, dy);
        let message = "has no gradient of its own".to_string();
        Err(ShapeError { op: Self::NAME, path: node.path.clone(), message })
    }

    fn run<F: Real>(&self, io: Io<'_, F>);
}

pub type Grads = Vec<Option<Value>>;

/// Most inputs and outputs of a node.
pub const IO_MAX: usize = 8;

/// What a kernel is given. Floats and integers share the numbering of the inputs.
pub struct Io<'a, F: Real> {
    pub x: [&'a [F]; IO_MAX],
    pub ints: [&'a [i32]; IO_MAX],
    pub y: [&'a mut [F]; IO_MAX],
    pub types: &'a [Type],
    pub out_types: &'a [Type],
    pub key: &'a Key<'a>,
    pub path: &'a str,
    pub work: &'a mut Work<F>,
}

/// What changes from call to call besides the tensors.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    pub seed: u64,
    pub step: u64,
    /// Gradient of each valid loss.
    pub scale: f32,
    pub label_smoothing: f32,
    /// How many shards (a power of two) lie one behind the other in the batch, each with as many rows.
    pub shards: usize,
    /// Slot of each sample in the global batch.
    pub slots: &'a [u64],
}

/// The threads of a run, and what they use.
#[derive(Debug)]
pub struct Work<F: Real> {
    pub team: Team,
    /// One for each thread of the team.
    pub rooms: Vec<Room<F>>,
}

/// Memory of one thread that kernels use and leave dirty.
#[derive(Debug, Default)]
pub struct Room<F: Real> {
    pub pack: Pack<F>,
    pub columns: Vec<F>,
    /// What products read.
    pub operands: Vec<F::Operand>,
    /// Left siblings of a sum over shards.
    pub sums: Vec<F>,
    /// Results of tasks that are not neighbours in the output.
    pub parts: Vec<F>,
    /// Where the rows and links of a convolution's product lie.
    pub(crate) tables: Vec<u32>,
    pub(crate) convolutions: Vec<conv2d::Part>,
}

impl<F: Real> Work<F> {
    pub fn new(threads: usize) -> Work<F> {
        let team = Team::new(threads);
        Work { rooms: (0..team.threads()).map(|_| Room::default()).collect(), team }
    }

    /// Gives every thread as much room as one of them needed: who gets which task is chance, and a later run must not
    /// find a room too small.
    pub(crate) fn level(&mut self) {
        // What is packed for all lies in the first room alone.
        level(&mut self.rooms, |room| &mut room.pack.a);
        level(&mut self.rooms, |room| &mut room.pack.b);
        level(&mut self.rooms, |room| &mut room.operands);
        level(&mut self.rooms, |room| &mut room.columns);
        level(&mut self.rooms, |room| &mut room.sums);
    }

    /// A product on all threads.
    pub fn gemm(&mut self, gemm: Gemm<'_, F>, c: &mut [F], stride: usize) {
        F::product(TeamGemm { gemm, shards: 1, bias: &[] }, c, stride, self);
    }
}

fn level<F: Real, T: std::marker::Copy + Default>(rooms: &mut [Room<F>], field: fn(&mut Room<F>) -> &mut Vec<T>) {
    let largest = rooms.iter_mut().map(|room| field(room).len()).max().unwrap_or(0);
    rooms.iter_mut().for_each(|room| crate::memory::grow(field(room), largest));
}

/// At least `len` elements of `room`, whatever is in them.
pub fn take<T: std::marker::Copy + Default>(room: &mut Vec<T>, len: usize) -> &mut [T] {
    crate::memory::grow(room, len);
    &mut room[..len]
}

macro_rules! ops {
    ($($op:ident),* $(,)?) => {
        #[derive(Clone, Debug)]
        pub enum Op {
            $($op($op)),*
        }

        impl Op {
            pub fn name(&self) -> &'static str {
                match self {
                    $(Op::$op(_) => <$op as Rule>::NAME),*
                }
            }

            pub fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
                match self {
                    $(Op::$op(op) => op.infer(x)),*
                }
            }

            pub fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
                match self {
                    $(Op::$op(op) => op.gradient(graph, node, dy)),*
                }
            }

            pub fn run<F: Real>(&self, io: Io<'_, F>) {
                match self {
                    $(Op::$op(op) => op.run(io)),*
                }
            }
        }
    };
}

ops!(
    Add,
    ArgMax,
    AvgPool,
    AvgPoolGrad,
    BatchMatMul,
    BatchNorm,
    BatchNormEval,
    BatchNormGrad,
    BroadcastTo,
    CausalAttention,
    CausalAttentionGrad,
    Concat,
    Conv2d,
    Conv2dGradBias,
    Conv2dGradInput,
    Conv2dGradWeight,
    Copy,
    CrossEntropy,
    CrossEntropyGrad,
    Dropout,
    Each,
    Embedding,
    EmbeddingGrad,
    Fill,
    Fused,
    Gather,
    GatherGrad,
    Gelu,
    GeluGrad,
    LayerNorm,
    LayerNormGrad,
    Linear,
    LinearGradWeight,
    MatMul,
    MaxPool,
    MaxPoolGrad,
    Mul,
    Permute,
    Reduce,
    Relu,
    ReluGrad,
    Reshape,
    RmsNorm,
    RmsNormGrad,
    Rotary,
    Scale,
    Seed,
    Slice,
    SliceGrad,
    Softmax,
    SoftmaxGrad,
    SumLeading,
    SumLeaves,
    Take,
    TakeGrad,
);

/// `wanted` shape for input `index` called `name`, or an error that names the axis that differs.
fn expect(x: &[&Type], index: usize, name: &str, wanted: &[usize]) -> Result<(), String> {
    let got = &x[index].shape;
    if got.len() != wanted.len() {
        return Err(format!("{name} is {}, but needs {} axes: {wanted:?}", x[index], wanted.len()));
    }
    match (0..got.len()).find(|axis| got[*axis] != wanted[*axis]) {
        Some(axis) => Err(format!("axis {axis} of {name} {} is {}, but must be {}", x[index], got[axis], wanted[axis])),
        None => Ok(()),
    }
}

/// The value has so many axes, which the error spells out.
fn expect_axes(x: &[&Type], index: usize, name: &str, axes: &str) -> Result<(), String> {
    let wanted = axes.split(',').count();
    match x[index].shape.len() == wanted {
        true => Ok(()),
        false => Err(format!("{name} is {}, but needs {wanted} axes: ({axes})", x[index])),
    }
}

#[cfg(test)]
mod tests;
