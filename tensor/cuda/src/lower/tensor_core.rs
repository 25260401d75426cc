//! Products of a bf16 job on tensor cores: operands are rounded to bf16 where they are read, sums are f32.
//!
//! Tensor cores add in an order of their own, so this is a numerics class beside the processor's two. What holds for
//! all of them holds here too: the bits of a row do not hang on how many others there are, nothing is added by atomics,
//! no sum over k is split, and leaves of shards are f32 and added along the tree.

use super::basic::climb;
use super::conv2d;
use super::flash;
use super::gemm::Tile;
use super::gemm_bf16::{Gemm, Operand, Stored};
use super::{At, Launches, NoKernel, Site, given, numbers};
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

fn matmul(op: &MatMul, site: &Site<'_>, to: &mut Launches) {
    let (out, (rows, columns)) = (&site.out_types[0].shape, site.types[0].rows_cols());
    let [a, b] = operands(site, op.a_transposed, op.b_transposed);
    let k = if op.a_transposed { rows } else { columns };
    Gemm { a, b, bias: None, m: out[0], n: out[1], k, batches: 1 }.launch(site.y[0], to);
}

fn batch_matmul(op: &BatchMatMul, site: &Site<'_>, to: &mut Launches) {
    let (out, left) = (&site.out_types[0].shape, &site.types[0].shape);
    let [a, b] = operands(site, op.a_transposed, op.b_transposed);
    let k = if op.a_transposed { left[1] } else { left[2] };
    Gemm { a, b, bias: None, m: out[1], n: out[2], k, batches: out[0] }.launch(site.y[0], to);
}

fn linear(site: &Site<'_>, to: &mut Launches) {
    let ((m, k), n) = (site.types[0].rows_cols(), site.types[1].shape[0]);
    let [a, b] = operands(site, false, true);
    Gemm { a, b, bias: site.x.get(2).copied(), m, n, k, batches: 1 }.launch(site.y[0], to);
}

fn operands(site: &Site<'_>, a_transposed: bool, b_transposed: bool) -> [Operand; 2] {
    let operand = |i, is_transposed| Operand { at: site.x[i], stored: Stored::of(is_transposed) };
    [operand(0, a_transposed), operand(1, b_transposed)]
}

fn linear_grad_weight(site: &Site<'_>, to: &mut Launches) {
    let ((rows, m), n) = (site.types[0].rows_cols(), site.types[1].shape[1]);
    let ([a, b], k) = (operands(site, true, false), rows / site.shards);
    sum_over_shards(m * n, site.shards, site.y[0], to, |shards, leaves, to| {
        let first = shards.start * k;
        let a = Operand { at: a.at.plus(first * m), ..a };
        let b = Operand { at: b.at.plus(first * n), ..b };
        Gemm { a, b, bias: None, m, n, k, batches: shards.len() }.launch(leaves, to);
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
