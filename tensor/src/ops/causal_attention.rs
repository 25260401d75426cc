//! Multi-head attention in which a token sees itself and those before it, as one op.
//!
//! qkv: (sample, token, 3·channel), a row holding q, k, v, each cut into heads. For each sample and head:
//! P = softmax(Q Kᵀ / √d) over the tokens not after the row's, y = P V. P is never stored: a task holds the rows of
//! one tile of queries against all keys that they see, and the second output keeps only log2 of each row's sum of
//! exponentials, (sample, head, token), from which the gradient makes P again (Dao, Fu, Ermon, Rudra, Ré:
//! FlashAttention, 2022).
//!
//! A whole row of scores is at hand, so no running maximum is corrected: the softmax is the plain one, and its order
//! of sums does not depend on the tiles. Sums over tokens are single chains in ascending order, which `gemm` goes on
//! with from tile to tile.

use super::*;
use crate::gemm::{Mat, Start};
use crate::real::{largest, sum_in_place, sum2};
use crate::simd::{Set, vectorised};
use crate::team::Parts;
use std::ops::Range;

#[derive(Clone, Copy, Debug)]
pub struct CausalAttention {
    pub heads: usize,
}

/// Queries of a tile. Half a tile of scores above the diagonal is wasted per tile: 32 of 256 tokens waste 11 %.
const QUERIES: usize = 32;
/// Rows of scores begin on cache lines, and vectors over them have no rest.
const LANES: usize = 16;

/// Sizes, and where a head's matrices lie.
#[derive(Clone, Copy)]
struct Sizes {
    samples: usize,
    tokens: usize,
    channels: usize,
    heads: usize,
    width: usize,
}

/// One head of one sample.
#[derive(Clone, Copy)]
struct Head {
    sizes: Sizes,
    sample: usize,
    head: usize,
}

impl CausalAttention {
    fn sizes(self, qkv: &Type) -> Sizes {
        let channels = qkv.shape[2] / 3;
        let (samples, tokens) = (qkv.shape[0], qkv.shape[1]);
        Sizes { samples, tokens, channels, heads: self.heads, width: channels / self.heads }
    }
}

impl Sizes {
    fn all_heads(self) -> usize {
        self.samples * self.heads
    }

    fn head(self, number: usize) -> Head {
        Head { sizes: self, sample: number / self.heads, head: number % self.heads }
    }

    fn tiles(self) -> usize {
        self.tokens.div_ceil(QUERIES)
    }

    fn queries(self, tile: usize) -> Range<usize> {
        tile * QUERIES..self.tokens.min((tile + 1) * QUERIES)
    }

    /// Floats of a tile's longest row.
    fn row(self) -> usize {
        self.tokens.next_multiple_of(LANES)
    }

    fn scale<F: Real>(self) -> F {
        F::ONE / F::of_usize(self.width).sqrt()
    }

    /// The scale for powers of 2 instead of e.
    fn scale2<F: Real>(self) -> F {
        self.scale::<F>() * F::of(std::f64::consts::LOG2_E)
    }
}

impl Head {
    /// First element of a token's q (0), k (1) or v (2) in qkv.
    fn part(self, which: usize, token: usize) -> usize {
        let s = self.sizes;
        ((self.sample * s.tokens + token) * 3 + which) * s.channels + self.head * s.width
    }

    fn output(self, token: usize) -> usize {
        (self.sample * self.sizes.tokens + token) * self.sizes.channels + self.head * self.sizes.width
    }

    fn sums(self, tokens: &Range<usize>) -> Range<usize> {
        let first = (self.sample * self.sizes.heads + self.head) * self.sizes.tokens;
        first + tokens.start..first + tokens.end
    }

    /// q (0), k (1) or v (2) from `token` on: (token, width).
    fn matrix<F>(self, qkv: &[F], which: usize, token: usize) -> Mat<'_, F> {
        Mat::rows(&qkv[self.part(which, token)..], 3 * self.sizes.channels)
    }
}

