//! How many restarts a job may still spend, and how long to wait before the next.
//!
//! The rule: `elastic.restarts` may be spent. Faults within `charge_window_ms` of a charged one are the
//! same trouble and cost nothing more, unless the process was started after that one. Every `refill_steps` steps of new progress give one back, and so
//! does each newly published checkpoint. The wait before a restart doubles with each one that is spent.

use crate::event::Config;
use crate::time::Millis;
use elastic_spec::{Round, Step};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Budget {
    pub spent: u32,
    /// Progress up to here has been counted.
    pub counted_step: Step,
    pub counted_published: Round,
    /// Seed and state of the jitter.
    pub jitter: u64,
    #[serde(skip)]
    charged: Option<Millis>,
}

impl Budget {
    pub fn new(seed: u64) -> Budget {
        Budget { jitter: seed, ..Budget::default() }
    }

    pub fn left(&self, restarts: u32) -> u32 {
        restarts.saturating_sub(self.spent)
    }

    /// Counts progress; does nothing twice.
    pub fn refill(&mut self, config: &Config, step: Step, published: Round) {
        let gained = step.0.saturating_sub(self.counted_step.0) / config.refill_steps.max(1);
        self.counted_step.0 += gained * config.refill_steps.max(1);
        let is_published = published > self.counted_published;
        self.counted_published = self.counted_published.max(published);
        let gained = u32::try_from(gained).unwrap_or(u32::MAX).saturating_add(u32::from(is_published));
        self.spent = self.spent.saturating_sub(gained);
    }

    /// Pays for the restart of a process that was asked for at `began`. `false`: nothing is left to pay with.
    pub fn charge(&mut self, now: Millis, began: Millis, config: &Config, restarts: u32) -> bool {
        if self.charged.is_some_and(|at| now.since(at) <= config.charge_window_ms && began < at) {
            return true;
        }
        if !self.pay(restarts) {
            return false;
        }
        self.charged = Some(now);
        true
    }

    /// Spends one, if there is one.
    pub fn pay(&mut self, restarts: u32) -> bool {
        if self.left(restarts) == 0 {
            return false;
        }
        self.spent += 1;
        true
    }

    /// Milliseconds to wait before the restart that was just charged: exponential, up to a quarter more.
    pub fn backoff(&mut self, config: &Config) -> u64 {
        let doublings = self.spent.saturating_sub(1).min(20);
        let base = (config.backoff_ms_min << doublings).min(config.backoff_ms_max);
        self.jitter = self.jitter.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        base + (self.jitter >> 33) % (base / 4 + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_and_checkpoints_give_restarts_back() {
        let config = Config::default();
        let mut budget = Budget::new(1);
        for at in [0, 2_000, 4_000] {
            assert!(budget.charge(Millis(at + 1), Millis(0), &config, 3));
        }
        assert!(!budget.charge(Millis(6_000), Millis(0), &config, 3));
        budget.refill(&config, Step(250), Round(0));
        assert_eq!(budget.left(3), 2);
        budget.refill(&config, Step(299), Round(40));
        assert_eq!(budget.left(3), 3);
        budget.refill(&config, Step(299), Round(40));
        assert_eq!(budget.left(3), 3, "nothing counts twice");
    }

    #[test]
    fn faults_that_come_together_cost_one_restart() {
        let config = Config::default();
        let mut budget = Budget::new(1);
        for at in [0, 10, 900] {
            assert!(budget.charge(Millis(at + 1), Millis(0), &config, 1));
        }
        assert!(!budget.charge(Millis(500), Millis(400), &config, 1), "a new process that fails is new trouble");
        assert!(!budget.charge(Millis(1_002), Millis(0), &config, 1));
    }

    #[test]
    fn the_wait_doubles_up_to_its_limit() {
        let config = Config::default();
        let mut budget = Budget::new(7);
        let mut last = 0;
        for n in 0..12 {
            budget.charge(Millis(n * 10_000), Millis(0), &config, 100);
            let wait = budget.backoff(&config);
            let base = (100u64 << n).min(30_000);
            assert!((base..=base + base / 4).contains(&wait), "{n}: {wait}");
            last = wait;
        }
        assert!(last >= 30_000);
    }
}
