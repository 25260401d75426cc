//! Which token comes next: a pure function of the logits, of what is asked for, and of the place in the text.
//!
//! Random numbers are Philox's, counted by place and choice. So a seed gives the same tokens whoever else is served at
//! the time, and a text that is asked for again is the same text.

use crate::class_of;
use elastic_tensor::philox::Stream;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the first of the largest logits.
    pub temperature: f64,
    /// The most likely tokens that have this probability together; 1 takes all.
    pub top_p: f64,
    /// So many of the most likely tokens; 0 takes all.
    pub top_k: usize,
    pub seed: u64,
}

impl Sampling {
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
}

/// Where a token stands: which of the texts that one request asks for, and how many were drawn before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    pub choice: u32,
    pub token: u32,
}

/// A logit that is no number is never drawn.
pub fn choose(logits: &[f32], sampling: &Sampling, draw: Draw) -> usize {
    let best = class_of_numbers(logits);
    if sampling.temperature <= 0.0 || sampling.top_k == 1 || !logits[best].is_finite() {
        return best;
    }
    let top = f64::from(logits[best]);
    let weight = |x: f32| match libm::exp((f64::from(x) - top) / sampling.temperature) {
        weight if weight.is_nan() => 0.0,
        weight => weight,
    };
    let uniform = uniform(sampling.seed, draw);
    if sampling.top_p >= 1.0 && sampling.top_k == 0 {
        return pick(uniform, best, logits.iter().map(|x| weight(*x)).enumerate());
    }
    let mut likely: Vec<(usize, f64)> = logits.iter().map(|x| weight(*x)).enumerate().collect();
    let all: f64 = likely.iter().map(|(_, weight)| weight).sum();
    likely.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    if sampling.top_k > 0 {
        likely.truncate(sampling.top_k);
    }
    let mut sum = 0.0;
    let enough = likely.iter().position(|(_, weight)| {
        sum += weight;
        sum >= sampling.top_p * all
    });
    likely.truncate(enough.map_or(likely.len(), |last| last + 1));
    pick(uniform, best, likely.iter().copied())
}

/// In [0, 1), with 53 bits.
fn uniform(seed: u64, draw: Draw) -> f64 {
    let [high, low, ..] = Stream::new(seed, "sample").words([draw.token, draw.choice, 0, 0]);
    ((u64::from(high) << 21) | (u64::from(low) >> 11)) as f64 / (1u64 << 53) as f64
}

/// The first token whose weight, with those before it, is more than its share of all.
fn pick(share: f64, best: usize, weights: impl Iterator<Item = (usize, f64)> + Clone) -> usize {
    let all: f64 = weights.clone().map(|(_, weight)| weight).sum();
    let mut sum = 0.0;
    for (token, weight) in weights {
        sum += weight;
        if sum > share * all {
            return token;
        }
    }
    best
}

fn class_of_numbers(logits: &[f32]) -> usize {
    match logits.first() {
        Some(first) if first.is_nan() => {
            let start = logits.iter().position(|x| !x.is_nan()).unwrap_or(0);
            start + class_of(&logits[start..])
        }
        _ => class_of(logits),
    }
}

/// Logarithms of probabilities: the token's own, and the most likely tokens with theirs, first the likeliest.
#[derive(Clone, Debug, PartialEq)]
pub struct Likelihood {
    pub own: f64,
    pub top: Vec<(i32, f64)>,
}

