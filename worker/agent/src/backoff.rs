//! Waits longer after each failed try, and never in step with others who failed at the same time.

use std::time::Duration;

const FIRST_MS: u64 = 25;
// A new leader waits some seconds before it evicts: every agent should be back by then.
const LONGEST_MS: u64 = 500;

#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    pub fn is_first(&self) -> bool {
        self.tries == 0
    }

    pub fn reset(&mut self) {
        self.tries = 0;
    }

    pub async fn wait(&mut self) {
        let longest = (FIRST_MS << self.tries.min(10)).min(LONGEST_MS);
        self.tries += 1;
        // Between half and all of it.
        let jitter = crate::random().unwrap_or(0) % (longest / 2 + 1);
        tokio::time::sleep(Duration::from_millis(longest - jitter)).await;
    }
}
