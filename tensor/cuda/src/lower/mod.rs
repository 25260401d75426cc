//! Ops as launches of kernels: which function, how many threads, with what. Nothing here touches a device.
//!
//! A kernel for f32 gives the bits of the processor's (`elastic_tensor::ops`), so a job may run on both. How many threads
//! there are follows from the shapes alone, and no bit depends on it.

mod attention;
mod basic;
mod batch_norm;
mod conv2d;
mod dropout;
mod each;
mod flash;
mod gather;
mod gemm;
pub mod gemm_bf16;
mod losses;
mod matrix;
mod norms;
mod pointwise;
mod pools;
mod reduce;
mod rotary;
mod shapes;
mod sort;
mod sums;
mod tables;
mod tensor_core;
mod walk;
mod words;

use crate::driver::LaunchShape;
use elastic_spec::job::Dtype;
use elastic_tensor::graph::Type;
use elastic_tensor::ops::Op;
use words::Words;

/// A piece of the GPU's memory that a run uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    Arena,
    State,
    Out,
    Features,
    Tokens,
    Targets,
    /// u64 a sample: its place in the global batch.
    Slots,
    /// `struct Call` of `device.cuh`.
    Call,
    /// What kernels use and leave dirty.
    Room,
    /// Numbers that are known when a plan is lowered: a bound program has its own.
    Constants,
}

/// Where something lies, before it is known where the regions begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub region: Region,
    pub byte: u64,
}

impl At {
    pub fn start(region: Region) -> At {
        At { region, byte: 0 }
    }

    /// So many numbers of four bytes behind it.
    pub fn plus(self, numbers: usize) -> At {
        At { byte: self.byte + 4 * numbers as u64, ..self }
    }
}

/// An argument of a launch.
#[derive(Clone, Debug, PartialEq)]
pub enum Given {
    At(At),
    U64(u64),
    U32(u32),
    I32(i32),
    F32(f32),
    /// A struct by value, as `Words` lays it out.
    Struct(Vec<u64>),
    /// A struct of addresses by value.
    Addresses(Vec<At>),
}

impl From<At> for Given {
    fn from(at: At) -> Given {
        Given::At(at)
    }
}

/// Counts and sizes are u64 in kernels.
impl From<usize> for Given {
    fn from(count: usize) -> Given {
        Given::U64(count as u64)
    }
}

impl From<u32> for Given {
    fn from(number: u32) -> Given {
        Given::U32(number)
    }
}

impl From<i32> for Given {
    fn from(number: i32) -> Given {
        Given::I32(number)
    }
}

impl From<f32> for Given {
    fn from(number: f32) -> Given {
        Given::F32(number)
    }
}

/// A kernel, how many threads run it, and its arguments in their order.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub file: &'static str,
    pub function: &'static str,
    pub shape: LaunchShape,
    pub given: Vec<Given>,
}

/// One step of a plan, as a kernel sees it.
#[derive(Clone, Debug)]
pub struct Site<'a> {
    /// By the op's own numbering of its inputs; integers and floats alike.
    pub x: &'a [At],
    pub y: &'a [At],
    pub types: &'a [Type],
    pub out_types: &'a [Type],
    /// Keys random numbers.
    pub path: &'a str,
    /// What products read.
    pub dtype: Dtype,
    /// How many shards lie one behind the other, each with as many samples.
    pub shards: usize,
    /// Samples of all of them.
    pub samples: usize,
    /// u64 a sample.
    pub slots: At,
    pub call: At,
}

impl Site<'_> {
    /// Elements of an input.
    pub fn x_len(&self, i: usize) -> usize {
        self.types[i].len()
    }

    pub fn y_len(&self, i: usize) -> usize {
        self.out_types[i].len()
    }
}

/// What a plan is lowered to: launches one after the other, and the room that they need.
#[derive(Clone, Debug, Default)]
pub struct Launches {
    pub list: Vec<Launch>,
    room_used: u64,
    pub room_bytes: u64,
    /// Tables of numbers that are known when a plan is lowered; `tables` says where each begins and ends.
    pub constants: Vec<f32>,
    tables: Vec<std::ops::Range<usize>>,
}

