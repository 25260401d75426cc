//! Softmax cross-entropy of each row against its target, with label smoothing.
//!
//! logits: (…, class), targets: (…). With smoothing s and p = softmax(logits):
//! loss = -(1 - s) log p[target] - s mean_c(log p[c]). Rows whose target is IGNORE have loss 0, no gradient
//! and count as nothing. Outputs: loss (rows), log of the partition sum (rows), 1 where the first largest
//! logit is the target (rows).

use super::*;
use crate::real::{largest, sum};
use crate::simd::{Set, vectorised};
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
        let (logits, targets, set) = (io.x[0], io.ints[1], Set::best());
        let smoothing = F::of(io.key.label_smoothing as f64);
        let rows = each::rows_of_task(classes);
        io.work.team.chunks3([(loss, rows), (partition, rows), (correct, rows)], |i, loss, partition, correct| {
            let logits = logits[i * rows * classes..].chunks_exact(classes).zip(&targets[i * rows..]);
            let out = loss.iter_mut().zip(partition).zip(correct);
            for (((loss, partition), correct), (logits, target)) in out.zip(logits) {
                let top = partition_sum(set, logits, partition);
                (*loss, *correct) = (F::ZERO, F::ZERO);
                if *target == IGNORE {
                    continue;
                }
                let target = class(*target, classes);
                *loss = *partition - logits[target];
                if smoothing > F::ZERO {
                    let mean = mean(set, logits);
                    *loss = (F::ONE - smoothing) * *loss + smoothing * (*partition - mean);
                }
                if logits[target] == top && !logits[..target].contains(&top) {
                    *correct = F::ONE;
                }
            }
        });
    }
}

vectorised! {
    /// Log of the sum of exponentials. Gives the largest logit.
    fn partition_sum[F: Real](logits: &[F], partition: &mut F) -> F {
        let top = largest(logits);
        *partition = top + sum(logits, |x| (x - top).exp()).ln();
        top
    }
}

vectorised! {
    fn mean[F: Real](logits: &[F]) -> F {
        sum(logits, |x| x) / F::of_usize(logits.len())
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
        let [logits, _, partition, dloss, ..] = io.x;
        let classes = io.types[0].rows_cols().1;
        let (targets, set) = (io.ints[1], Set::best());
        let smoothing = F::of(io.key.label_smoothing as f64);
        let everywhere = smoothing / F::of_usize(classes);
        let rows = each::rows_of_task(classes);
        io.work.team.chunks(dx, rows * classes, |_, i, dx| {
            for (row, dx) in (i * rows..).zip(dx.chunks_exact_mut(classes)) {
                if targets[row] == IGNORE {
                    dx.fill(F::ZERO);
                    continue;
                }
                let logits = &logits[row * classes..][..classes];
                shares(set, dx, logits, partition[row], everywhere, dloss[row]);
                let at = class(targets[row], classes);
                dx[at] = dx[at] - (F::ONE - smoothing) * dloss[row];
            }
        });
    }
}

vectorised! {
    fn shares[F: Real](dx: &mut [F], logits: &[F], partition: F, everywhere: F, dloss: F) {
        for (dx, x) in dx.iter_mut().zip(logits) {
            *dx = ((*x - partition).exp() - everywhere) * dloss;
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
