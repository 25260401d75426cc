//! y = x / (1 - p) with probability 1 - p, else 0; it is its own gradient rule.
//!
//! x: (sample, …). The mask is a function of (seed, path, step, slot of the sample, element within the
//! sample), so it is the same on every worker, is drawn again by the gradient and is never stored.

use super::*;
use crate::philox::{Stream, unit};

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
        let samples = io.types[0].shape[0];
        let width = (y.len() / samples.max(1)).max(1);
        for (sample, (y, x)) in y.chunks_exact_mut(width).zip(io.x[0].chunks_exact(width)).enumerate() {
            let slot = io.key.slots[sample] as u32;
            for (i, (y, x)) in (0u32..).zip(y.chunks_mut(4).zip(x.chunks(4))) {
                let words = stream.words([i, slot, step[0], step[1]]);
                for ((y, x), word) in y.iter_mut().zip(x).zip(words) {
                    *y = if unit(word) < self.p { F::ZERO } else { *x * keep };
                }
            }
        }
    }
}
