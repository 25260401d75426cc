//! An average of the weights that follows them from step to step.
//!
//! average += (1 - decay) · (weight - average), each operation rounded to f32: the exponential moving average (Polyak and
//! Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, with weights that fade). It begins as the
//! initial weights. Elements are apart, so the bits do not depend on threads.

use crate::simd::{Set, vectorised};
use crate::team::Team;

/// One step. `average` is as long as `weights`; `decay` is between 0 and 1.
pub fn follow(team: &Team, decay: f64, weights: &[f32], average: &mut [f32]) {
    assert_eq!(weights.len(), average.len(), "each weight has its average");
    let _ieee = crate::float_mode::Ieee::enter();
    let (set, rate) = (Set::best(), rate(decay));
    team.chunks(average, CHUNK, |_, i, average| chunk(set, rate, &weights[i * CHUNK..], average));
}

/// How far the average goes towards a weight in one step.
pub fn rate(decay: f64) -> f32 {
    (1.0 - decay) as f32
}

/// A quarter of a megabyte read and written.
const CHUNK: usize = 32 << 10;

vectorised! {
    fn chunk[](rate: f32, weights: &[f32], average: &mut [f32]) {
        average.iter_mut().zip(weights).for_each(|(average, weight)| *average += rate * (*weight - *average));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::{FORCED, Isa};

    #[test]
    fn a_hundred_steps_have_the_formulas_bits_on_every_set_and_near_the_exact_average() {
        let len = CHUNK + 77;
        let weight = |step: usize, i: usize| ((step * 31 + i * 17) % 101) as f32 / 50.0 - 1.0;
        let decay = 0.97;
        let (mut plain, mut exact) = (vec![0.25f32; len], vec![0.25f64; len]);
        for step in 0..100 {
            for (i, (plain, exact)) in plain.iter_mut().zip(&mut exact).enumerate() {
                *plain += (1.0 - decay) as f32 * (weight(step, i) - *plain);
                *exact = decay * *exact + (1.0 - decay) * f64::from(weight(step, i));
            }
        }
        assert!(plain.iter().zip(&exact).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6));
        for isa in Isa::here() {
            FORCED.set(Some(isa));
            for threads in [1, 3] {
                let (team, mut average) = (Team::new(threads), vec![0.25f32; len]);
                for step in 0..100 {
                    let weights: Vec<f32> = (0..len).map(|i| weight(step, i)).collect();
                    follow(&team, decay, &weights, &mut average);
                }
                assert!(average.iter().zip(&plain).all(|(a, b)| a.to_bits() == b.to_bits()), "{isa:?}, {threads}");
            }
        }
        FORCED.set(None);
    }
}