impl Rule for CausalAttention {
    const NAME: &'static str = "causal attention";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the input", "sample, token, 3·channel")?;
        let shape = &x[0].shape;
        if self.heads == 0 || !shape[2].is_multiple_of(3 * self.heads) {
            return Err(format!("axis 2 of the input {} must divide into q, k, v of {} heads", x[0], self.heads));
        }
        let out = Type::float(&[shape[0], shape[1], shape[2] / 3]);
        Ok(vec![out, Type::float(&[shape[0], self.heads, shape[1]])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let inputs = [node.inputs[0], node.outputs[0], node.outputs[1], dy];
        Ok(vec![Some(graph.apply1(Op::CausalAttentionGrad(CausalAttentionGrad(*self)), &node.path, &inputs)?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, sums, ..] = io.y;
        let (qkv, s, set) = (io.x[0], self.sizes(&io.types[0]), Set::best());
        let (y, sums) = (Parts::new(y), Parts::new(sums));
        let Work { team, rooms } = io.work;
        team.run_in(rooms, s.all_heads() * s.tiles(), |room, task| {
            // The longest tiles first: the last task of a run is what others wait for.
            let (head, tile) = (s.head(task % s.all_heads()), s.tiles() - 1 - task / s.all_heads());
            let queries = s.queries(tile);
            let (rows, seen) = (queries.len(), queries.end);
            let stride = seen.next_multiple_of(LANES);
            let room_for = QUERIES * (s.row() + s.width + 1);
            let (scores, rest) = take(&mut room.columns, room_for).split_at_mut(rows * stride);
            let (out, shares) = rest.split_at_mut(rows * s.width);
            let (q, k) = (head.matrix(qkv, 0, queries.start), head.matrix(qkv, 1, 0));
            F::gemm(compare(rows, seen, s.width, q, k), scores, stride, &mut room.pack);
            // SAFETY: a task alone has this head's sums of these queries.
            let sums = unsafe { sums.get(head.sums(&queries)) };
            let scores_rows = Rows { first: queries.start, stride };
            weights(set, scores_rows, scores, sums, shares, s.scale2());
            let v = head.matrix(qkv, 2, 0);
            F::gemm(mix(rows, seen, s.width, Mat::rows(scores, stride), v), out, s.width, &mut room.pack);
            for ((token, row), share) in queries.zip(out.chunks_exact(s.width.max(1))).zip(shares) {
                let at = head.output(token);
                // SAFETY: a task alone has this head's columns of these queries' rows.
                let y = unsafe { y.get(at..at + s.width) };
                y.iter_mut().zip(row).for_each(|(y, x)| *y = *x * *share);
            }
        });
    }
}

/// (rows, n) = A (rows, width) Bᵀ with B (n, width).
fn compare<'a, F>(rows: usize, n: usize, width: usize, a: Mat<'a, F>, b: Mat<'a, F>) -> Gemm<'a, F> {
    Gemm { m: rows, n, k: width, a, b: b.transposed(), start: Start::Zero }
}

/// (rows, width) = A (rows, n) B (n, width).
fn mix<'a, F>(rows: usize, n: usize, width: usize, a: Mat<'a, F>, b: Mat<'a, F>) -> Gemm<'a, F> {
    Gemm { m: rows, n: width, k: n, a, b, start: Start::Zero }
}

/// (width, n) += Aᵀ B with A (rows, width), B (rows, n).
fn add<'a, F>(rows: usize, n: usize, width: usize, a: Mat<'a, F>, b: Mat<'a, F>) -> Gemm<'a, F> {
    Gemm { m: width, n, k: rows, a: a.transposed(), b, start: Start::Go }
}

/// Scores behind the row's own token weigh nothing: their exponential is exactly 0.
#[inline(always)]
fn hide<F: Real>(row: &mut [F], token: usize) {
    row[token + 1..].fill(F::of(f64::NEG_INFINITY));
}

/// A tile of scores: its first row's token, and how far rows are apart.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    stride: usize,
}

vectorised! {
    /// Each row = 2^(scale2 · (row - its largest)). Also log2 of the sum of 2^(scale2 · row), and one over the row's sum.
    fn weights[F: Real](rows: Rows, scores: &mut [F], sums: &mut [F], shares: &mut [F], scale2: F) {
        let totals = sums.iter_mut().zip(shares);
        for ((token, row), (sum, share)) in (rows.first..).zip(scores.chunks_exact_mut(rows.stride)).zip(totals) {
            hide(row, token);
            let top = largest(row);
            let total = sum_in_place(row, |x| ((x - top) * scale2).exp2());
            *sum = top * scale2 + total.ln() * F::of(std::f64::consts::LOG2_E);
            *share = F::ONE / total;
        }
    }
}

/// dqkv. With dP = dy Vᵀ and dS = P (dP - rowsum(y dy)) / √d: dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dy. A task is one head:
/// its tiles follow one another, and dK and dV go on with their chains.
/// Inputs: qkv, y, log2 of the sums, dy.
#[derive(Clone, Debug)]
pub struct CausalAttentionGrad(pub CausalAttention);

impl Rule for CausalAttentionGrad {
    const NAME: &'static str = "causal attention gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let outputs = self.0.infer(&x[..1])?;
        expect(x, 1, "the output", &outputs[0].shape)?;
        expect(x, 2, "the sums", &outputs[1].shape)?;
        expect(x, 3, "the gradient", &outputs[0].shape)?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dqkv, ..] = io.y;
        let [qkv, y, sums, dy, ..] = io.x;
        let kept = Kept { y, sums, dy };
        let (s, set) = (self.0.sizes(&io.types[0]), Set::best());
        let dqkv = Parts::new(dqkv);
        let Work { team, rooms } = io.work;
        team.run_in(rooms, s.all_heads(), |room, number| {
            let head = s.head(number);
            let write = |which: usize, token: usize, value: &mut dyn Iterator<Item = F>| {
                let at = head.part(which, token);
                // SAFETY: a task alone has this head's columns.
                let to = unsafe { dqkv.get(at..at + s.width) };
                to.iter_mut().zip(value).for_each(|(to, x)| *to = x);
            };
            let (tile_floats, head_floats) = (QUERIES * s.row(), s.width * s.tokens);
            let columns = take(&mut room.columns, 2 * tile_floats + QUERIES * s.width + 2 * head_floats);
            let (scores, rest) = columns.split_at_mut(tile_floats);
            let (dscores, rest) = rest.split_at_mut(tile_floats);
            let (dq, rest) = rest.split_at_mut(QUERIES * s.width);
            // (width, token): this way the products read scores in place.
            let (dk, dv) = rest.split_at_mut(head_floats);
            dk.fill(F::ZERO);
            dv.fill(F::ZERO);
            let pack = &mut room.pack;
            for tile in 0..s.tiles() {
                let queries = s.queries(tile);
                let (rows, seen) = (queries.len(), queries.end);
                let stride = seen.next_multiple_of(LANES);
                let (q, k, v) = (head.matrix(qkv, 0, queries.start), head.matrix(qkv, 1, 0), head.matrix(qkv, 2, 0));
                let dy_tile = Mat::rows(&dy[head.output(queries.start)..], s.channels);
                F::gemm(compare(rows, seen, s.width, q, k), scores, stride, pack);
                F::gemm(compare(rows, seen, s.width, dy_tile, v), dscores, stride, pack);
                slopes(set, head, queries.clone(), scores, dscores, kept);
                let (p, ds) = (Mat::rows(&*scores, stride), Mat::rows(&*dscores, stride));
                F::gemm(mix(rows, seen, s.width, ds, k), dq, s.width, pack);
                F::gemm(add(rows, seen, s.width, q, ds), dk, s.tokens, pack);
                F::gemm(add(rows, seen, s.width, dy_tile, p), dv, s.tokens, pack);
                for (token, row) in queries.zip(dq.chunks_exact(s.width.max(1))) {
                    write(0, token, &mut row.iter().copied());
                }
            }
            for token in 0..s.tokens {
                write(1, token, &mut dk[token..].iter().step_by(s.tokens).copied());
                write(2, token, &mut dv[token..].iter().step_by(s.tokens).copied());
            }
        });
    }
}

vectorised! {
    /// scores and dP become P and dS; both have rows that are `stride` apart.
    fn slopes[F: Real](head: Head, queries: Range<usize>, scores: &mut [F], dscores: &mut [F], kept: Kept<'_, F>) {
        let s = head.sizes;
        let stride = queries.end.next_multiple_of(LANES);
        let (scale, scale2) = (s.scale::<F>(), s.scale2::<F>());
        let rows = scores.chunks_exact_mut(stride).zip(dscores.chunks_exact_mut(stride));
        for ((token, sum), (row, drow)) in queries.clone().zip(&kept.sums[head.sums(&queries)]).zip(rows) {
            let at = head.output(token);
            let along = sum2(&kept.y[at..at + s.width], &kept.dy[at..at + s.width], |y, dy| y * dy);
            hide(row, token);
            for (x, dx) in row.iter_mut().zip(drow) {
                *x = (*x * scale2 - *sum).exp2();
                *dx = *x * (*dx - along) * scale;
            }
        }
    }
}

/// What the gradient reads besides qkv.
#[derive(Clone, Copy)]
struct Kept<'a, F> {
    y: &'a [F],
    sums: &'a [F],
    dy: &'a [F],
}
