//! y = x / (1 - p) with probability 1 - p, else 0; it is its own gradient rule.
//!
//! x: (sample, …). The mask is a function of (seed, path, step, slot of the sample, element within the
//! sample), so it is the same on every worker, is drawn again by the gradient and is never stored.

use super::*;
use crate::philox::{COUNTERS, Stream, unit};
use crate::simd::{Set, vectorised};

#[derive(Clone, Debug)]
pub struct Dropout {
    pub p: f32,
}

impl Rule for Dropout {
    const NAME: &'static str = "dropout";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        if !(0.0..1.0).contains(&self.p) {
            return Err(format!("the probability {} is not in 0 up to 1", self.p));
        }
        if x[0].shape.is_empty() {
            return Err("the input is a scalar, but needs axes (sample, …)".into());
        }
        Ok(vec![x[0].clone()])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None]) };
        Ok(vec![Some(graph.apply1(Op::Dropout(self.clone()), &node.path, &[dy])?)])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y, ..] = io.y;
        let stream = Stream::new(io.key.seed, io.path);
        let keep = F::ONE / F::of(1.0 - self.p as f64);
        let step = [io.key.step as u32, (io.key.step >> 32) as u32];
        let width = (y.len() / io.types[0].shape[0].max(1)).max(1);
        let (x, slots, set) = (io.x[0], io.key.slots, Set::best());
        io.work.team.chunks(y, each::CHUNK, |_, i, y| {
            let mut at = i * each::CHUNK;
            let end = at + y.len();
            let mut rest = y;
            while at < end {
                let (sample, element) = (at / width, at % width);
                let (y, behind) = rest.split_at_mut((width - element).min(end - at));
                let counter = [0, slots[sample] as u32, step[0], step[1]];
                drop(set, Mask { stream, counter, p: self.p, element }, keep, &x[at..][..y.len()], y);
                at += y.len();
                rest = behind;
            }
        });
    }
}

/// The random numbers of one sample from `element` on: word i of the counters that begin at `counter`.
#[derive(Clone, Copy)]
struct Mask {
    stream: Stream,
    counter: [u32; 4],
    p: f32,
    element: usize,
}

const WORDS: usize = 4 * COUNTERS;

vectorised! {
    fn drop[F: Real](mask: Mask, keep: F, x: &[F], y: &mut [F]) {
        let mut at = 0;
        while at < y.len() {
            // Words come in blocks, of which a chunk or a sample may begin in the middle.
            let (block, skip) = ((mask.element + at) / WORDS, (mask.element + at) % WORDS);
            let [_, slot, low, high] = mask.counter;
            let words = mask.stream.block([(COUNTERS * block) as u32, slot, low, high]);
            let words = &words[skip..];
            for ((y, x), word) in y[at..].iter_mut().zip(&x[at..]).zip(words) {
                *y = if unit(*word) < mask.p { F::ZERO } else { *x * keep };
            }
            at += words.len();
        }
    }
}
