//! exp and tanh for f32 by own polynomials, the same bits on every machine.
//!
//! The platform's libm differs between systems, so no tensor kernel calls it. Plain multiplications and
//! additions without branches: compilers vectorise them and never fuse them. Host scalars in f64 (learning
//! rates, initialisation) use the `libm` crate. Coefficients: Cephes (Moshier), expf and tanhf.

/// e^x within 2 ulp. Results under the smallest normal number are 0; over 88.37 (a hair early) infinity.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const HIGH: f32 = 88.376_26;
    const LOW: f32 = -87.336_54;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > HIGH { HIGH } else { x };
    let clamped = if clamped < LOW { LOW } else { clamped };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let p = p * (r * r) + r + 1.0;
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    let y = p * scale;
    let y = if x < LOW { 0.0 } else { y };
    if x > HIGH { f32::INFINITY } else { y }
}

/// tanh within 2 ulp.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328e-1] {
        p = p * z + c;
    }
    let small = p * z * x + x;
    let size = x.abs();
    // Beyond 10 tanh rounds to 1; the clamp keeps exp finite. Written so that a NaN stays one.
    let bounded = if size > 10.0 { 10.0 } else { size };
    let large = 1.0 - 2.0 / (exp(bounded + bounded) + 1.0);
    let large = if x < 0.0 { -large } else { large };
    if size < 0.625 { small } else { large }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps(got: f32, exact: f64) -> f64 {
        let near = exact as f32;
        let ulp = (f32::from_bits(near.abs().to_bits() + 1) - near.abs()) as f64;
        (got as f64 - exact).abs() / ulp
    }

    #[test]
    fn exp_and_tanh_are_within_two_ulps_over_their_range() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            assert!(ulps(exp(x), libm::exp(x as f64)) <= 2.0, "exp({x}) = {}", exp(x));
        }
        for i in -200_000..200_000 {
            let x = i as f32 * 7e-5;
            assert!(ulps(tanh(x), libm::tanh(x as f64)) <= 2.0, "tanh({x}) = {}", tanh(x));
        }
    }

    #[test]
    fn the_ends_of_the_range_are_kept() {
        assert_eq!((exp(0.0), exp(-0.0), exp(200.0), exp(-200.0)), (1.0, 1.0, f32::INFINITY, 0.0));
        assert_eq!((exp(f32::INFINITY), exp(f32::NEG_INFINITY)), (f32::INFINITY, 0.0));
        assert_eq!((tanh(50.0), tanh(f32::NEG_INFINITY), tanh(0.0)), (1.0, -1.0, 0.0));
        assert!(exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
    }
}
