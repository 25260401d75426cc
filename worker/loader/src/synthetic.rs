//! Samples made from the seed alone, for trials and tests: nothing to download, and any size.
//!
//! Integer hashes and exact f32 sums only, so that every machine makes the same bits.

use crate::order::mix;
use crate::samples::Samples;

/// `classes` clouds in `features` dimensions; sample i belongs to cloud i mod `classes`.
pub(crate) fn clouds(seed: u64, samples: u64, features: u32, classes: u32) -> Samples {
    let width = features as usize;
    let key = mix(seed ^ CLOUDS);
    let centres: Vec<f32> = (0..u64::from(classes) * u64::from(features)).map(|i| bell(mix(key ^ i))).collect();
    let noise = mix(key);
    let mut numbers = Vec::with_capacity(samples as usize * width);
    let mut labels = Vec::with_capacity(samples as usize);
    for sample in 0..samples {
        let class = (sample % u64::from(classes)) as usize;
        let own = mix(noise ^ sample);
        let centre = &centres[class * width..(class + 1) * width];
        numbers.extend((0u64..).zip(centre).map(|(place, centre)| centre + bell(mix(own ^ place))));
        labels.push(class as i32);
    }
    Samples::Rows { features: numbers, classes: labels, width, class_count: classes as usize }
}

/// A stream of `samples * context + 1` tokens in which seven of eight follow from the one before.
pub(crate) fn tokens(seed: u64, samples: u64, context: u32, vocab: u32) -> Samples {
    let key = mix(seed ^ TOKENS);
    let draw = |x: u64| (mix(x) % u64::from(vocab)) as i32;
    let follower: Vec<i32> = (0..u64::from(vocab)).map(|token| draw(key ^ token)).collect();
    let own = mix(key);
    let length = samples as usize * context as usize + 1;
    let mut stream = Vec::with_capacity(length);
    let mut token = draw(own);
    for place in 1..=length as u64 {
        stream.push(token);
        let chance = mix(own ^ place);
        token = if chance.is_multiple_of(8) { draw(chance) } else { follower[token as usize] };
    }
    Samples::Windows { tokens: stream, context: context as usize, vocab: vocab as usize }
}

const CLOUDS: u64 = 0x636c_6f75_6473_0001;
const TOKENS: u64 = 0x746f_6b65_6e73_0001;

/// Near enough to a normal distribution: the sum of four even ones of 16 bits, all exact in f32, scaled
/// to variance 1.
fn bell(x: u64) -> f32 {
    let sum: u32 = (0..4).map(|part| (x >> (16 * part)) as u32 & 0xffff).sum();
    (sum as f32 - 131_070.0) * (1.732_050_8 / 65_536.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bell_has_mean_zero_and_variance_one() {
        let drawn: Vec<f64> = (0..20_000).map(|i| f64::from(bell(mix(i)))).collect();
        let mean = drawn.iter().sum::<f64>() / 20_000.0;
        let variance = drawn.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }

    #[test]
    fn a_seed_makes_the_same_samples_and_another_seed_others() {
        let numbers = |seed| match clouds(seed, 10, 3, 2) {
            Samples::Rows { features, .. } => features,
            Samples::Windows { .. } => panic!("clouds are rows"),
        };
        assert_eq!(numbers(1), numbers(1));
        assert_ne!(numbers(1), numbers(2));
        assert_eq!(numbers(1).len(), 30);
    }

    #[test]
    fn tokens_lie_in_the_vocabulary_and_mostly_follow_from_the_one_before() {
        let Samples::Windows { tokens, .. } = tokens(5, 100, 16, 11) else { panic!("tokens are windows") };
        assert_eq!(tokens.len(), 1601);
        assert!(tokens.iter().all(|token| (0..11).contains(token)));
        let mut follows = [[0u32; 11]; 11];
        tokens.windows(2).for_each(|pair| follows[pair[0] as usize][pair[1] as usize] += 1);
        let likeliest: u32 = follows.iter().map(|row| row.iter().max().copied().unwrap_or(0)).sum();
        assert!(likeliest > 1300, "{likeliest} of 1600");
    }
}
