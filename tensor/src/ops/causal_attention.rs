//! Multi-head attention in which a token sees itself and those before it, as one op.
//!
//! qkv: (sample, token, 3·channel), a row holding q, k, v, each cut into heads. For each sample and head:
//! P = softmax(Q Kᵀ / √d) over the tokens not after the row's, y = P V. P is never stored: a task holds the rows of
//! one tile of queries against all keys that they see, and the second output keeps only log2 of each row's sum of
//! exponentials, (sample, head, token), from which the gradient makes P again (Dao, Fu, Ermon, Rudra, Ré:
//! FlashAttention, 2022).
//!
//! A whole row of scores is at hand, so no running maximum is corrected: the softmax is the plain one, and its order
//! of sums does not depend on the tiles. Sums over tokens are single chains in ascending order, which go on from tile
//! to tile. A task first copies its head's keys and values from between those of other heads into rows and panels of
//! whole vectors, so that `tile` reads them in place.

use super::*;
use crate::gemm::{Mat, Start};
use crate::real::{Rows, largest, sum_in_place, sum2};
use crate::simd::{Set, vectorised};
use crate::team::Parts;
use crate::tile::{LANES, Product};
use std::ops::Range;

mod cached;

pub(crate) use cached::{Cache, Part, Shape as CacheShape, Tiles};

#[derive(Clone, Copy, Debug)]
pub struct CausalAttention {
    pub heads: usize,
}

/// Queries of a tile. Of each, half a tile of scores above the diagonal is wasted, 6 % of 256 tokens (32: 3 % slower).
const QUERIES: usize = 16;
/// Queries of a task of the forward pass: as many use one copy of the keys and values.
const GROUP: usize = 16 * QUERIES;
/// Keys of a panel, (width, PANEL): as many columns as a product keeps in registers.
const PANEL: usize = 2 * LANES;

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

    /// Queries `first` to `end`, tile by tile.
    fn tiles(self, queries: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        queries.clone().step_by(QUERIES).map(move |first| first..queries.end.min(first + QUERIES))
    }

    /// A row of channels in whole vectors.
    fn padded(self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    /// Operands of all tokens' rows, lengthwise.
    fn rows_len<F: Real>(self, tokens: usize) -> usize {
        tokens * self.width.div_ceil(F::PER)
    }

    fn panels_len<F: Real>(self) -> usize {
        self.rows_len::<F>(self.tokens.next_multiple_of(PANEL))
    }

    /// Operands of a matrix of tokens, crosswise.
    fn stack_len<F: Real>(self, tokens: usize) -> usize {
        tokens.div_ceil(F::PER) * self.padded()
    }

    /// Floats of a tile of scores with the longest rows.
    fn scores_len(self) -> usize {
        QUERIES * stride(self.tokens)
    }

    fn scale<F: Real>(self) -> F {
        F::ONE / F::of_usize(self.width).sqrt()
    }

    /// The scale for powers of 2 instead of e.
    fn scale2<F: Real>(self) -> F {
        self.scale::<F>() * F::of(std::f64::consts::LOG2_E)
    }
}

/// From row to row of scores against `seen` keys: whole vectors, and one more, lest rows a multiple of 4 KiB apart
/// take each other's place in the first-level cache.
fn stride(seen: usize) -> usize {
    seen.next_multiple_of(LANES) + LANES
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

    /// q (0), k (1) or v (2) of some tokens: their first element on, (token, 3·channel).
    fn rows<F>(self, qkv: &[F], which: usize, tokens: Range<usize>) -> Rows<'_, F> {
        let data = qkv.get(self.part(which, tokens.start)..).unwrap_or(&[]);
        Rows { data, stride: 3 * self.sizes.channels, count: tokens.len(), width: self.sizes.width }
    }

    /// The same of y or dy, (token, channel).
    fn output_rows<F>(self, y: &[F], tokens: Range<usize>) -> Rows<'_, F> {
        let data = &y[self.output(tokens.start)..];
        Rows { data, stride: self.sizes.channels, count: tokens.len(), width: self.sizes.width }
    }
}

