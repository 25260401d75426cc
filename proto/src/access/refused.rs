//! Tells the log who was turned away, and why, at a pace that a person can read and that fills no disk.

use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing::warn;

#[derive(Clone, Default)]
pub struct Refused(Arc<Mutex<Window>>);

impl Refused {
    pub(super) fn tell(&self, peer: Option<SocketAddr>, what: &str, why: &dyn Display) {
        let left_out = self.0.lock().expect("nobody panics while holding this lock").take(Instant::now());
        let Some(left_out) = left_out else { return };
        let peer = peer.map(tracing::field::display);
        if left_out > 0 {
            warn!(left_out, "refused more than is told here");
        }
        // The path is the caller's own text.
        let what: String = what.chars().take(80).collect();
        warn!(peer, what, %why, "refused");
    }
}

/// Which of many refusals are told: so many in each stretch of time.
#[derive(Default)]
struct Window {
    since: Option<Instant>,
    told: u32,
    left_out: u64,
}

impl Window {
    /// None: not this one. Else how many were not told before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= STRETCH) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told >= TOLD_MAX {
            self.left_out += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

const STRETCH: Duration = Duration::from_secs(10);
const TOLD_MAX: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_told_in_part_and_what_was_left_out_is_counted() {
        let mut window = Window::default();
        let begin = Instant::now();
        let told = (0..1_000).filter(|_| window.take(begin).is_some()).count();
        assert_eq!(told, TOLD_MAX as usize);
        assert_eq!(window.take(begin + STRETCH), Some(1_000 - u64::from(TOLD_MAX)));
        assert_eq!(window.take(begin + STRETCH), Some(0));
    }
}
