//! Several elementwise functions as one loop: a captured graph's neighbours, run piece by piece.
//!
//! A piece of 256 elements goes through all functions before the next one does, so what is between them stays in the
//! first-level cache and never meets memory. Each function is the one that runs alone (`pointwise::eval`), element by
//! element: the bits are those of the functions one after the other.

use super::pointwise::{Each, Lane, eval};
use super::walk::{self, Walk};
use super::*;
use crate::simd::Set;

#[derive(Clone, Debug)]
pub struct Fused {
    /// Of all outputs, and of everything between.
    pub shape: Vec<usize>,
    pub steps: Vec<FusedStep>,
    /// Which steps are outputs: one to three.
    pub outputs: Vec<usize>,
}

#[derive(Clone, Debug)]
pub struct FusedStep {
    pub f: Each,
    /// As many as the function takes.
    pub x: [FusedInput; 3],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedInput {
    /// Of the node, repeated to the shape.
    Given(usize),
    /// An earlier step.
    Step(usize),
    Nothing,
}

/// Most steps: what a piece of each takes together is 32 KiB of f64.
pub const FUSED_STEPS_MAX: usize = 16;
/// Most outputs.
pub const FUSED_OUTPUTS_MAX: usize = 3;
const PIECE: usize = 256;

impl Rule for Fused {
    const NAME: &'static str = "fused";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        assert!(self.steps.len() <= FUSED_STEPS_MAX && (1..=FUSED_OUTPUTS_MAX).contains(&self.outputs.len()));
        for ty in x {
            let shape = walk::broadcast_shape(&[&ty.shape, &self.shape])?;
            if shape != self.shape {
                return Err(format!("{ty} does not broadcast to {:?}", self.shape));
            }
        }
        Ok(vec![Type::float(&self.shape); self.outputs.len()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [y0, y1, y2, ..] = io.y;
        let shapes: [&[usize]; IO_MAX] = std::array::from_fn(|i| io.types.get(i).map_or(&[][..], |ty| &ty.shape));
        let all = Loop { fused: self, walk: Walk::broadcast(&self.shape, shapes), x: io.x, set: Set::best() };
        let (team, chunk) = (&io.work.team, each::CHUNK);
        match self.outputs.len() {
            1 => team.chunks(y0, chunk, |_, i, y0| all.run(i * chunk, [y0, &mut [], &mut []])),
            2 => team.chunks2((y0, chunk), (y1, chunk), |_, i, y0, y1| all.run(i * chunk, [y0, y1, &mut []])),
            _ => {
                let outputs = [(y0, chunk), (y1, chunk), (y2, chunk)];
                team.chunks3(outputs, |i, y0, y1, y2| all.run(i * chunk, [y0, y1, y2]));
            }
        }
    }
}

struct Loop<'a, F> {
    fused: &'a Fused,
    walk: Walk<IO_MAX>,
    x: [&'a [F]; IO_MAX],
    set: Set,
}

impl<F: Real> Loop<'_, F> {
    /// A task: the outputs' elements from `first` on.
    fn run(&self, first: usize, mut y: [&mut [F]; 3]) {
        let mut made = [[F::ZERO; PIECE]; FUSED_STEPS_MAX];
        self.walk.pieces(first, y[0].len(), |at, len, places| {
            for from in (0..len).step_by(PIECE) {
                let size = PIECE.min(len - from);
                self.piece(&mut made, places, from, size);
                for (y, step) in y.iter_mut().zip(&self.fused.outputs) {
                    y[at + from..][..size].copy_from_slice(&made[*step][..size]);
                }
            }
        });
    }

    fn piece(&self, made: &mut [[F; PIECE]; FUSED_STEPS_MAX], places: [usize; IO_MAX], from: usize, size: usize) {
        for (number, step) in self.fused.steps.iter().enumerate() {
            let (before, rest) = made.split_at_mut(number);
            let lane = |x: FusedInput| match x {
                FusedInput::Given(i) => {
                    let inner = self.walk.inner(i);
                    Lane::of(self.x[i], places[i] + from * inner as usize, inner, size)
                }
                FusedInput::Step(step) => Lane::Row(&before[step][..size]),
                FusedInput::Nothing => Lane::One(F::ZERO),
            };
            eval(self.set, step.f, &mut rest[0][..size], step.x.map(lane));
        }
    }
}