/// Rows as operands along them: where they lie if they are operands, else in `room`.
fn lengthwise<'a, F: Real>(set: Set, rows: Rows<'a, F>, room: &'a mut [F::Operand]) -> Rows<'a, F::Operand> {
    let (width, count) = (rows.width.div_ceil(F::PER), rows.count);
    if let Some(data) = F::in_place(rows.data) {
        return Rows { data, stride: rows.stride, count, width };
    }
    for (row, to) in room.chunks_exact_mut(width.max(1)).take(count).enumerate() {
        F::lengthwise(set, rows.get(row), to);
    }
    Rows { data: room, stride: width, count, width }
}

/// Rows transposed, as panels of (operands along a row, PANEL) with zeros behind the last row.
fn panels<F: Real>(set: Set, rows: Rows<'_, F>, to: &mut [F::Operand]) {
    let of_panel = (rows.width.div_ceil(F::PER) * PANEL).max(1);
    for (first, to) in (0..rows.count).step_by(PANEL).zip(to.chunks_exact_mut(of_panel)) {
        let (data, count) = (&rows.data[first * rows.stride..], PANEL.min(rows.count - first));
        F::panel(set, Rows { data, count, ..rows }, PANEL, to);
    }
}

/// Rows of scores as operands across them, transposed: where they lie if they are operands, else in `room`.
fn transposed<'a, F: Real>(set: Set, rows: Rows<'a, F>, room: &'a mut [F::Operand]) -> Mat<'a, F::Operand> {
    if let Some(data) = F::in_place(rows.data) {
        return Mat::rows(data, rows.stride).transposed();
    }
    F::crosswise(set, rows, rows.width, room);
    Mat::rows(&*room, rows.width).transposed()
}

/// The next `len` elements of a room.
fn cut<'a, F>(rest: &mut &'a mut [F], len: usize) -> &'a mut [F] {
    let (first, behind) = std::mem::take(rest).split_at_mut(len);
    *rest = behind;
    first
}

/// scores (rows, seen in whole vectors) = A Bᵀ, with A (rows, width) and the panels of B.
fn compare<F: Real>(a: Rows<'_, F::Operand>, panels: &[F::Operand], seen: usize, scores: &mut [F]) {
    let (columns, stride) = (seen.next_multiple_of(LANES), stride(seen));
    let (rows, width, a) = (a.count, a.width, Mat::rows(a.data, a.stride));
    for (first, b) in (0..columns).step_by(PANEL).zip(panels.chunks_exact(PANEL * width)) {
        let columns = PANEL.min(columns - first);
        let product = Product { rows, k: width, columns, a, b, b_stride: PANEL, start: Start::Zero };
        F::tile(product, &mut scores[first..], stride);
    }
}

/// What queries see of a head: keys as panels, values as operands across tokens.
#[derive(Clone, Copy)]
struct Seen<'a, F: Real> {
    keys: &'a [F::Operand],
    values: &'a [F::Operand],
}

/// What one tile of queries is computed in.
struct TileRoom<'a, F: Real> {
    scores: &'a mut [F],
    out: &'a mut [F],
    shares: &'a mut [F],
    along: &'a mut [F::Operand],
    last: &'a mut [F::Operand],
}

