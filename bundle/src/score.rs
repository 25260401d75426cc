//! How good a model is on samples whose answers are known: the numbers, and the answers' own digest.

use crate::predictor::{Predictor, class_of};
use elastic_spec::Digest;
use elastic_spec::batch::{Batch, IGNORE};
use elastic_tensor::Rows;
use serde::Serialize;
use sha2::Digest as _;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Answers that count: samples, or tokens.
    pub count: u64,
    pub correct: u64,
    pub accuracy: Option<f64>,
    /// Mean cross entropy in nats, each in f64 from the f32 logits.
    pub loss: Option<f64>,
    /// e to the loss, for tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// SHA-256 over the logits of all samples in their order, little-endian.
    pub logits_sha256: Digest,
    /// Empty for tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassScore>,
    /// Row: the class that a sample has; column: the one that it was given. Empty for tokens.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub confusion: Vec<Vec<u64>>,
}

/// One class. A quotient of zero by zero is null.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassScore {
    pub label: String,
    /// Samples of it.
    pub support: u64,
    pub precision: Option<f64>,
    pub recall: Option<f64>,
    pub f1: Option<f64>,
}

/// Sums up batch by batch.
pub struct Scorer {
    labels: Vec<String>,
    confusion: Vec<Vec<u64>>,
    is_text: bool,
    count: u64,
    correct: u64,
    loss: f64,
    sha: sha2::Sha256,
}

impl Scorer {
    /// `labels` of the classes, or none for tokens.
    pub fn new(labels: &[String]) -> Scorer {
        Scorer {
            labels: labels.to_vec(),
            confusion: vec![vec![0; labels.len()]; labels.len()],
            is_text: labels.is_empty(),
            count: 0,
            correct: 0,
            loss: 0.0,
            sha: sha2::Sha256::new(),
        }
    }

    /// Asks the model for a batch of raw samples and adds what comes out. Returns the logits, row by row.
    pub fn add(&mut self, predictor: &mut Predictor, batch: &Batch) -> Vec<f32> {
        let n = batch.slots.len();
        let mut logits = vec![0.0; n * predictor.logits_len()];
        let rows = if self.is_text { Rows::Tokens(&batch.tokens) } else { Rows::Features(&batch.features) };
        predictor.logits(rows, &mut logits);
        let width = logits.len() / batch.targets.len().max(1);
        for (row, target) in logits.chunks_exact(width.max(1)).zip(&batch.targets) {
            row.iter().for_each(|x| self.sha.update(x.to_le_bytes()));
            if *target != IGNORE {
                self.answer(row, *target as usize);
            }
        }
        logits
    }

    fn answer(&mut self, row: &[f32], target: usize) {
        let class = class_of(row);
        self.count += 1;
        self.correct += u64::from(class == target);
        self.loss += cross_entropy(row, target);
        if let Some(cell) = self.confusion.get_mut(target).and_then(|row| row.get_mut(class)) {
            *cell += 1;
        }
    }

    pub fn finish(self) -> Score {
        let ratio = |a: u64, b: u64| (b > 0).then(|| a as f64 / b as f64);
        let loss = (self.count > 0).then(|| self.loss / self.count as f64).filter(|loss| loss.is_finite());
        let class = |at: usize| {
            let hits = self.confusion[at][at];
            let support: u64 = self.confusion[at].iter().sum();
            let given: u64 = self.confusion.iter().map(|row| row[at]).sum();
            ClassScore {
                label: self.labels[at].clone(),
                support,
                precision: ratio(hits, given),
                recall: ratio(hits, support),
                f1: ratio(2 * hits, support + given),
            }
        };
        Score {
            count: self.count,
            correct: self.correct,
            accuracy: ratio(self.correct, self.count),
            loss,
            perplexity: loss.filter(|_| self.is_text).map(f64::exp),
            logits_sha256: Digest(self.sha.finalize().into()),
            classes: (0..self.labels.len()).map(class).collect(),
            confusion: self.confusion,
        }
    }
}

/// In nats. Infinite where the target has no chance, NaN where a logit is none.
fn cross_entropy(logits: &[f32], target: usize) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    sum.ln() + largest - f64::from(logits[target])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_counts_what_was_given_for_what() {
        let labels = ["a", "b", "c"].map(String::from);
        let mut scorer = Scorer::new(&labels);
        let rows = [([2.0, 1.0, 0.0], 0), ([0.0, 3.0, 0.0], 0), ([0.0, 3.0, 0.0], 1), ([1.0, 0.0, 0.0], 1)];
        rows.iter().for_each(|(row, target)| scorer.answer(row, *target));
        let score = scorer.finish();
        assert_eq!((score.count, score.correct, score.accuracy), (4, 2, Some(0.5)));
        assert_eq!(score.confusion, [[1, 1, 0], [1, 1, 0], [0, 0, 0]]);
        let a = &score.classes[0];
        assert_eq!((a.support, a.precision, a.recall, a.f1), (2, Some(0.5), Some(0.5), Some(0.5)));
        let c = &score.classes[2];
        assert_eq!((c.support, c.precision, c.recall, c.f1), (0, None, None, None));
    }

    #[test]
    fn cross_entropy_is_the_logarithm_of_the_chance() {
        assert!((cross_entropy(&[0.0, 0.0], 1) - 2f64.ln()).abs() < 1e-15);
        assert!((cross_entropy(&[1000.0, 0.0], 1) - 1000.0).abs() < 1e-9);
        assert!(cross_entropy(&[f32::NAN, 0.0], 1).is_nan());
    }
}
