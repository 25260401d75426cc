//! Philox4x32-10: random numbers as a function of a key and a counter, so that nothing has to be remembered.
//!
//! A [`Stream`] is a key made of the job's seed and a name (a parameter's, or the path of a dropout op).
//! Which counter belongs to what is the caller's choice: `init` counts elements, dropout counts
//! (element, slot of the sample, step).

use sha2::{Digest, Sha256};

/// The key of one named stream of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream([u32; 2]);

impl Stream {
    /// Seed and name are hashed together: two names never share numbers but by a 64-bit accident.
    pub fn new(seed: u64, name: &str) -> Stream {
        let mut hash = Sha256::new();
        hash.update(b"elastic philox 1\0");
        hash.update(seed.to_le_bytes());
        hash.update(name.as_bytes());
        let bytes = hash.finalize();
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Stream([word(0), word(4)])
    }

    /// Four random words for a counter.
    pub fn words(self, counter: [u32; 4]) -> [u32; 4] {
        philox(counter, self.0)
    }

    /// The words of sixteen counters that follow one another in their first word, in order: sixteen at once, where
    /// the caller is compiled for vectors.
    #[inline(always)]
    pub fn sixteen(self, counter: [u32; 4]) -> [u32; 64] {
        let mut lanes = counter.map(|word| [word; 16]);
        for (i, first) in (0..).zip(&mut lanes[0]) {
            *first = first.wrapping_add(i);
        }
        let mut key = self.0;
        let [w0, w1, w2, w3] = &mut lanes;
        for _ in 0..10 {
            for i in 0..16 {
                let next = round([w0[i], w1[i], w2[i], w3[i]], key);
                [w0[i], w1[i], w2[i], w3[i]] = next;
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let mut words = [0; 64];
        for (i, four) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            *four = [lanes[0][i], lanes[1][i], lanes[2][i], lanes[3][i]];
        }
        words
    }
}

/// Uniform in [0, 1) with 24 bits, which f32 holds exactly.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Ten rounds of Philox4x32 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3).
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        counter = round(counter, key);
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

#[inline(always)]
fn round(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (a, b) = (MUL[0] as u64 * counter[0] as u64, MUL[1] as u64 * counter[2] as u64);
    [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32]
}

const MUL: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

#[cfg(test)]
mod tests {
    use super::*;

    /// The three vectors that Random123 publishes for philox4x32 with ten rounds.
    #[test]
    fn the_known_answers_of_random123_come_out() {
        let ones = u32::MAX;
        for (counter, key, expected) in [
            ([0; 4], [0; 2], [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]),
            ([ones; 4], [ones; 2], [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]),
            (
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0],
                [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), expected);
        }
    }

    #[test]
    fn streams_differ_by_seed_and_by_name() {
        let draw = |seed, name| Stream::new(seed, name).words([0; 4]);
        assert_ne!(draw(1, "a"), draw(2, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_eq!(draw(1, "a"), draw(1, "a"));
    }

    #[test]
    fn sixteen_counters_at_once_give_the_words_of_each() {
        let stream = Stream::new(3, "a");
        for first in [0, 7, u32::MAX - 3] {
            let each = (0..16).flat_map(|i| stream.words([first.wrapping_add(i), 5, 6, 7]));
            assert!(stream.sixteen([first, 5, 6, 7]).into_iter().eq(each));
        }
    }

    #[test]
    fn unit_numbers_stay_below_one() {
        assert_eq!(unit(0), 0.0);
        assert!(unit(u32::MAX) < 1.0);
    }
}
