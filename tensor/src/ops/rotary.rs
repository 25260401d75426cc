//! Rotary positions: each pair of a head's channels is turned by an angle that grows with the token's place (Su et al.,
//! RoFormer, 2021, arXiv:2104.09864), so that a product of query and key depends on their distance alone.
//!
//! qkv: (sample, token, 3·channel) as attention takes it; queries and keys are turned, values stay. Pair i of a head of
//! d channels is (i, i + d/2), as in GPT-NeoX and Llama; token t turns it by t · base^(-2i/d). The gradient turns back.

use super::*;
use crate::simd::{Set, vectorised};
use std::sync::Arc;

#[derive(Clone, Debug)]
pub struct Rotary {
    pub heads: usize,
    /// Cosine and sine, (token, pair), rounded once from the scalars of the `libm` crate.
    pub turns: Arc<[(f64, f64)]>,
    /// Whether it turns back: a gradient.
    pub back: bool,
}

impl Rotary {
    /// For `tokens` places and heads of `width` channels, an even number. `base` is usually 10,000.
    pub fn new(heads: usize, width: usize, tokens: usize, base: f64) -> Rotary {
        let pairs = width / 2;
        let turn = |at: usize| {
            let (token, pair) = (at / pairs, at % pairs);
            let angle = token as f64 * libm::pow(base, -2.0 * pair as f64 / width as f64);
            (libm::cos(angle), libm::sin(angle))
        };
        Rotary { heads, turns: (0..tokens * pairs).map(turn).collect(), back: false }
    }
}

impl Rule for Rotary {
    const NAME: &'static str = "rotary positions";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        expect_axes(x, 0, "the input", "sample, token, 3·channel")?;
        let (tokens, channels) = (x[0].shape[1], x[0].shape[2]);
        if self.heads == 0 || channels % (6 * self.heads) != 0 {
            return Err(format!(
                "axis 2 (3·channel) of the input {} must be a multiple of 3 · {} heads · 2 channels of a pair",
                x[0], self.heads
            ));
        }
        let pairs = channels / 6 / self.heads;
        if self.turns.len() != tokens * pairs {
            return Err(format!("turns for {} pairs of tokens and channels, the input is {}", self.turns.len(), x[0]));
        }
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        let op = Rotary { back: !self.back, ..self.clone() };
        Ok(vec![Some(graph.apply1(Op::Rotary(op), &node.path, &[dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let (x, set) = (io.x[0], Set::best());
        let (tokens, channels) = (io.types[0].shape[1], io.types[0].shape[2]);
        if y.is_empty() {
            return;
        }
        let Work { team, rooms } = io.work;
        // (token, cosines then sines).
        let pairs = channels / 6 / self.heads;
        let mut table = std::mem::take(&mut rooms[0].parts);
        let turns = take(&mut table, 2 * self.turns.len());
        for (to, from) in turns.chunks_exact_mut(2 * pairs).zip(self.turns.chunks_exact(pairs)) {
            let (cosines, sines) = to.split_at_mut(pairs);
            for ((cosine, sine), turn) in cosines.iter_mut().zip(sines).zip(from) {
                (*cosine, *sine) = (F::of(turn.0), F::of(if self.back { -turn.1 } else { turn.1 }));
            }
        }
        let (turns, rows) = (&*turns, each::rows_of_task(channels));
        team.chunks(y, rows * channels, |_, i, y| {
            let x = &x[i * rows * channels..][..y.len()];
            turn_rows(set, Turns { turns, pairs, tokens, channels, first: i * rows }, x, y);
        });
        rooms[0].parts = table;
    }
}

impl Rotary {
    /// Of a row: q, k, v.
    pub(crate) fn channels(&self, tokens: usize) -> usize {
        self.turns.len() / tokens.max(1) * 6 * self.heads
    }

    /// y (row, 3·channel) = x turned, each row by its own place. `table` is room for the rows' turns.
    pub(crate) fn turn_at<F: Real>(&self, places: &[usize], x: &[F], y: &mut [F], table: &mut Vec<F>) {
        let channels = y.len() / places.len().max(1);
        let pairs = channels / 6 / self.heads;
        let turns = take(table, 2 * pairs * places.len());
        for (to, place) in turns.chunks_exact_mut(2 * pairs).zip(places) {
            let (cosines, sines) = to.split_at_mut(pairs);
            for ((cosine, sine), turn) in cosines.iter_mut().zip(sines).zip(&self.turns[place * pairs..]) {
                (*cosine, *sine) = (F::of(turn.0), F::of(turn.1));
            }
        }
        turn_rows(Set::best(), Turns { turns, pairs, tokens: places.len(), channels, first: 0 }, x, y);
    }
}

/// The turns of rows from `first` on.
#[derive(Clone, Copy)]
struct Turns<'a, F> {
    turns: &'a [F],
    pairs: usize,
    tokens: usize,
    channels: usize,
    first: usize,
}

vectorised! {
    fn turn_rows[F: Real](all: Turns<'_, F>, x: &[F], y: &mut [F]) {
        let Turns { turns, pairs, tokens, channels, first } = all;
        for (row, (y, x)) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).enumerate() {
            let turns = &turns[(first + row) % tokens * 2 * pairs..][..2 * pairs];
            let (cosines, sines) = turns.split_at(pairs);
            // Queries and keys, head after head.
            let (turned, kept) = y.split_at_mut(channels / 3 * 2);
            for (y, x) in turned.chunks_exact_mut(2 * pairs).zip(x.chunks_exact(2 * pairs)) {
                let ((y0, y1), (x0, x1)) = (y.split_at_mut(pairs), x.split_at(pairs));
                for i in 0..pairs {
                    y0[i] = x0[i] * cosines[i] - x1[i] * sines[i];
                    y1[i] = x1[i] * cosines[i] + x0[i] * sines[i];
                }
            }
            kept.copy_from_slice(&x[channels / 3 * 2..]);
        }
    }
}