/// Pieces of the room begin at multiples of it.
const ROOM_ALIGN: u64 = 256;

impl Launches {
    /// `arguments!`-style: the kernel `function` of `file`.
    pub fn push(&mut self, file: &'static str, function: &'static str, shape: LaunchShape, given: Vec<Given>) {
        if shape.grid.iter().all(|blocks| *blocks > 0) {
            self.list.push(Launch { file, function, shape, given });
        }
    }

    /// Memory of so many floats for the launches of this step, dirty.
    pub fn room(&mut self, floats: usize) -> At {
        let at = At { region: Region::Room, byte: self.room_used };
        self.room_used = (self.room_used + 4 * floats as u64).next_multiple_of(ROOM_ALIGN);
        self.room_bytes = self.room_bytes.max(self.room_used);
        at
    }

    /// Numbers that kernels read. The same numbers again are the same table: layers share theirs.
    pub fn constant(&mut self, numbers: Vec<f32>) -> At {
        let is_same = |range: &&std::ops::Range<usize>| {
            let known = &self.constants[range.start..range.end];
            known.len() == numbers.len() && known.iter().zip(&numbers).all(|(a, b)| a.to_bits() == b.to_bits())
        };
        if let Some(known) = self.tables.iter().find(is_same) {
            return At::start(Region::Constants).plus(known.start);
        }
        let start = self.constants.len();
        self.tables.push(start..start + numbers.len());
        self.constants.extend(numbers);
        self.constants.resize(self.constants.len().next_multiple_of(ROOM_ALIGN as usize / 4), 0.0);
        At::start(Region::Constants).plus(start)
    }

    /// Where the room that is used ends, to go back to with [`Launches::free_room`].
    pub fn room_mark(&self) -> u64 {
        self.room_used
    }

    /// What was taken since a mark is free again, for launches that come later.
    pub fn free_room(&mut self, mark: u64) {
        self.room_used = mark;
    }
}

/// Threads of a block where each takes one number after another.
pub const THREADS: u32 = 256;
/// Most blocks of such a grid: enough for the largest GPU several times over.
const BLOCKS_MAX: usize = 4096;

/// A grid for `count` independent numbers, which threads take by turns (`first_number` and `number_stride`).
pub fn numbers(count: usize) -> LaunchShape {
    let blocks = count.div_ceil(THREADS as usize).min(BLOCKS_MAX) as u32;
    LaunchShape { grid: [blocks, 1, 1], block: [THREADS, 1, 1], shared_bytes: 0 }
}

/// A grid of `blocks` blocks along x of `threads` threads; kernels take more rows than blocks by turns.
pub fn blocks(count: usize, threads: u32) -> LaunchShape {
    let blocks = count.min(i32::MAX as usize) as u32;
    LaunchShape { grid: [blocks, 1, 1], block: [threads, 1, 1], shared_bytes: 0 }
}

/// The arguments of a launch, each turned into what it is.
macro_rules! given {
    ($($argument:expr),* $(,)?) => { vec![$(crate::lower::Given::from($argument)),*] };
}
pub(crate) use given;

/// An op that no kernel is there for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{op} at `{path}` has no kernel for GPUs yet; resources.device = \"cpu\" trains it")]
pub struct NoKernel {
    pub op: &'static str,
    pub path: String,
}

