//! y = x Wᵀ + b for few rows: W is packed once, as panels that `tile` reads in place.
//!
//! `gemm` packs its operands in each call, which costs a single row several times its product. Every element is the chain
//! that `gemm` has, then the bias, so the bits are the same.

use super::compile::Weight;
use crate::gemm::{Mat, Start};
use crate::ops::{Work, take};
use crate::real::{Real, Rows};
use crate::simd::Set;
use crate::tile::{LANES, Product};

/// Columns of a panel: as many as a tile keeps in registers.
const PANEL: usize = 2 * LANES;
/// Multiply-adds of a task, some 5 µs: less would not pay for a fork.
const TASK: usize = 1 << 18;

#[derive(Debug)]
pub(super) struct Packed<F: Real> {
    /// (panel, operand along the inner axis, PANEL).
    panels: Vec<F::Operand>,
    inner: usize,
    out: usize,
}

/// What products use between calls.
#[derive(Debug, Default)]
pub(super) struct Room<F: Real> {
    along: Vec<F::Operand>,
    parts: Vec<F>,
}

pub(super) fn bytes<F: Real>(weight: &Weight) -> u64 {
    let operands = weight.out.div_ceil(PANEL) * PANEL * weight.inner.div_ceil(F::PER);
    operands as u64 * size_of::<F::Operand>() as u64
}

impl<F: Real> Packed<F> {
    pub(super) fn new(set: Set, weight: &Weight, state: &[F]) -> Packed<F> {
        let Weight { ref at, out, inner } = *weight;
        let (data, of_panel) = (&state[at.clone()], (PANEL * inner.div_ceil(F::PER)).max(1));
        let mut panels = Vec::new();
        crate::memory::grow(&mut panels, out.div_ceil(PANEL) * of_panel);
        for (first, to) in (0..out).step_by(PANEL).zip(panels.chunks_exact_mut(of_panel)) {
            let count = PANEL.min(out - first);
            F::panel(set, Rows { data: &data[first * inner..], stride: inner, count, width: inner }, PANEL, to);
        }
        Packed { panels, inner, out }
    }

    /// x: (rows, inner), y: (rows, out). `bias` is empty for none.
    pub(super) fn multiply(&self, x: &[F], bias: &[F], y: &mut [F], room: &mut Room<F>, work: &mut Work<F>) {
        let (rows, k) = (y.len() / self.out.max(1), self.inner.div_ceil(F::PER));
        if rows == 0 || k == 0 {
            return y.fill(F::ZERO);
        }
        let set = Set::best();
        let a = match F::in_place(x) {
            Some(x) => x,
            None => {
                let along = take(&mut room.along, rows * k);
                for (to, row) in along.chunks_exact_mut(k).zip(x.chunks_exact(self.inner)) {
                    F::lengthwise(set, row, to);
                }
                along
            }
        };
        let a = Mat::rows(a, k);
        let parts = take(&mut room.parts, self.out.div_ceil(PANEL) * rows * PANEL);
        let of_task = (TASK / (rows * PANEL * self.inner)).max(1);
        work.team.chunks(parts, of_task * rows * PANEL, |_, task, parts| {
            let panels = self.panels[task * of_task * k * PANEL..].chunks_exact(k * PANEL);
            for (c, b) in parts.chunks_exact_mut(rows * PANEL).zip(panels) {
                let product = Product { rows, k, columns: PANEL, a, b, b_stride: PANEL, start: Start::Zero };
                F::tile(product, c, PANEL);
            }
        });
        for (row, y) in y.chunks_exact_mut(self.out).enumerate() {
            for (panel, y) in y.chunks_mut(PANEL).enumerate() {
                y.copy_from_slice(&parts[(panel * rows + row) * PANEL..][..y.len()]);
            }
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += *bias);
        }
    }
}