/// Of a token among logits, whatever the temperature.
pub fn likelihood(logits: &[f32], token: usize, top: usize) -> Likelihood {
    let largest = f64::from(logits[class_of_numbers(logits)]);
    let sum: f64 = logits.iter().map(|x| libm::exp(f64::from(*x) - largest)).sum();
    let of = |token: usize| f64::from(logits[token]) - largest - libm::log(sum);
    let mut likely: Vec<usize> = (0..logits.len()).collect();
    let order = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    let top = top.min(likely.len());
    if top > 0 && top < likely.len() {
        likely.select_nth_unstable_by(top - 1, order);
    }
    likely.truncate(top);
    likely.sort_by(order);
    Likelihood { own: of(token), top: likely.into_iter().map(|token| (token as i32, of(token))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANY: Sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed: 5 };

    fn draws(logits: &[f32], sampling: &Sampling) -> Vec<usize> {
        (0..20_000).map(|token| choose(logits, sampling, Draw { choice: 0, token })).collect()
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits = [1.0f32, 3.0, 2.0, -1.0, f32::NEG_INFINITY, f32::NAN];
        for temperature in [0.5, 1.0, 2.0] {
            let drawn = draws(&logits, &Sampling { temperature, ..ANY });
            let weight = |token: usize| (f64::from(logits[token]) / temperature).exp();
            let all: f64 = (0..4).map(weight).sum();
            for token in 0..6 {
                let wanted = if token < 4 { weight(token) / all } else { 0.0 };
                let share = drawn.iter().filter(|t| **t == token).count() as f64 / drawn.len() as f64;
                // Four standard deviations.
                assert!(
                    (share - wanted).abs() <= 4.0 * (wanted * (1.0 - wanted) / 20_000.0).sqrt(),
                    "{token}: {share}"
                );
            }
        }
    }

    #[test]
    fn a_seed_and_a_choice_have_their_own_tokens_and_always_the_same() {
        let logits = [0.0f32; 16];
        let drawn = |seed, choice| {
            let sampling = Sampling { seed, ..ANY };
            (0..64).map(|token| choose(&logits, &sampling, Draw { choice, token })).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1, 0), drawn(1, 0));
        assert_ne!(drawn(1, 0), drawn(2, 0));
        assert_ne!(drawn(1, 0), drawn(1, 1));
    }

    #[test]
    fn likelihoods_are_logarithms_of_probabilities_in_order() {
        let logits = [2.0f32, 1.0, 2.0, 0.5];
        let found = likelihood(&logits, 1, 3);
        let sum: f64 = logits.iter().map(|x| f64::from(*x).exp()).sum();
        assert!((found.own - (1.0 - sum.ln())).abs() < 1e-12);
        assert_eq!(found.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!(found.top[2].1, found.own);
        assert!(likelihood(&logits, 0, 0).top.is_empty());
        assert_eq!(likelihood(&logits, 0, 100).top.len(), 4);
    }

    proptest! {
        #[test]
        fn what_is_drawn_is_among_the_likeliest_that_were_asked_for(
            logits in prop::collection::vec(-9.0f32..9.0, 1..40),
            temperature in 0.05f64..3.0,
            top_p in 0.01f64..=1.0,
            top_k in 0usize..12,
            seed: u64,
            token: u32,
        ) {
            let sampling = Sampling { temperature, top_p, top_k, seed };
            let drawn = choose(&logits, &sampling, Draw { choice: 0, token });
            let better = logits.iter().filter(|x| **x > logits[drawn]);
            prop_assert!(top_k == 0 || better.clone().count() < top_k);
            // Those that are likelier do not have top_p together, or it would not have been reached.
            let weight = |x: &f32| (f64::from(*x) / temperature).exp();
            let all: f64 = logits.iter().map(weight).sum();
            prop_assert!(better.map(weight).sum::<f64>() < top_p * all * (1.0 + 1e-9));
        }

        #[test]
        fn without_a_temperature_or_a_second_candidate_it_is_the_first_of_the_largest(
            logits in prop::collection::vec((-3i8..3).prop_map(f32::from), 1..30),
            seed: u64,
        ) {
            let draw = Draw { choice: 1, token: 2 };
            let best = class_of(&logits);
            prop_assert_eq!(choose(&logits, &Sampling::GREEDY, draw), best);
            prop_assert_eq!(choose(&logits, &Sampling { top_k: 1, seed, ..ANY }, draw), best);
            prop_assert_eq!(choose(&logits, &Sampling { top_p: 1e-9, seed, ..ANY }, draw), best);
        }
    }
}
