//! Softmax cross-entropy of each row against its target, with label smoothing.
//!
//! logits: (…, class), targets: (…). With smoothing s and p = softmax(logits):
//! loss = -(1 - s) log p[target] - s mean_c(log p[c]). Rows whose target is IGNORE have loss 0, no gradient
//! and count as nothing. Outputs: loss (rows), log of the partition sum (rows), 1 where the first largest
//! logit is the target (rows).

use super::*;
use crate::real::sum;
use elastic_spec::batch::IGNORE;

#[derive(Clone, Debug)]
pub struct CrossEntropy;

impl Rule for CrossEntropy {
    const NAME: &'static str = "cross entropy";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let (rows, classes) = x[0].rows_cols();
        if classes == 0 {
            return Err(format!("axis {} of the logits {} is empty", x[0].shape.len().max(1) - 1, x[0]));
        }
        if x[1].len() != rows {
            return Err(format!("logits {} have {rows} rows (all axes but the last), targets are {}", x[0], x[1]));
        }
        Ok(vec![Type::float(&[rows]); 3])
    }

    fn gradient(&self, graph: &mut Graph, node: &Node, dy: &[Option<Value>]) -> Result<Grads, ShapeError> {
        let Some(dy) = dy[0] else { return Ok(vec![None, None]) };
        let inputs = [node.inputs[0], node.inputs[1], node.outputs[1], dy];
        Ok(vec![Some(graph.apply1(Op::CrossEntropyGrad(CrossEntropyGrad), &node.path, &inputs)?), None])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [loss, partition, correct, ..] = io.y;
        let classes = io.types[0].rows_cols().1;
        let smoothing = F::of(io.key.label_smoothing as f64);
        for (row, logits) in io.x[0].chunks_exact(classes).enumerate() {
            let best = first_largest(logits);
            let top = logits[best];
            partition[row] = top + sum(logits, |x| (x - top).exp()).ln();
            let target = io.ints[1][row];
            (loss[row], correct[row]) = (F::ZERO, F::ZERO);
            if target == IGNORE {
                continue;
            }
            let target = class(target, classes);
            let mut value = partition[row] - logits[target];
            if smoothing > F::ZERO {
                let mean = sum(logits, |x| x) / F::of_usize(classes);
                value = (F::ONE - smoothing) * value + smoothing * (partition[row] - mean);
            }
            loss[row] = value;
            if best == target {
                correct[row] = F::ONE;
            }
        }
    }
}

/// d logits = (p - (1 - s) [c = target] - s / classes) dloss. Inputs: logits, targets, log partition, dloss.
#[derive(Clone, Debug)]
pub struct CrossEntropyGrad;

impl Rule for CrossEntropyGrad {
    const NAME: &'static str = "cross entropy gradient";

    fn infer(&self, x: &[&Type]) -> Result<Vec<Type>, String> {
        let rows = x[0].rows_cols().0;
        expect(x, 2, "the log partition", &[rows])?;
        expect(x, 3, "the gradient", &[rows])?;
        Ok(vec![x[0].clone()])
    }

    fn run<F: Real>(&self, io: Io<'_, F>) {
        let [dx, ..] = io.y;
        let classes = io.types[0].rows_cols().1;
        let smoothing = F::of(io.key.label_smoothing as f64);
        let everywhere = smoothing / F::of_usize(classes);
        for (row, (dx, logits)) in dx.chunks_exact_mut(classes).zip(io.x[0].chunks_exact(classes)).enumerate() {
            let target = io.ints[1][row];
            if target == IGNORE {
                dx.fill(F::ZERO);
                continue;
            }
            let (partition, dloss) = (io.x[2][row], io.x[3][row]);
            for (dx, x) in dx.iter_mut().zip(logits) {
                *dx = ((*x - partition).exp() - everywhere) * dloss;
            }
            let at = class(target, classes);
            dx[at] = dx[at] - (F::ONE - smoothing) * dloss;
        }
    }
}

fn class(target: i32, classes: usize) -> usize {
    assert!(
        (0..classes as i64).contains(&(target as i64)),
        "the loader promised targets under {classes}, not {target}"
    );
    target as usize
}

fn first_largest<F: Real>(xs: &[F]) -> usize {
    let mut best = 0;
    for (i, x) in xs.iter().enumerate() {
        if *x > xs[best] {
            best = i;
        }
    }
    best
}
