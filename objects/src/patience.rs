//! How long a passing fault is borne: tries, waits between them, and an end.

use crate::cause::{Cause, Meaning, meaning};
use std::future::Future;
use std::time::{Duration, Instant, SystemTime};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Calls of the store for one operation, the first included.
    pub tries: u32,
    pub first_wait: Duration,
    pub longest_wait: Duration,
    /// One request, from connecting to the last byte of the answer.
    pub request: Duration,
    /// All tries of one operation and the waits between them.
    pub total: Duration,
}

impl Default for Patience {
    /// A store that is away for half a minute is waited for; a part of 8 MiB needs no more than 70 KiB/s.
    fn default() -> Patience {
        Patience {
            tries: 12,
            first_wait: Duration::from_millis(100),
            longest_wait: Duration::from_secs(10),
            request: Duration::from_secs(120),
            total: Duration::from_secs(180),
        }
    }
}

impl Patience {
    /// The wait before try `n` (from 1): doubled each time, and between half and all of it, so that many clients
    /// that were refused together do not come back together.
    fn wait(&self, n: u32, draw: u32) -> Duration {
        let whole = self.first_wait.saturating_mul(1 << (n - 1).min(20)).min(self.longest_wait);
        whole / 2 + whole.mul_f64(f64::from(draw % 1024) / 2048.0)
    }

    pub(crate) fn begin(&self) -> Tries {
        Tries { patience: *self, made: 0, begun: Instant::now() }
    }
}

/// The tries of one operation.
pub(crate) struct Tries {
    patience: Patience,
    made: u32,
    begun: Instant,
}

impl Tries {
    /// One try; the time that is left bounds it.
    pub async fn once<T>(&mut self, call: impl Future<Output = Result<T, object_store::Error>>) -> Result<T, Meaning> {
        self.made += 1;
        let left = self.patience.total.saturating_sub(self.begun.elapsed());
        match tokio::time::timeout(left, call).await {
            Ok(result) => result.map_err(|error| meaning(&error)),
            Err(_) => Err(Meaning::Failed(Cause::Slow, format!("no end within {:?}", self.patience.total))),
        }
    }

    /// Waits where that may help; false if it would not, or if it was tried for long enough.
    pub async fn again(&mut self, meaning: &Meaning, place: &str) -> bool {
        let Meaning::Failed(cause, detail) = meaning else { return false };
        let wait = self.patience.wait(self.made, draw());
        let is_over = self.made >= self.patience.tries || self.begun.elapsed() + wait >= self.patience.total;
        if !cause.is_passing() || is_over {
            return false;
        }
        tracing::debug!(place, ?cause, detail, tries = self.made, ?wait, "a store is tried again");
        tokio::time::sleep(wait).await;
        true
    }
}

/// Only waits depend on it.
fn draw() -> u32 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos() / 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_a_bound_and_are_never_the_same_for_all() {
        let patience = Patience::default();
        let waits: Vec<_> = (1..12).map(|n| patience.wait(n, 0).as_millis()).collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 3200, 5000, 5000, 5000, 5000]);
        assert!(patience.wait(3, 1023) > patience.wait(3, 0));
        assert!(patience.wait(3, 1023) <= Duration::from_millis(400));
    }
}
