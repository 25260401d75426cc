//! Reduced rounds: those behind this member's state are kept for peers that are behind, those ahead of
//! it wait to be applied (a joiner's replay).

use bytes::Bytes;
use elastic_spec::Round;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Log {
    rounds: BTreeMap<Round, Vec<Option<Bytes>>>,
    bytes: usize,
}

impl Log {
    /// Takes a reduced chunk; false if it was there already.
    pub fn insert(&mut self, round: Round, chunk: u32, chunks: u32, payload: Bytes) -> bool {
        let slots = self.rounds.entry(round).or_insert_with(|| vec![None; chunks as usize]);
        let slot = &mut slots[chunk as usize];
        let is_new = slot.is_none();
        if is_new {
            self.bytes += payload.len();
            *slot = Some(payload);
        }
        is_new
    }

    pub fn get(&self, round: Round, chunk: u32) -> Option<&Bytes> {
        self.rounds.get(&round)?.get(chunk as usize)?.as_ref()
    }

    /// All chunks of a round, once they are all there.
    pub fn whole(&self, round: Round) -> Option<Vec<Bytes>> {
        self.rounds.get(&round)?.iter().cloned().collect()
    }

    /// The chunks of `round` that are not there yet.
    pub fn lacking(&self, round: Round, chunks: u32) -> Vec<u32> {
        (0..chunks).filter(|chunk| self.get(round, *chunk).is_none()).collect()
    }

    /// Keeps, of the rounds before `at`, the newest that fit both bounds, and always the newest two.
    pub fn trim(&mut self, at: Round, rounds_max: usize, bytes_max: usize) {
        while let Some((&oldest, _)) = self.rounds.first_key_value() {
            let behind = self.rounds.range(..at).count();
            let over = behind > rounds_max.max(2) || self.bytes > bytes_max;
            if oldest >= at || behind <= 2 || !over {
                return;
            }
            self.remove(oldest);
        }
    }

    /// Whether what waits to be applied is more than the bounds allow: this member is slower than the log.
    pub fn is_overrun(&self, at: Round, rounds_max: usize, bytes_max: usize) -> bool {
        let ahead: Vec<usize> =
            self.rounds.range(at..).map(|(_, slots)| slots.iter().flatten().map(Bytes::len).sum()).collect();
        ahead.len() > rounds_max.max(4) || (ahead.len() > 4 && ahead.iter().sum::<usize>() > bytes_max)
    }

    pub fn drop_before(&mut self, round: Round) {
        while let Some((&oldest, _)) = self.rounds.first_key_value().filter(|(r, _)| **r < round) {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, round: Round) {
        for payload in self.rounds.remove(&round).into_iter().flatten().flatten() {
            self.bytes -= payload.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(rounds: u64) -> Log {
        let mut log = Log::default();
        for round in 0..rounds {
            log.insert(Round(round), 0, 1, Bytes::from(vec![0; 10]));
        }
        log
    }

    #[test]
    fn the_newest_two_rounds_stay_whatever_the_bounds() {
        let mut log = filled(6);
        log.trim(Round(5), 0, 0);
        assert_eq!((2..6).map(|r| log.whole(Round(r)).is_some()).collect::<Vec<_>>(), [false, true, true, true]);
    }

    #[test]
    fn rounds_still_to_be_applied_are_never_trimmed() {
        let mut log = filled(6);
        log.trim(Round(0), 0, 0);
        assert!(log.whole(Round(0)).is_some());
    }

    #[test]
    fn a_round_is_whole_with_its_last_chunk() {
        let mut log = Log::default();
        assert!(log.insert(Round(3), 1, 2, Bytes::from_static(b"b")));
        assert_eq!(log.lacking(Round(3), 2), [0]);
        assert!(log.whole(Round(3)).is_none());
        assert!(log.insert(Round(3), 0, 2, Bytes::from_static(b"a")));
        assert!(!log.insert(Round(3), 0, 2, Bytes::from_static(b"a")), "the second copy changes nothing");
        assert_eq!(log.whole(Round(3)).unwrap().concat(), b"ab");
    }
}
