//! Numerical traps of products in bf16, one test each. docs/numerics.md has the table with the reasons.

use crate::common::{Build, Case, Ints, Outcome, apply, random};
use elastic_tensor::bf16::{Pair, dot};
use elastic_tensor::mixed::Mixed;
use elastic_tensor::ops::*;
use elastic_tensor::real::Real;

fn run(shapes: &[&[usize]], build: Build, inputs: &[Vec<f64>], dy: &[f64]) -> Outcome<Mixed> {
    let shapes = shapes.iter().map(|s| s.to_vec()).collect();
    Case { shapes, ints: Ints::default(), smoothing: 0.0, build }.run::<Mixed>(inputs, dy)
}

fn numbers(values: &[Mixed]) -> Vec<f64> {
    values.iter().map(|x| x.f64()).collect()
}

const LINEAR: Build = |g, x, _| apply(g, Op::Linear(Linear), x);
const ADD: Build = |g, x, _| apply(g, Op::Add(Add), x);
const ATTENTION: Build = |g, x, _| apply(g, Op::CausalAttention(CausalAttention { heads: 2 }), x);

const LONG: usize = 1 << 14;

#[test]
fn a_sum_of_16k_products_in_bf16_does_not_stand_still() {
    // A sum kept in bf16 stops at 256, where 1 is half of the last digit.
    let ones = vec![1.0; LONG];
    let out = run(&[&[1, LONG], &[1, LONG]], LINEAR, &[ones.clone(), ones], &[1.0]);
    assert_eq!(numbers(&out.y), [LONG as f64]);
}

#[test]
fn a_sum_of_16k_random_products_in_bf16_is_off_by_what_f32_is_off() {
    // Multiples of 1/128 are bf16 as they are: what is left is the rounding of the sums.
    let rounded = |name| random(name, LONG).iter().map(|x| (x * 128.0).round() / 128.0).collect::<Vec<f64>>();
    let (x, w) = (rounded("x"), rounded("w"));
    let exact: f64 = x.iter().zip(&w).map(|(x, w)| x * w).sum();
    let size: f64 = x.iter().zip(&w).map(|(x, w)| (x * w).abs()).sum();
    let out = run(&[&[1, LONG], &[1, LONG]], LINEAR, &[x, w], &[1.0]);
    let off = (numbers(&out.y)[0] - exact).abs() / size;
    assert!(off < 1e-6, "off by {off:e} of the sum of sizes");
}

#[test]
fn operands_are_rounded_to_the_nearest_even_bf16_and_results_are_not() {
    let tie = 1.0 + 1.0 / 256.0;
    // The weight is 1, so that y is the operand as the product read it.
    let read = |x: f64| numbers(&run(&[&[1, 1], &[1, 1]], LINEAR, &[vec![x], vec![1.0]], &[1.0]).y)[0];
    assert_eq!(read(tie), 1.0);
    assert_eq!(read(1.0 + 3.0 / 256.0), 1.0 + 1.0 / 64.0);
    assert_eq!(read(tie + 1e-6), 1.0 + 1.0 / 128.0);
    assert_eq!(read(3.4e38), f64::INFINITY);
    assert_eq!(read(1e-40).to_bits(), 0);
    let products = run(&[&[1, 2], &[1, 2]], LINEAR, &[vec![1.0, tie], vec![1.0 / 65536.0, 1.0]], &[1.0]);
    assert_eq!(numbers(&products.y), [1.0 + 1.0 / 65536.0], "a sum keeps the digits of f32");
    let sum = run(&[&[1], &[1]], ADD, &[vec![tie], vec![0.0]], &[1.0]);
    assert_eq!(numbers(&sum.y), [tie], "what is no product is f32");
}

#[test]
fn products_that_are_denormal_are_zeros_in_bf16() {
    // The smallest normal number is 1.18e-38.
    let product = |x: f64, w: f64| numbers(&run(&[&[1, 1], &[1, 1]], LINEAR, &[vec![x], vec![w]], &[1.0]).y)[0];
    assert_eq!(product(1e-19, 1e-19), 0.0);
    assert!(product(1.2e-19, 1.2e-19) > 1e-38);
    let sums = run(&[&[1, 4], &[1, 4]], LINEAR, &[vec![1e-19; 4], vec![1e-19; 4]], &[1.0]);
    assert_eq!(numbers(&sums.y), [0.0], "four of them are not added up");
}

