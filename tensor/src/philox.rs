//! Philox4x32-10: random numbers as a function of a key and a counter, so that nothing has to be remembered.
//!
//! A [`Stream`] is a key made of the job's seed and a name (a parameter's, or the path of a dropout op).
//! Which counter belongs to what is the caller's choice: `init` counts elements, dropout counts
//! (element, slot of the sample, step).

use sha2::{Digest, Sha256};

/// The key of one named stream of a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream([u32; 2]);

/// What is hashed before seed and name.
pub const STREAM_HEAD: &[u8] = b"elastic philox 1\0";

impl Stream {
    /// Seed and name are hashed together: two names never share numbers but by a 64-bit accident.
    pub fn new(seed: u64, name: &str) -> Stream {
        let mut hash = Sha256::new();
        hash.update(STREAM_HEAD);
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

    /// The words of [`COUNTERS`] counters that follow one another in their first word, in order: as many at once as
    /// vectors hold, where the caller is compiled for them.
    #[inline(always)]
    pub fn block(self, counter: [u32; 4]) -> [u32; 4 * COUNTERS] {
        // Two counters share a u64, as processors multiply: 32 bits by 32 in places of 64.
        let [mut w0, mut w1, mut w2, mut w3] = counter.map(|word| [both(word); COUNTERS / 2]);
        for (i, pair) in (0..).zip(&mut w0) {
            let [even, odd] = [2 * i, 2 * i + 1].map(|i: u32| counter[0].wrapping_add(i) as u64);
            *pair = odd << 32 | even;
        }
        let mut key = self.0;
        for _ in 0..10 {
            let [k0, k1] = key.map(both);
            for i in 0..COUNTERS / 2 {
                let ((high0, low0), (high2, low2)) = (products(w0[i], MUL[0]), products(w2[i], MUL[1]));
                (w0[i], w1[i], w2[i], w3[i]) = (high2 ^ w1[i] ^ k0, low2, high0 ^ w3[i] ^ k1, low0);
            }
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let mut words = [0; 4 * COUNTERS];
        for (i, eight) in words.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let pairs = [w0[i], w1[i], w2[i], w3[i]];
            *eight = std::array::from_fn(|at| (pairs[at % 4] >> (32 * (at / 4))) as u32);
        }
        words
    }
}

/// Counters of [`Stream::block`]: with 16, compilers unroll the loop over them and make less of it.
pub const COUNTERS: usize = 32;

#[inline(always)]
fn both(word: u32) -> u64 {
    (word as u64) << 32 | word as u64
}

/// High and low words of both halves' products with `factor`.
#[inline(always)]
fn products(pair: u64, factor: u32) -> (u64, u64) {
    const LOW: u64 = 0xffff_ffff;
    let (even, odd) = ((pair & LOW) * factor as u64, (pair >> 32) * factor as u64);
    (even >> 32 | odd & !LOW, even & LOW | odd << 32)
}

/// Uniform in [0, 1) with 24 bits, which f32 holds exactly.
#[inline(always)]
pub fn unit(word: u32) -> f32 {
    (word >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// Ten rounds of Philox4x32 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3).
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let (a, b) = (MUL[0] as u64 * counter[0] as u64, MUL[1] as u64 * counter[2] as u64);
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
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
    fn a_block_of_counters_gives_the_words_of_each() {
        let stream = Stream::new(3, "a");
        for first in [0, 7, u32::MAX - 3] {
            let each = (0..COUNTERS as u32).flat_map(|i| stream.words([first.wrapping_add(i), 5, 6, 7]));
            assert!(stream.block([first, 5, 6, 7]).into_iter().eq(each));
        }
    }

    #[test]
    fn unit_numbers_stay_below_one() {
        assert_eq!(unit(0), 0.0);
        assert!(unit(u32::MAX) < 1.0);
    }
}
