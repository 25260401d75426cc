//! How far exp, exp2 and ln are from exact, exponent by exponent. Sampled; all 2³² numbers with ELASTIC_FULL=1.

use elastic_tensor::real::Real;

/// Distance in units of the last place of the exact value; 0 where both are the same infinity or NaN.
fn ulps(got: f32, exact: f64) -> f64 {
    let near = exact as f32;
    if got.to_bits() == near.to_bits() || (got.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    let size = near.abs().min(f32::MAX);
    let ulp = (f32::from_bits(size.to_bits() + 1).min(f32::MAX) as f64 - size as f64).max(f32::from_bits(1) as f64);
    (got as f64 - exact).abs() / ulp
}

/// The worst number of each exponent and sign, over the mantissas that are looked at.
fn worst(function: fn(f32) -> f32, exact: fn(f64) -> f64, from: fn(f32) -> bool) -> (f64, f32) {
    let is_full = std::env::var_os("ELASTIC_FULL").is_some();
    // A prime stride looks at about 500 of each exponent's mantissas, and at its ends.
    let stride = if is_full { 1 } else { 16_411 };
    let mut worst = (0.0, 0.0);
    for top in 0..512u32 {
        let mantissas = (0..1 << 23).step_by(stride).chain([(1 << 23) - 1]);
        for x in mantissas.map(|mantissa: u32| f32::from_bits(top << 23 | mantissa)).filter(|x| from(*x)) {
            let off = ulps(function(x), exact(x as f64));
            if off > worst.0 || off.is_nan() {
                worst = (off, x);
            }
        }
    }
    worst
}

#[test]
fn exp_is_within_two_ulps_wherever_its_result_is_a_normal_number() {
    let (off, at) = worst(Real::exp, libm::exp, |x| x.is_nan() || (-87.3365..=88.3762).contains(&x));
    assert!(off <= 2.0, "exp({at:e}) is {off} ulps off");
}

#[test]
fn exp_is_zero_below_minus_87_69_and_infinite_a_hair_early() {
    for x in [-87.7f32, -88.0, -103.0, -1e4, f32::MIN, f32::NEG_INFINITY] {
        assert_eq!(Real::exp(x).to_bits(), 0, "exp({x:e})");
    }
    // The largest finite result of the exact function is at 88.72284.
    for x in [88.38f32, 88.8, 1e4, f32::MAX, f32::INFINITY] {
        assert_eq!(Real::exp(x), f32::INFINITY, "exp({x:e})");
    }
}

#[test]
fn exp2_is_within_two_ulps_wherever_its_result_is_a_normal_number() {
    let (off, at) = worst(Real::exp2, libm::exp2, |x| x.is_nan() || (-126.0..127.5).contains(&x));
    assert!(off <= 2.0, "exp2({at:e}) is {off} ulps off");
}

#[test]
fn ln_is_within_one_ulp_over_all_numbers() {
    let (off, at) = worst(Real::ln, libm::log, |_| true);
    assert!(off <= 1.0, "ln({at:e}) is {off} ulps off");
}
