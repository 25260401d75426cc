//! exp, exp2, ln and tanh for f32 by own polynomials, the same bits on every machine.
//!
//! The platform's libm differs between systems, so no tensor kernel calls it. Plain multiplications and
//! additions without branches: compilers vectorise them and never fuse them. Host scalars in f64 (learning
//! rates, initialisation) use the `libm` crate.

/// Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// e^x within 2 ulp. Infinity over 88.37 (a hair early), 0 under -87.69. Coefficients: Cephes (Moshier), expf.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // The ends are those where the rounded exponent becomes that of infinity and that of zero.
    let x = clamp(x, -88.0, 88.7);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    (p * (r * r) + r + 1.0) * power(shifted)
}

/// 2^x within 2 ulp. Infinity from 127.5 on (a hair early), 0 under -126.5. Coefficients: Chebyshev interpolation of
/// (2^x - 1) / x on -1/2 to 1/2; the rounded polynomial is off by 9.2e-9.
#[inline(always)]
pub fn exp2(x: f32) -> f32 {
    let x = clamp(x, -127.0, 128.0);
    let shifted = x + ROUND;
    let r = x - (shifted - ROUND);
    let mut p = 1.545_316_3e-4;
    for c in [1.339_086_3e-3, 9.618_083e-3, 5.550_357e-2, 2.402_265e-1, 6.931_472e-1] {
        p = p * r + c;
    }
    (p * r + 1.0) * power(shifted)
}

/// Natural logarithm within 2 ulp; of 0 minus infinity, of less a NaN. Coefficients: Cephes (Moshier), logf.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    /// Bits of the root of 1/2: the mantissa is taken from there up to the root of 2.
    const HALF_ROOT: u32 = 0x3f35_04f3;
    let is_subnormal = x < f32::MIN_POSITIVE;
    let bits = (if is_subnormal { x * 8_388_608.0 } else { x }).to_bits().wrapping_sub(HALF_ROOT);
    let exponent = ((bits as i32) >> 23) as f32 - if is_subnormal { 23.0 } else { 0.0 };
    let r = f32::from_bits((bits & 0x007f_ffff) + HALF_ROOT) - 1.0;
    let mut p = 7.037_683_6e-2;
    for c in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = p * r + c;
    }
    let z = r * r;
    let y = p * r * z + exponent * -2.121_944_4e-4 - 0.5 * z + r + exponent * 0.693_359_4;
    let y = if x < f32::INFINITY { y } else { x };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    if x < 0.0 { f32::NAN } else { y }
}

/// Hyperbolic tangent within 3 ulp, odd, ±1 from 9.02 on. Coefficients: Cephes (Moshier), tanhf.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let size = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    // Near 0 the quotient of exponentials would lose its digits.
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [2.063_909e-2, -5.373_971_6e-2, 1.333_147_9e-1, -3.333_328e-1] {
        p = p * z + c;
    }
    let near = p * z * size + size;
    let far = 1.0 - 2.0 / (exp(size + size) + 1.0);
    let y = if size < 0.625 { near } else { far };
    f32::from_bits(y.to_bits() | (x.to_bits() & 0x8000_0000))
}

/// x to a whole power by squaring.
#[inline(always)]
pub fn whole_power(x: f64, power: i32) -> f64 {
    let (mut y, mut square, mut rest) = (1.0, x, power.unsigned_abs());
    while rest > 0 {
        if rest % 2 == 1 {
            y *= square;
        }
        square *= square;
        rest /= 2;
    }
    if power < 0 { 1.0 / y } else { y }
}

/// 2^n for an n from -127 (which gives 0) to 128 (infinity) that [`ROUND`] was added to.
#[inline(always)]
fn power(shifted: f32) -> f32 {
    f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// Written so that a NaN stays one, and as two instructions.
#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > high { high } else { x };
    if x < low { low } else { x }
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
    fn exp_and_exp2_are_within_two_ulps_over_their_range() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            assert!(ulps(exp(x), libm::exp(x as f64)) <= 2.0, "exp({x}) = {}", exp(x));
        }
        for i in -1_260_000..1_274_000 {
            let x = i as f32 * 1e-4;
            assert!(ulps(exp2(x), libm::exp2(x as f64)) <= 2.0, "exp2({x}) = {}", exp2(x));
        }
    }

    #[test]
    fn ln_is_within_two_ulps_over_its_range() {
        for i in 1..0x7f80_0000u32 / 997 {
            let x = f32::from_bits(i * 997);
            assert!(ulps(ln(x), libm::log(x as f64)) <= 2.0, "ln({x}) = {}", ln(x));
        }
        for i in -400_000..400_000 {
            let x = 1.0 + i as f32 * 1e-6;
            assert!(ulps(ln(x), libm::log(x as f64)) <= 2.0, "ln({x}) = {}", ln(x));
        }
        assert_eq!((ln(1.0), ln(0.0), ln(-0.0)), (0.0, f32::NEG_INFINITY, f32::NEG_INFINITY));
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(ln(-1.0).is_nan() && ln(f32::NEG_INFINITY).is_nan() && ln(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_three_ulps_and_keeps_its_ends_and_signs() {
        for i in -1_000_000..1_000_000 {
            let x = i as f32 * 1e-5;
            assert!(ulps(tanh(x), libm::tanh(x as f64)) <= 3.0, "tanh({x}) = {}", tanh(x));
            assert_eq!(tanh(-x).to_bits(), (-tanh(x)).to_bits());
        }
        assert_eq!((tanh(f32::INFINITY), tanh(-50.0), tanh(-0.0).to_bits()), (1.0, -1.0, (-0.0f32).to_bits()));
        assert_eq!(tanh(1e-40), 1e-40);
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn the_ends_of_the_range_are_kept() {
        for (f, zero, infinity) in [(exp as fn(f32) -> f32, -87.7, 88.4), (exp2, -126.6, 127.6)] {
            assert_eq!((f(0.0), f(-0.0)), (1.0, 1.0));
            for (x, y) in [(zero, 0.0), (infinity, f32::INFINITY)] {
                assert_eq!((f(x), f(x * 10.0), f(x * f32::INFINITY)), (y, y, y), "at {x}");
            }
            assert!(f(infinity - 0.2).is_finite() && f(zero + 0.3) > 0.0);
            assert!(f(f32::NAN).is_nan());
        }
    }
}