#[test]
fn a_nan_in_a_value_in_bf16_spoils_the_queries_that_see_it_and_no_earlier_one() {
    let (tokens, width) = (41, 8);
    // Keys and values are read in pairs: the token before an odd one shares its pair.
    for spoilt in [10, 11, 31, 32, 40] {
        for part in [1, 2] {
            for wrong in [f64::NAN, f64::INFINITY, 3.4e38] {
                let mut x = random("x", tokens * 3 * width);
                // The first number of the second head's key or value.
                x[spoilt * 3 * width + part * width + width / 2] = wrong;
                let out = run(&[&[1, tokens, 3 * width]], ATTENTION, &[x], &vec![1.0; tokens * width]);
                for (i, y) in numbers(&out.y).iter().enumerate() {
                    let (token, head) = (i / width, i % width / (width / 2));
                    let sees = token >= spoilt && head == 1;
                    let what = format!("token {token}, head {head} with {wrong} at {spoilt}: {y}");
                    assert!(sees || y.is_finite(), "{what}");
                    if wrong.is_nan() && sees && (part == 1 || i % (width / 2) == 0) {
                        assert!(y.is_nan(), "{what}");
                    }
                }
            }
        }
    }
}

/// An element of a plane, zero in the margins.
fn pixel(x: &[f64], (plane, h, w): (usize, usize, usize), y: isize, column: isize) -> f32 {
    let is_inside = y >= 0 && column >= 0 && (y as usize) < h && (column as usize) < w;
    if is_inside { x[(plane * h + y as usize) * w + column as usize] as f32 } else { 0.0 }
}

#[test]
fn a_convolution_in_bf16_takes_two_planes_at_a_tap_and_its_weight_two_pixels_of_a_row() {
    let build: [Build; 2] = [
        |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 1, pad: 1 }), x),
        |g, x, _| apply(g, Op::Conv2d(Conv2d { stride: 2, pad: 1 }), x),
    ];
    // Odd numbers of planes and of pixels in a row: both end with half a pair.
    let (samples, inner, outer, h, w, kernel) = (2, 3, 4, 6, 5, 3);
    for (build, stride) in build.into_iter().zip([1, 2]) {
        let (oh, ow) = ((h + 2 - kernel) / stride + 1, (w + 2 - kernel) / stride + 1);
        let (x, weight) = (random("x", samples * inner * h * w), random("w", outer * inner * kernel * kernel));
        let dy = random("dy", samples * outer * oh * ow);
        let shapes: [&[usize]; 2] = [&[samples, inner, h, w], &[outer, inner, kernel, kernel]];
        let out = run(&shapes, build, &[x.clone(), weight.clone()], &dy);
        let x_at = |sample: usize, c: usize, y: usize, ky: usize, column: usize, kx: usize| {
            let (y, column) = ((y * stride + ky) as isize - 1, (column * stride + kx) as isize - 1);
            if c < inner { pixel(&x, (sample * inner + c, h, w), y, column) } else { 0.0 }
        };
        let w_at = |o: usize, c: usize, ky: usize, kx: usize| match c < inner {
            true => weight[((o * inner + c) * kernel + ky) * kernel + kx] as f32,
            false => 0.0,
        };
        for (i, got) in out.y.iter().enumerate() {
            let (ox, oy, o, sample) = (i % ow, i / ow % oh, i / ow / oh % outer, i / ow / oh / outer);
            let mut sum = 0.0;
            for (c, ky, kx) in (0..inner).step_by(2).flat_map(|c| (0..9).map(move |tap| (c, tap / 3, tap % 3))) {
                let a = Pair::new(x_at(sample, c, oy, ky, ox, kx), x_at(sample, c + 1, oy, ky, ox, kx));
                sum = dot(sum, a, Pair::new(w_at(o, c, ky, kx), w_at(o, c + 1, ky, kx)));
            }
            assert_eq!(got.f64(), sum as f64, "y of sample {sample}, channel {o}, at {oy}, {ox}");
        }
        for (i, got) in out.dx[1].iter().enumerate() {
            let (kx, ky, c, o) = (i % 3, i / 3 % 3, i / 9 % inner, i / 9 / inner);
            let mut sum = 0.0;
            for (sample, oy, ox) in
                (0..samples * oh).flat_map(|row| (0..ow).step_by(2).map(move |ox| (row / oh, row % oh, ox)))
            {
                let dy_at = |ox: usize| match ox < ow {
                    true => dy[((sample * outer + o) * oh + oy) * ow + ox] as f32,
                    false => 0.0,
                };
                // What lies behind an odd row's last pixel is multiplied by zero.
                let next = if ox + 1 < ow { x_at(sample, c, oy, ky, ox + 1, kx) } else { 0.0 };
                let a = Pair::new(x_at(sample, c, oy, ky, ox, kx), next);
                sum = dot(sum, a, Pair::new(dy_at(ox), dy_at(ox + 1)));
            }
            assert_eq!(got.f64(), sum as f64, "dw of {o}, {c}, {ky}, {kx}");
        }
    }
}
