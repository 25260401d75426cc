//! Multi-head attention in which a token sees itself and those before it, as one op.
//!
//! qkv: (sample, token, 3·channel), a row holding q, k, v, each cut into heads. For each sample and head:
//! P = softmax(Q Kᵀ / √d) over the tokens not after the row's, y = P V. P: (sample, head, token, token) is
//! the second output, kept for the gradient.

use super::*;
use crate::gemm::{Mat, Start};
use crate::real::{sum, sum2};

#[derive(Clone, Copy, Debug)]
pub struct CausalAttention {
    pub heads: usize,
}

/// Sizes, and where a head's matrices lie.
#[derive(Clone, Copy)]
struct Sizes {
    samples: usize,
    tokens: usize,
    channels: usize,
    heads: usize,
    width: usize,
}

impl CausalAttention {
    fn sizes(self, qkv: &Type) -> Sizes {
        let channels = qkv.shape[2] / 3;
        let (samples, tokens) = (qkv.shape[0], qkv.shape[1]);
        Sizes { samples, tokens, channels, heads: self.heads, width: channels / self.heads }
    }
}

impl Sizes {
    fn each(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.samples).flat_map(move |s| (0..self.heads).map(move |h| (s, h)))
    }

    /// First element of q (0), k (1) or v (2) of a head in qkv.
    fn part(self, (sample, head): (usize, usize), which: usize) -> usize {
        (sample * self.tokens * 3 + which) * self.channels + head * self.width
    }

    fn output(self, (sample, head): (usize, usize)) -> usize {
        sample * self.tokens * self.channels + head * self.width
    }

    fn square(self) -> usize {
        self.tokens * self.tokens
    }

    fn scale<F: Real>(self) -> F {
        F::ONE / F::of_usize(self.width).sqrt()
    }

    /// (tokens, width) = A (tokens, tokens) B (tokens, width).
    fn mix<'a, F>(self, a: Mat<'a, F>, b: Mat<'a, F>) -> Gemm<'a, F> {
        Gemm { m: self.tokens, n: self.width, k: self.tokens, a, b, start: Start::Zero }
    }

    /// (tokens, tokens) = A (tokens, width) Bᵀ with B (tokens, width).
    fn compare<'a, F>(self, a: Mat<'a, F>, b: Mat<'a, F>) -> Gemm<'a, F> {
        Gemm { m: self.tokens, n: self.tokens, k: self.width, a, b: b.transposed(), start: Start::Zero }
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
        Ok(vec![out, Type::float(&[shape[0], self.heads, shape[1], shape[1]])])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let inputs = [node.inputs[0], node.outputs[1], dy];
        Ok(vec![Some(graph.apply1(Op::CausalAttentionGrad(CausalAttentionGrad(*self)), &node.path, &inputs)?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, probs, ..] = io.y;
        let (qkv, s) = (io.x[0], self.sizes(&io.types[0]));
        let part = |at, which| Mat::rows(&qkv[s.part(at, which)..], 3 * s.channels);
        for (at, probs) in s.each().zip(probs.chunks_exact_mut(s.square().max(1))) {
            io.work.gemm(s.compare(part(at, 0), part(at, 1)), probs, s.tokens);
            for (token, row) in probs.chunks_exact_mut(s.tokens).enumerate() {
                let (seen, unseen) = row.split_at_mut(token + 1);
                softmax(seen, s.scale());
                unseen.fill(F::ZERO);
            }
            let product = s.mix(Mat::rows(probs, s.tokens), part(at, 2));
            io.work.gemm(product, &mut y[s.output(at)..], s.channels);
        }
    }
}

/// row = softmax(scale · row).
fn softmax<F: Real>(row: &mut [F], scale: F) {
    let mut top = row[0];
    for x in row.iter() {
        top = if *x > top { *x } else { top };
    }
    row.iter_mut().for_each(|x| *x = ((*x - top) * scale).exp());
    let share = F::ONE / sum(row, |x| x);
    row.iter_mut().for_each(|x| *x *= share);
}

/// dqkv. With dP = dy Vᵀ and dS = P (dP - rowsum(P dP)) / √d: dQ = dS K, dK = dSᵀ Q, dV = Pᵀ dy.
/// Inputs: qkv, P, dy.
#[derive(Clone, Debug)]
pub struct CausalAttentionGrad(pub CausalAttention);

impl Rule for CausalAttentionGrad {
    const NAME: &'static str = "causal attention gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let outputs = self.0.infer(&x[..1])?;
        expect(x, 1, "the probabilities", &outputs[1].shape)?;
        expect(x, 2, "the gradient", &outputs[0].shape)?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dqkv, ..] = io.y;
        let [qkv, probs, dy, ..] = io.x;
        let (s, row) = (self.0.sizes(&io.types[0]), 3 * self.0.sizes(&io.types[0]).channels);
        let Room { pack, columns, .. } = &mut io.work.rooms[0];
        let part = |at, which| Mat::rows(&qkv[s.part(at, which)..], row);
        for (at, probs) in s.each().zip(probs.chunks_exact(s.square().max(1))) {
            let dy = Mat::rows(&dy[s.output(at)..], s.channels);
            let ds = take(columns, s.square());
            F::gemm(s.compare(dy, part(at, 2)), ds, s.tokens, pack);
            for (ds, p) in ds.chunks_exact_mut(s.tokens).zip(probs.chunks_exact(s.tokens)) {
                let along = sum2(ds, p, |dp, p| dp * p);
                ds.iter_mut().zip(p).for_each(|(ds, p)| *ds = *p * (*ds - along) * s.scale());
            }
            let (ds, p) = (Mat::rows(&*ds, s.tokens), Mat::rows(probs, s.tokens));
            for (which, product) in
                [s.mix(ds, part(at, 1)), s.mix(ds.transposed(), part(at, 0)), s.mix(p.transposed(), dy)]
                    .into_iter()
                    .enumerate()
            {
                F::gemm(product, &mut dqkv[s.part(at, which)..], row, pack);
            }
        }
    }
}
