//! The one place of the coordinator that reads clocks.

use elastic_control::Millis;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { start: Instant::now() }
    }

    /// Since the start; goes on while the process is stopped, so that the machine sees the gap.
    pub fn now(&self) -> Millis {
        Millis(self.start.elapsed().as_millis() as u64)
    }

    /// Returns at `when`; never, if there is no such time.
    pub async fn until(&self, when: Option<Millis>) {
        match when {
            Some(when) => tokio::time::sleep_until(self.start + Duration::from_millis(when.0)).await,
            None => std::future::pending().await,
        }
    }
}

/// The wall clock, for what people read; nothing is decided by it.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
