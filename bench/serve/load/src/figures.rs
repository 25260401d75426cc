//! Counts and times of one run.

use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Debug, Default, Serialize)]
pub struct Figures {
    pub name: String,
    pub seconds: f64,
    /// Right answers a second.
    pub per_s: f64,
    pub answered: usize,
    /// Answers with another status than 200.
    pub refused: BTreeMap<u16, usize>,
    /// Connections that broke under a request, and answers that never came.
    pub failed: usize,
    /// Answers of status 200 whose numbers are not the model's.
    pub wrong: usize,
    /// Open loop: found no connection free.
    pub turned_away: usize,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// Of requests from each half: what grows without a bound differs.
    pub halves_p99_us: [f64; 2],
    /// How late the load itself was at its latest.
    pub late_max_us: f64,
}

impl Figures {
    /// `times`: (when it should have gone out, how long until its answer), in ns from the start.
    pub fn times(&mut self, times: &[(u64, u64)]) {
        let of = |mut waits: Vec<u64>| {
            waits.sort_unstable();
            move |share: f64| match waits.len() {
                0 => 0.0,
                // The smallest that at least this share does not exceed.
                n => waits[((n as f64 * share).ceil() as usize).clamp(1, n) - 1] as f64 / 1000.0,
            }
        };
        let all = of(times.iter().map(|time| time.1).collect());
        [self.p50_us, self.p90_us, self.p99_us, self.p999_us, self.max_us] = [0.5, 0.9, 0.99, 0.999, 1.0].map(all);
        let (first, last) =
            times.iter().fold((u64::MAX, 0), |(first, last), time| (first.min(time.0), last.max(time.0)));
        let middle = first.saturating_add(last) / 2;
        let half = |late: bool| of(times.iter().filter(|time| (time.0 > middle) == late).map(|t| t.1).collect())(0.99);
        self.halves_p99_us = [half(false), half(true)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_the_times_and_of_both_halves() {
        let mut figures = Figures::default();
        let times: Vec<(u64, u64)> = (0..200).map(|i| (i, 1000 * if i < 100 { i + 1 } else { 1000 })).collect();
        figures.times(&times);
        assert_eq!([figures.p50_us, figures.p99_us, figures.max_us], [100.0, 1000.0, 1000.0]);
        assert_eq!(figures.halves_p99_us, [99.0, 1000.0]);
        figures.times(&[]);
        assert_eq!(figures.p50_us, 0.0);
    }
}
