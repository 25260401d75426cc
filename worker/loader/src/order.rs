//! Orders of samples that are computed, not stored: a permutation for each epoch, and the split.
//!
//! The arithmetic here decides which sample is trained when, so it may never change: known answers in the
//! tests hold it.

/// A permutation of `0..size`, drawn from (seed, epoch): a Feistel network on the next power of four, walked
/// until it lands inside (fewer than four steps on average).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Permutation {
    size: u64,
    half_bits: u32,
    keys: [u64; ROUNDS],
}

/// Four rounds make a permutation hard to tell from a random one; two more cost nothing that shows.
const ROUNDS: usize = 6;

impl Permutation {
    pub fn new(seed: u64, epoch: u64, size: u64) -> Permutation {
        assert!(size > 0, "there is something to permute");
        let bits = u64::BITS - (size - 1).leading_zeros();
        let key = mix(mix(seed ^ ORDER) ^ epoch);
        let keys = std::array::from_fn(|round| mix(key.wrapping_add(round as u64)));
        Permutation { size, half_bits: bits.div_ceil(2).max(1), keys }
    }

    /// Where `index` goes.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.size, "the index lies within the permutation");
        let mut walked = self.scramble(index);
        while walked >= self.size {
            walked = self.scramble(walked);
        }
        walked
    }

    fn scramble(&self, index: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (index >> self.half_bits, index & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

/// Indices of `0..samples` for training and for validation, each in ascending order.
///
/// The `share` of the samples with the smallest seeded hashes is kept for validation: as many as the share
/// says, rounded, but none of the two sides empty as long as there are two samples.
pub(crate) fn split(seed: u64, samples: u64, share: f64) -> (Vec<u64>, Vec<u64>) {
    let all = 0..samples;
    if share <= 0.0 || samples < 2 {
        return (all.collect(), Vec::new());
    }
    let kept = ((samples as f64 * share).round() as u64).clamp(1, samples - 1) as usize;
    let mut drawn: Vec<(u64, u64)> = all.map(|index| (mix(mix(seed ^ SPLIT) ^ index), index)).collect();
    drawn.select_nth_unstable(kept);
    let sorted = |side: &[(u64, u64)]| {
        let mut indices: Vec<u64> = side.iter().map(|(_, index)| *index).collect();
        indices.sort_unstable();
        indices
    };
    (sorted(&drawn[kept..]), sorted(&drawn[..kept]))
}

/// What the seed is used for: different uses must not draw the same numbers.
const ORDER: u64 = 0x6f72_6465_7200_0001;
const SPLIT: u64 = 0x7370_6c69_7400_0001;

/// SplitMix64's step: a bijection in which every input bit moves every output bit.
pub(crate) fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_mixer_is_splitmix64() {
        // The first numbers of the published generator with seed 1234567.
        let stream: Vec<u64> =
            (0..3u64).map(|i| mix(1234567u64.wrapping_add(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)))).collect();
        assert_eq!(stream, [6457827717110365317, 3203168211198807973, 9817491932198370423]);
    }

    #[test]
    fn the_order_of_an_epoch_never_changes() {
        let order = |seed, epoch, size| {
            let permutation = Permutation::new(seed, epoch, size);
            (0..size).map(|index| permutation.at(index)).collect::<Vec<_>>()
        };
        assert_eq!(order(0, 0, 10), KNOWN[0]);
        assert_eq!(order(0, 1, 10), KNOWN[1]);
        assert_eq!(order(7, 0, 10), KNOWN[2]);
        assert_eq!(order(7, 3, 1), [0]);
    }

    // From an independent computation of the same rules, in Python.
    const KNOWN: [[u64; 10]; 3] =
        [[9, 2, 5, 8, 1, 3, 0, 7, 6, 4], [7, 0, 8, 6, 3, 4, 9, 2, 1, 5], [9, 1, 6, 7, 8, 3, 2, 4, 5, 0]];

    #[test]
    fn the_split_never_changes() {
        assert_eq!(split(0, 10, 0.3).1, [0, 1, 2]);
        assert_eq!(split(1, 10, 0.3).1, [0, 2, 6]);
    }

    #[test]
    fn neither_side_of_a_split_is_empty_when_there_are_two_samples() {
        assert_eq!(split(0, 2, 1e-9).1.len(), 1);
        assert_eq!(split(0, 2, 0.999).0.len(), 1);
        assert_eq!(split(0, 1, 0.5), (vec![0], vec![]));
        assert_eq!(split(0, 0, 0.5), (vec![], vec![]));
        assert_eq!(split(0, 5, 0.0).1, Vec::<u64>::new());
    }

    #[test]
    fn neighbours_are_scattered() {
        let permutation = Permutation::new(3, 0, 10_000);
        let moved: u64 = (0..10_000).map(|index| permutation.at(index).abs_diff(index)).sum();
        // A random permutation moves an index by a third of the size on average.
        assert!((3_000..3_700).contains(&(moved / 10_000)), "{}", moved / 10_000);
        let epochs: Vec<u64> = (0..100).map(|epoch| Permutation::new(3, epoch, 10_000).at(17)).collect();
        assert!(epochs.iter().max().unwrap() - epochs.iter().min().unwrap() > 5_000);
    }

    proptest! {
        #[test]
        fn every_index_is_reached_once(seed in any::<u64>(), epoch in any::<u64>(), size in 1u64..3_000) {
            let permutation = Permutation::new(seed, epoch, size);
            let mut reached: Vec<u64> = (0..size).map(|index| permutation.at(index)).collect();
            reached.sort_unstable();
            prop_assert!(reached.iter().copied().eq(0..size));
        }

        #[test]
        fn huge_sets_are_permuted_within_their_bounds(seed in any::<u64>(), size in 1u64 << 40..u64::MAX / 2, at in any::<u64>()) {
            let permutation = Permutation::new(seed, 0, size);
            prop_assert!(permutation.at(at % size) < size);
        }

        #[test]
        fn a_split_takes_every_sample_once(seed in any::<u64>(), samples in 0u64..2_000, share in 0.0f64..1.0) {
            let (train, validation) = split(seed, samples, share);
            let mut all = [train, validation].concat();
            all.sort_unstable();
            prop_assert!(all.into_iter().eq(0..samples));
        }
    }
}
