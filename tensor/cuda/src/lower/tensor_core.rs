//! Products of a bf16 job on tensor cores: operands are rounded to bf16 where they are read, sums are f32.
//!
//! Tensor cores add in an order of their own, so this is a numerics class beside the processor's two. What holds for
//! all of them holds here too: the bits of a row do not hang on how many others there are, nothing is added by atomics,
//! no sum over k is split, and leaves of shards are f32 and added along the tree.

use super::basic::climb;
use super::conv2d;
use super::flash;
use super::gemm::Tile;
use super::{At, Given, Launches, NoKernel, Site, given, numbers};
use crate::driver::LaunchShape;
use elastic_tensor::ops::{BatchMatMul, MatMul, Op};
use std::ops::Range;

/// Whether an op rounds its operands in a bf16 job; all others are those of an f32 job.
pub(super) fn is_product(op: &Op) -> bool {
    matches!(
        op,
        Op::MatMul(_)
            | Op::Linear(_)
            | Op::LinearGradWeight(_)
            | Op::BatchMatMul(_)
            | Op::Conv2d(_)
            | Op::Conv2dGradInput(_)
            | Op::Conv2dGradWeight(_)
            | Op::CausalAttention(_)
            | Op::CausalAttentionGrad(_)
    )
}

pub(super) fn lower(op: &Op, site: &Site<'_>, to: &mut Launches) -> Result<(), NoKernel> {
    match op {
        Op::MatMul(op) => matmul(op, site, to),
        Op::Linear(_) => linear(site, to),
        Op::LinearGradWeight(_) => linear_grad_weight(site, to),
        Op::BatchMatMul(op) => batch_matmul(op, site, to),
        Op::Conv2d(op) => conv2d::conv2d(op, site, to),
        Op::Conv2dGradInput(op) => conv2d::conv2d_grad_input(op, site, to),
        Op::Conv2dGradWeight(op) => conv2d::conv2d_grad_weight(op, site, to),
        Op::CausalAttention(op) => flash::forward(*op, site, to)?,
        Op::CausalAttentionGrad(op) => flash::gradient(op.0, site, to)?,
        other => return Err(NoKernel { op: other.name(), path: site.path.into() }),
    }
    Ok(())
}

/// How a matrix lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    AsMultiplied,
    Transposed,
}

impl Stored {
    fn of(is_transposed: bool) -> Stored {
        if is_transposed { Stored::Transposed } else { Stored::AsMultiplied }
    }
}

/// C (m, n) = A (m, k) B (k, n) + bias (n), `batches` times one behind the other.
#[derive(Clone, Copy, Debug)]
struct Gemm {
    a: At,
    a_stored: Stored,
    b: At,
    b_stored: Stored,
    bias: Option<At>,
    m: usize,
    n: usize,
    k: usize,
    batches: usize,
}

/// Columns of C from which on a tile is 128 by 128, else 64 by 64. No bit hangs on it.
const LARGE_FROM: usize = 513;
/// Most blocks along y.
const BATCH_BLOCKS_MAX: usize = 65_535;

impl Gemm {
    fn launch(self, c: At, to: &mut Launches) {
        let size = |axis: usize| u32::try_from(axis).expect("an axis of a matrix has fewer than 2^32 elements");
        let is_large = self.n >= LARGE_FROM;
        let function = match (is_large, self.a_stored, self.b_stored) {
            (true, Stored::AsMultiplied, Stored::AsMultiplied) => "large_nn",
            (true, Stored::AsMultiplied, Stored::Transposed) => "large_nt",
            (true, Stored::Transposed, Stored::AsMultiplied) => "large_tn",
            (true, Stored::Transposed, Stored::Transposed) => "large_tt",
            (false, Stored::AsMultiplied, Stored::AsMultiplied) => "small_nn",
            (false, Stored::AsMultiplied, Stored::Transposed) => "small_nt",
            (false, Stored::Transposed, Stored::AsMultiplied) => "small_tn",
            (false, Stored::Transposed, Stored::Transposed) => "small_tt",
        };
        let (side, threads) = if is_large { (128, 256) } else { (64, 128) };
        let tiles = size(self.m.div_ceil(side) * self.n.div_ceil(side));
        let grid = [tiles, size(self.batches.min(BATCH_BLOCKS_MAX)), 1];
        let shape = LaunchShape { grid, block: [threads, 1, 1], shared_bytes: 0 };
        let bias = self.bias.map_or(Given::U64(0), Given::At);
        let [m, n, k, batches] = [self.m, self.n, self.k, self.batches].map(size);
        to.push("gemm_bf16", function, shape, given![c, self.a, self.b, bias, m, n, k, batches]);
    }
}

