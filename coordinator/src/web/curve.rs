//! A job's curve in bounded memory: when it is full, every other point goes and new ones stay half as often.

use elastic_spec::Step;
use elastic_spec::api::JobStatus;
use elastic_spec::json::{accuracy, mean_loss};
use serde_json::{Value, json};

/// One look at a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// The tick of the look: a reader asks for what came after one.
    pub tick: u64,
    /// Its place among all looks at this job.
    index: u64,
    unix_ms: u64,
    step: Step,
    loss: Option<f64>,
    samples_per_second: f64,
    workers: u16,
    /// Of the newest validation: its step, loss and accuracy.
    validation: Option<(Step, Option<f64>, Option<f64>)>,
}

#[derive(Debug)]
pub struct Curve {
    /// Their indices are multiples of `stride`.
    kept: Vec<Point>,
    /// Always there, and kept only if its turn it is.
    newest: Option<Point>,
    stride: u64,
    looks: u64,
}

impl Default for Curve {
    fn default() -> Curve {
        Curve { kept: Vec::new(), newest: None, stride: 1, looks: 0 }
    }
}

impl Curve {
    /// Looks at the job; it becomes a point if a step was made since the last.
    pub fn look(&mut self, status: &JobStatus, tick: u64, unix_ms: u64) {
        let Some(metrics) = status.metrics else { return };
        if self.newest.as_ref().is_some_and(|last| last.step >= metrics.step) {
            return;
        }
        if let Some(last) = self.newest.take().filter(|last| last.index % self.stride == 0) {
            self.kept.push(last);
        }
        if self.kept.len() >= POINTS_MAX {
            self.stride *= 2;
            self.kept.retain(|point| point.index % self.stride == 0);
        }
        self.newest = Some(Point {
            tick,
            index: self.looks,
            unix_ms,
            step: metrics.step,
            loss: mean_loss(metrics.train),
            samples_per_second: status.samples_per_second,
            workers: status.members.iter().filter(|m| m.rank.is_some()).count() as u16,
            validation: metrics.validation.map(|(step, tail)| (step, mean_loss(tail), accuracy(tail))),
        });
        self.looks += 1;
    }

    /// Points of looks after `tick`, oldest first.
    pub fn since(&self, tick: u64) -> Vec<Value> {
        let all = self.kept.iter().chain(&self.newest);
        all.filter(|point| point.tick > tick).map(Point::json).collect()
    }
}

impl Point {
    fn json(&self) -> Value {
        let validation = self.validation.map(|(step, loss, accuracy)| json!([step, loss, accuracy]));
        json!([self.step, self.loss, self.samples_per_second, self.workers, self.unix_ms, validation])
    }
}

/// Of one job. At two looks a second the first halving comes after about four minutes.
const POINTS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::web::tests::status;

    fn steps(curve: &Curve, since: u64) -> Vec<u64> {
        curve.since(since).iter().map(|point| point[0].as_u64().unwrap()).collect()
    }

    #[test]
    fn a_curve_is_bounded_begins_at_the_beginning_and_ends_at_the_newest_look() {
        let mut curve = Curve::default();
        for i in 1..=10_000 {
            curve.look(&status("a", i), i, i);
            let steps = steps(&curve, 0);
            assert!(steps.len() <= POINTS_MAX + 1 && steps[0] == 1 && steps.last() == Some(&i));
        }
        let steps = steps(&curve, 0);
        let gaps: Vec<u64> = steps[..steps.len() - 1].windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(gaps.iter().all(|gap| *gap == gaps[0]), "the points kept are evenly spread: {gaps:?}");
        assert!(steps.len() > POINTS_MAX / 2);
    }

    #[test]
    fn who_asks_after_each_look_gets_each_point_once() {
        let mut curve = Curve::default();
        let mut got = Vec::new();
        for i in 1..=2_000 {
            curve.look(&status("a", i), i, i);
            got.extend(steps(&curve, i - 1));
        }
        assert_eq!(got, (1..=2_000).collect::<Vec<_>>());
    }

    #[test]
    fn a_job_that_stands_still_makes_no_points() {
        let mut curve = Curve::default();
        (1..9).for_each(|tick| curve.look(&status("a", 5), tick, tick));
        assert_eq!(steps(&curve, 0), [5]);
    }
}