/// A tile of queries, at most QUERIES: room.out (query, padded) = the weighted values, not yet times room.shares, one
/// over the weights' sum. Also log2 of the sums.
fn attend<F: Real>(
    set: Set,
    s: Sizes,
    (queries, q): (Range<usize>, Rows<'_, F>),
    Seen { keys, values }: Seen<'_, F>,
    sums: &mut [F],
    room: &mut TileRoom<'_, F>,
) {
    let TileRoom { scores, out, shares, along, last } = room;
    let (rows, seen, padded) = (queries.len(), queries.end, s.padded());
    compare(lengthwise(set, q, along), keys, seen, scores);
    weights(set, queries.clone(), scores, sums, shares, s.scale2());
    let p = lengthwise(set, Rows { data: scores, stride: stride(seen), count: rows, width: seen }, along);
    let (a, k) = (Mat::rows(p.data, p.stride), p.width);
    let product = Product { rows, k, columns: padded, a, b: values, b_stride: padded, start: Start::Zero };
    match all(set, &values[queries.start / F::PER * padded..k * padded], F::is_finite) {
        true => F::tile(product, out, padded),
        // Weights of 0 would make a NaN of what their token may not see: here each row ends at its own.
        false => (0..rows).for_each(|row| {
            let (out, k) = (&mut out[row * padded..], queries.start + row + 1);
            let end = k.div_ceil(F::PER) - 1;
            let a = Mat::rows(&p.data[row * p.stride..], p.stride);
            let product = Product { rows: 1, a, ..product };
            last.copy_from_slice(&values[end * padded..][..padded]);
            if k % F::PER != 0 {
                last.iter_mut().for_each(|v| *v = F::only_first(*v));
            }
            let start = if end == 0 { Start::Zero } else { Start::Go };
            if end > 0 {
                F::tile(Product { k: end, ..product }, out, padded);
            }
            let a = Mat::rows(&a.data[end..], a.row);
            F::tile(Product { k: 1, a, b: last, start, ..product }, out, padded);
        }),
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
        if y.is_empty() {
            return sums.fill(F::ZERO);
        }
        let (y, sums) = (Parts::new(y), Parts::new(sums));
        let (width, padded) = (s.width, s.padded());
        let groups = s.tokens.div_ceil(GROUP);
        let Work { team, rooms } = io.work;
        team.run_in(rooms, s.all_heads() * groups, |room, task| {
            // The longest first: the last task of a run is what others wait for.
            let (head, group) = (s.head(task % s.all_heads()), groups - 1 - task / s.all_heads());
            let group = group * GROUP..s.tokens.min((group + 1) * GROUP);
            let mut rest = take(&mut room.columns, s.scores_len() + QUERIES * (padded + 1));
            let (scores, out, shares) =
                (cut(&mut rest, s.scores_len()), cut(&mut rest, QUERIES * padded), cut(&mut rest, QUERIES));
            let (panels_len, stack_len) = (s.panels_len::<F>(), s.stack_len::<F>(s.tokens));
            let along = s.rows_len::<F>(s.tokens).max(s.scores_len());
            let mut rest = take(&mut room.operands, panels_len + stack_len + along + padded);
            let (keys, values) = (cut(&mut rest, panels_len), cut(&mut rest, stack_len));
            let (along, last) = (cut(&mut rest, along), cut(&mut rest, padded));
            panels(set, head.rows(qkv, 1, 0..group.end), keys);
            F::crosswise(set, head.rows(qkv, 2, 0..group.end), padded, values);
            let seen = Seen { keys, values };
            let mut room = TileRoom { scores, out, shares, along, last };
            for queries in s.tiles(group) {
                // SAFETY: a task alone has this head's sums of these queries.
                let sums = unsafe { sums.get(head.sums(&queries)) };
                attend(set, s, (queries.clone(), head.rows(qkv, 0, queries.clone())), seen, sums, &mut room);
                for ((token, row), share) in queries.zip(room.out.chunks_exact(padded)).zip(&*room.shares) {
                    let at = head.output(token);
                    // SAFETY: a task alone has this head's columns of these queries' rows.
                    let y = unsafe { y.get(at..at + width) };
                    y.iter_mut().zip(row).for_each(|(y, x)| *y = *x * *share);
                }
            }
        });
    }
}

vectorised! {
    fn all[T: Clone](xs: &[T], is: impl Fn(T) -> bool) -> bool {
        // Not the iterator's `all`, which stops at the first and is not vectorised.
        xs.iter().fold(true, |all, x| all & is(x.clone()))
    }
}

/// Scores behind the row's own token weigh nothing: their exponential is exactly 0.
#[inline(always)]
fn hide<F: Real>(row: &mut [F], token: usize) {
    row[token + 1..].fill(F::of(f64::NEG_INFINITY));
}

vectorised! {
    /// Each row = 2^(scale2 · (row - its largest)). Also log2 of the sum of 2^(scale2 · row), and one over the row's sum.
    fn weights[F: Real](queries: Range<usize>, scores: &mut [F], sums: &mut [F], shares: &mut [F], scale2: F) {
        let stride = stride(queries.end);
        let totals = sums.iter_mut().zip(shares.iter_mut());
        for ((token, row), (sum, share)) in queries.zip(scores.chunks_exact_mut(stride)).zip(totals) {
            let row = &mut row[..stride - LANES];
            hide(row, token);
            let top = largest(row);
            let total = sum_in_place(row, |x| ((x - top) * scale2).exp2());
            (*sum, *share) = (top * scale2, total);
        }
        // The rows' ends all at once: a logarithm and a division take as long for sixteen as for one.
        for (sum, share) in sums.iter_mut().zip(shares) {
            *sum += share.ln() * F::of(std::f64::consts::LOG2_E);
            *share = F::ONE / *share;
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
        if y.is_empty() {
            return;
        }
        let dqkv = Parts::new(dqkv);
        let (width, padded) = (s.width, s.padded());
        let Work { team, rooms } = io.work;
        team.run_in(rooms, s.all_heads(), |room, number| {
            let head = s.head(number);
            let write = |which: usize, tokens: Range<usize>, rows: &[F]| {
                for (token, row) in tokens.zip(rows.chunks_exact(padded)) {
                    let at = head.part(which, token);
                    // SAFETY: a task alone has this head's columns.
                    unsafe { dqkv.get(at..at + width) }.copy_from_slice(&row[..width]);
                }
            };
            let (of_head, of_tile) = (s.tokens * padded, QUERIES * padded);
            let mut rest = take(&mut room.columns, 2 * of_head + 2 * s.scores_len() + of_tile);
            let [dk, dv] = std::array::from_fn(|_| cut(&mut rest, of_head));
            let [scores, dscores] = std::array::from_fn(|_| cut(&mut rest, s.scores_len()));
            let dq = cut(&mut rest, of_tile);
            let (panels_len, of_head, of_tile) =
                (s.panels_len::<F>(), s.stack_len::<F>(s.tokens), s.stack_len::<F>(QUERIES));
            let along = s.rows_len::<F>(s.tokens).max(s.scores_len());
            let all = 2 * panels_len + of_head + 2 * of_tile + along + s.scores_len();
            let mut rest = take(&mut room.operands, all);
            let [keys, values] = std::array::from_fn(|_| cut(&mut rest, panels_len));
            let k = cut(&mut rest, of_head);
            let [q, dy] = std::array::from_fn(|_| cut(&mut rest, of_tile));
            let [along, across] = [along, s.scores_len()].map(|len| cut(&mut rest, len));
            panels(set, head.rows(qkv, 1, 0..s.tokens), keys);
            F::crosswise(set, head.rows(qkv, 1, 0..s.tokens), padded, k);
            panels(set, head.rows(qkv, 2, 0..s.tokens), values);
            dk.fill(F::ZERO);
            dv.fill(F::ZERO);
            for queries in s.tiles(0..s.tokens) {
                let (rows, seen) = (queries.len(), queries.end);
                F::crosswise(set, head.rows(qkv, 0, queries.clone()), padded, q);
                F::crosswise(set, head.output_rows(kept.dy, queries.clone()), padded, dy);
                compare(lengthwise(set, head.rows(qkv, 0, queries.clone()), along), keys, seen, scores);
                compare(lengthwise(set, head.output_rows(kept.dy, queries.clone()), along), values, seen, dscores);
                slopes(set, head, queries.clone(), scores, dscores, kept);
                let of = |data| Rows { data, stride: stride(seen), count: rows, width: seen };
                let ds = lengthwise(set, of(&*dscores), along);
                let (a, links) = (Mat::rows(ds.data, ds.stride), ds.width);
                let to_rows =
                    Product { rows, k: links, columns: padded, a, b: k, b_stride: padded, start: Start::Zero };
                F::tile(to_rows, dq, padded);
                let to_keys = Product { rows: seen, k: rows.div_ceil(F::PER), start: Start::Go, ..to_rows };
                let ds = transposed(set, of(&*dscores), across);
                F::tile(Product { a: ds, b: q, ..to_keys }, dk, padded);
                let p = transposed(set, of(&*scores), across);
                F::tile(Product { a: p, b: dy, ..to_keys }, dv, padded);
                write(0, queries, dq);
            }
            write(1, 0..s.tokens, dk);
            write(2, 0..s.tokens, dv);
        });
    }
}

vectorised! {
    /// scores and dP become P and dS; both have rows that are `stride` apart.
    fn slopes[F: Real](head: Head, queries: Range<usize>, scores: &mut [F], dscores: &mut [F], kept: Kept<'_, F>) {
        let s = head.sizes;
        let stride = stride(queries.end);
        let (scale, scale2) = (s.scale::<F>(), s.scale2::<F>());
        let rows = scores.chunks_exact_mut(stride).zip(dscores.chunks_exact_mut(stride));
        for ((token, sum), (row, drow)) in queries.clone().zip(&kept.sums[head.sums(&queries)]).zip(rows) {
            let at = head.output(token);
            let along = sum2(&kept.y[at..at + s.width], &kept.dy[at..at + s.width], |y, dy| y * dy);
            let row = &mut row[..stride - LANES];
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