/// The launches of one op, behind those that are there.
pub fn lower(op: &Op, site: &Site<'_>, to: &mut Launches) -> Result<(), NoKernel> {
    if site.dtype == Dtype::Bf16 && tensor_core::is_product(op) {
        return tensor_core::lower(op, site, to);
    }
    match op {
        Op::ArgMax(op) => reduce::arg_max(op, site, to),
        Op::AvgPool(op) => pools::avg_pool(*op, site, to),
        Op::AvgPoolGrad(op) => pools::avg_pool_grad(op, site, to),
        Op::Embedding(_) => tables::embedding(site, to),
        Op::EmbeddingGrad(op) => tables::embedding_grad(op, site, to),
        Op::Gather(op) => gather::gather(op, site, to),
        Op::GatherGrad(op) => gather::gather_grad(op, site, to),
        Op::MaxPool(op) => pools::max_pool(*op, site, to),
        Op::MaxPoolGrad(op) => pools::max_pool_grad(op, site, to),
        Op::Reduce(op) => reduce::reduce(op, site, to),
        Op::Rotary(op) => rotary::rotary(op, site, to),
        Op::Add(_) => pointwise::add(site, to),
        Op::Seed(_) => basic::seed(site, to),
        Op::SumLeading(_) => sums::sum_leading(site, to),
        Op::SumLeaves(op) => basic::sum_leaves(op, site, to),
        Op::Take(op) => tables::take(op, site, to),
        Op::TakeGrad(op) => tables::take_grad(op, site, to),
        Op::LayerNorm(op) => norms::layer_norm(op, site, to),
        Op::LayerNormGrad(_) => norms::layer_norm_grad(site, to),
        Op::RmsNorm(op) => norms::rms_norm(op, site, to),
        Op::RmsNormGrad(_) => norms::rms_norm_grad(site, to),
        Op::CausalAttention(op) => attention::causal_attention(op, site, to),
        Op::CausalAttentionGrad(op) => attention::causal_attention_grad(&op.0, site, to),
        Op::BatchNorm(op) => batch_norm::batch_norm(op, site, to),
        Op::BatchNormGrad(op) => batch_norm::batch_norm_grad(op, site, to),
        Op::BatchNormEval(op) => batch_norm::batch_norm_eval(op, site, to),
        Op::Softmax(op) => norms::softmax(op, site, to),
        Op::SoftmaxGrad(op) => norms::softmax_grad(op, site, to),
        Op::CrossEntropy(_) => losses::cross_entropy(site, to),
        Op::CrossEntropyGrad(_) => losses::cross_entropy_grad(site, to),
        Op::Copy(_) | Op::Reshape(_) => pointwise::map("copy", site, to),
        Op::Dropout(op) => dropout::dropout(op, site, to),
        Op::Each(f) => each::each(*f, site, to),
        Op::Fused(op) => each::fused(op, site, to),
        Op::Fill(op) => shapes::fill(op.value as f32, site.y[0], site.y_len(0), to),
        Op::BroadcastTo(_) => shapes::broadcast(site, to),
        Op::Permute(op) => shapes::permute(op, site, to),
        Op::Slice(op) => shapes::slice(op, site, to),
        Op::SliceGrad(op) => shapes::slice_grad(op, site, to),
        Op::Concat(op) => shapes::concat(op, site, to),
        Op::Mul(_) => pointwise::map2("mul", site, to),
        Op::Scale(op) => pointwise::scale(op, site, to),
        Op::Relu(_) => pointwise::map("relu", site, to),
        Op::ReluGrad(_) => pointwise::map2("relu_grad", site, to),
        Op::Gelu(_) => pointwise::map("gelu", site, to),
        Op::GeluGrad(_) => pointwise::map2("gelu_grad", site, to),
        Op::MatMul(op) => matrix::matmul(op, site, to),
        Op::BatchMatMul(op) => matrix::batch_matmul(op, site, to),
        Op::Linear(_) => matrix::linear(site, to),
        Op::LinearGradWeight(_) => matrix::linear_grad_weight(site, to),
        Op::Conv2d(op) => conv2d::conv2d(op, site, to),
        Op::Conv2dGradInput(op) => conv2d::conv2d_grad_input(op, site, to),
        Op::Conv2dGradWeight(op) => conv2d::conv2d_grad_weight(op, site, to),
        Op::Conv2dGradBias(_) => conv2d::conv2d_grad_bias(site, to),
    }
    Ok(())
}

pub(crate) use basic::climb;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_are_one_table() {
        let mut launches = Launches::default();
        let first = launches.constant(vec![1.0, 0.0]);
        let other = launches.constant(vec![1.0, -0.0]);
        assert_eq!(launches.constant(vec![1.0, 0.0]), first);
        assert_eq!((first.byte, other.byte), (0, ROOM_ALIGN), "tables begin where any vector may");
        assert_eq!(launches.constants[other.byte as usize / 4 + 1].to_bits(), (-0.0f32).to_bits());
    }
}