fn matmul(op: &MatMul, site: &Site<'_>, to: &mut Launches) {
    let (out, (rows, columns)) = (&site.out_types[0].shape, site.types[0].rows_cols());
    let gemm = Gemm {
        a: site.x[0],
        a_stored: Stored::of(op.a_transposed),
        b: site.x[1],
        b_stored: Stored::of(op.b_transposed),
        bias: None,
        m: out[0],
        n: out[1],
        k: if op.a_transposed { rows } else { columns },
        batches: 1,
    };
    gemm.launch(site.y[0], to);
}

fn batch_matmul(op: &BatchMatMul, site: &Site<'_>, to: &mut Launches) {
    let (out, left) = (&site.out_types[0].shape, &site.types[0].shape);
    let gemm = Gemm {
        a: site.x[0],
        a_stored: Stored::of(op.a_transposed),
        b: site.x[1],
        b_stored: Stored::of(op.b_transposed),
        bias: None,
        m: out[1],
        n: out[2],
        k: if op.a_transposed { left[1] } else { left[2] },
        batches: out[0],
    };
    gemm.launch(site.y[0], to);
}

fn linear(site: &Site<'_>, to: &mut Launches) {
    let ((m, k), n) = (site.types[0].rows_cols(), site.types[1].shape[0]);
    let (a_stored, b_stored) = (Stored::AsMultiplied, Stored::Transposed);
    let bias = site.x.get(2).copied();
    Gemm { a: site.x[0], a_stored, b: site.x[1], b_stored, bias, m, n, k, batches: 1 }.launch(site.y[0], to);
}

fn linear_grad_weight(site: &Site<'_>, to: &mut Launches) {
    let ((rows, m), n) = (site.types[0].rows_cols(), site.types[1].shape[1]);
    let leaf = Gemm {
        a: site.x[0],
        a_stored: Stored::Transposed,
        b: site.x[1],
        b_stored: Stored::AsMultiplied,
        bias: None,
        m,
        n,
        k: rows / site.shards,
        batches: site.shards,
    };
    sum_over_shards(m * n, site.shards, site.y[0], to, |shards, leaves, to| {
        let first = shards.start * leaf.k;
        let (a, b) = (leaf.a.plus(first * m), leaf.b.plus(first * n));
        Gemm { a, b, batches: shards.len(), ..leaf }.launch(leaves, to);
    });
}

/// Floats of leaves that wait for their sum: 64 MiB.
const LEAVES_MAX: usize = 16 << 20;

/// c = the sum along the tree of the shards' leaves of `count` floats, which `launch` makes one behind the other.
pub(super) fn sum_over_shards(
    count: usize,
    shards: usize,
    c: At,
    to: &mut Launches,
    launch: impl Fn(Range<usize>, At, &mut Launches),
) {
    if shards == 1 {
        return launch(0..1, c, to);
    }
    // As many at once as there is room for: a subtree, whose sum then climbs as one leaf of the rest.
    let most = (LEAVES_MAX / count.max(1)).clamp(1, shards);
    let at_once = 1 << most.ilog2();
    let units = shards / at_once;
    let leaves = if at_once > 1 { to.room(at_once * count) } else { c };
    let siblings = to.room(units.ilog2() as usize * count);
    for unit in 0..units {
        launch(unit * at_once..(unit + 1) * at_once, leaves, to);
        if at_once > 1 {
            to.push("basic", "sum_leaves", numbers(count), given![c, leaves, count, at_once as u32]);
        }
        if units > 1 {
            climb(c, siblings, count, (unit, units), to);
        }
    }
}

/// Of a convolution with so many planes of output.
pub(super) fn tile_of_planes(planes: usize) -> Tile {
    if planes > 64 { Tile::Large } else { Tile::Medium }
}
