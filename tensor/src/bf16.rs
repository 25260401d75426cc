//! Numbers of bf16: rounding to them, and the product of two pairs, which the instruction `vdpbf16ps` defines.
//!
//! A bf16 is the upper half of an f32. Rounding is to nearest, ties to even; what is denormal becomes a zero of its
//! sign, NaN becomes the one NaN. [`dot`] is what the instruction does, in arithmetic that any machine has: Intel's
//! manual says two fused multiply-adds one after the other, the pair's second number first, each rounded to nearest
//! even, with denormal operands and results taken as zeros of their sign whatever the thread's mode. Whether a result
//! is denormal is asked after rounding to 24 bits, as x86 does when it flushes. AMD's processors do the same: the test
//! below compares millions of pairs with the machine's instruction where it has one.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use crate::gemm::Isa;
use crate::real::{Real, Rows};
use crate::simd::{Set, vectorised};

/// Two bf16 that are neighbours along k: the first in the lower half, the second in the upper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Pair(u32);

const UPPER: u32 = 0xffff_0000;
const MIN: u32 = 0x0080_0000;
const INFINITY: u32 = 0x7f80_0000;
const SIGN: u32 = 0x8000_0000;
const NAN: u32 = <f32 as Real>::NAN.to_bits();

/// The nearest bf16, as an f32's bits: the lower half is 0.
#[inline(always)]
fn round(x: f32) -> u32 {
    let bits = x.to_bits();
    let size = bits & !SIGN;
    let near = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & UPPER;
    let near = if size < MIN { bits & SIGN } else { near };
    if size > INFINITY { NAN } else { near }
}

impl Pair {
    #[inline(always)]
    pub fn new(first: f32, second: f32) -> Pair {
        Pair(round(first) >> 16 | round(second))
    }

    #[inline(always)]
    pub fn first(self) -> f32 {
        f32::from_bits(self.0 << 16)
    }

    #[inline(always)]
    pub fn second(self) -> f32 {
        f32::from_bits(self.0 & UPPER)
    }

    /// Without its second number.
    pub fn without_second(self) -> Pair {
        Pair(self.0 & !UPPER)
    }

    /// Neither is infinite or NaN.
    #[inline(always)]
    pub fn is_finite(self) -> bool {
        let is_special = |bits: u32| bits & INFINITY == INFINITY;
        !(is_special(self.0) | is_special(self.0 << 16))
    }
}

vectorised! {
    fn lengthwise_on[](row: &[f32], to: &mut [Pair]) {
        let (pairs, rest) = row.as_chunks::<2>();
        for (to, pair) in to.iter_mut().zip(pairs) {
            *to = Pair::new(pair[0], pair[1]);
        }
        if let [last] = rest {
            to[pairs.len()] = Pair::new(*last, 0.0);
        }
    }
}

vectorised! {
    fn crosswise_on[](first: &[f32], second: &[f32], to: &mut [Pair]) {
        match second {
            [] => to.iter_mut().zip(first).for_each(|(to, a)| *to = Pair::new(*a, 0.0)),
            _ => to.iter_mut().zip(first.iter().zip(second)).for_each(|(to, (a, b))| *to = Pair::new(*a, *b)),
        }
    }
}

/// Neighbours of one row as pairs, with a zero behind an odd last one.
pub(crate) fn lengthwise(set: Set, row: &[f32], to: &mut [Pair]) {
    assert!(to.len() == row.len().div_ceil(2), "a pair for every two numbers");
    #[cfg(target_arch = "x86_64")]
    if has_instructions(set.isa()) {
        // SAFETY: the machine has them, and `to` is long enough.
        return unsafe { avx512::lengthwise(row, to) };
    }
    lengthwise_on(set, row, to);
}

/// What loops without bounds checks rely on.
fn check(rows: &Rows<'_, f32>) {
    let last = rows.count.saturating_sub(1) * rows.stride;
    assert!(rows.count == 0 || rows.data.len() >= last + rows.width, "the matrix holds its rows");
}

/// The numbers of two rows at a time, one below the other, as rows of pairs of `width`, zeros behind the last. An odd
/// last row has one of zeros below it.
pub(crate) fn crosswise(set: Set, rows: Rows<'_, f32>, width: usize, to: &mut [Pair]) {
    check(&rows);
    assert!(rows.width <= width && to.len() >= rows.count.div_ceil(2) * width, "a pair for every two rows");
    #[cfg(target_arch = "x86_64")]
    if has_instructions(set.isa()) {
        // SAFETY: the machine has them, and the slices hold their rows.
        return unsafe { avx512::crosswise(rows, width, to) };
    }
    for (first, to) in (0..rows.count).step_by(2).zip(to.chunks_exact_mut(width.max(1))) {
        let row = |i: usize| &rows.data[i * rows.stride..][..rows.width];
        let (to, behind) = to.split_at_mut(rows.width);
        crosswise_on(set, row(first), if first + 1 < rows.count { row(first + 1) } else { &[] }, to);
        behind.fill(Pair::default());
    }
}

/// Rows transposed, with pairs along them: (row's length / 2, width), zeros behind the last row's and an odd length's.
pub(crate) fn transposed(set: Set, rows: Rows<'_, f32>, width: usize, to: &mut [Pair]) {
    check(&rows);
    assert!(rows.count <= width && to.len() >= rows.width.div_ceil(2) * width, "a pair for every two columns");
    #[cfg(target_arch = "x86_64")]
    if has_instructions(set.isa()) {
        // SAFETY: the machine has them, and the slices hold their rows.
        return unsafe { avx512::transposed(rows, width, to) };
    }
    for (p, to) in to.chunks_exact_mut(width.max(1)).take(rows.width.div_ceil(2)).enumerate() {
        for (row, to) in to.iter_mut().enumerate() {
            let at = |p: usize| if row < rows.count && p < rows.width { rows.data[row * rows.stride + p] } else { 0.0 };
            *to = Pair::new(at(2 * p), at(2 * p + 1));
        }
    }
}

/// Whether a set's loops run on AVX-512's instructions for bf16.
#[cfg(target_arch = "x86_64")]
pub(crate) fn has_instructions(isa: Isa) -> bool {
    let is_here = || is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw");
    isa == Isa::Avx512 && is_here()
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn has_instructions(_: Isa) -> bool {
    false
}

/// sum + a · b, the second numbers first.
#[inline(always)]
pub fn dot(sum: f32, a: Pair, b: Pair) -> f32 {
    fused(a.first(), b.first(), fused(a.second(), b.second(), sum))
}

/// a · b + c in the instruction's way. `a` and `b` are not denormal.
#[inline(always)]
pub fn fused(a: f32, b: f32, c: f32) -> f32 {
    let c = flushed(c);
    let y = match cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        true => a.mul_add(b, c),
        // `mul_add` would call the platform's libm here.
        false => libm::fmaf(a, b, c),
    };
    // All zeros pass, and numbers that are normal for sure.
    if y.to_bits() & !SIGN > MIN || y == 0.0 { y } else { settle(a, b, c, y) }
}

/// A zero of its sign for what is denormal.
#[inline(always)]
pub fn flushed(x: f32) -> f32 {
    if x.to_bits() & !SIGN < MIN { f32::from_bits(x.to_bits() & SIGN) } else { x }
}

/// `y` = a · b + c is denormal, the smallest normal number, which may have been rounded up to, or NaN.
#[cold]
pub fn settle(a: f32, b: f32, c: f32, y: f32) -> f32 {
    if y.is_nan() || y.to_bits() & !SIGN > MIN {
        return y;
    }
    // The same sum 2^64 times as large has all of its 24 bits. Operands of so small a result are far from overflow.
    const LARGER: f32 = 18_446_744_073_709_551_616.0;
    let (a, b) = if a.abs() < b.abs() { (a * LARGER, b) } else { (a, b * LARGER) };
    let exact = libm::fmaf(a, b, c * LARGER);
    if exact.abs() < f32::MIN_POSITIVE * LARGER { f32::from_bits(y.to_bits() & SIGN) } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::Stream;

    #[test]
    fn rounding_is_to_the_nearest_even_and_knows_the_special_numbers() {
        let rounded = |bits: u32| round(f32::from_bits(bits));
        for (from, to) in [
            (0x3f80_0000, 0x3f80_0000),
            (0x3f80_8000, 0x3f80_0000),
            (0x3f81_8000, 0x3f82_0000),
            (0x3f80_8001, 0x3f81_0000),
            (0xbf80_7fff, 0xbf80_0000),
            (0x7f7f_ffff, 0x7f80_0000),
            (0xff80_0000, 0xff80_0000),
            (0x8000_0000, 0x8000_0000),
            (0x007f_ffff, 0),
            (0x8000_0001, 0x8000_0000),
            (0x0080_0000, 0x0080_0000),
            (0x7f80_0001, 0x7fc0_0000),
            (0xffff_ffff, 0x7fc0_0000),
        ] {
            assert_eq!(rounded(from), to, "{from:08x}");
        }
    }

    #[test]
    fn every_set_packs_the_same_pairs() {
        let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 1e-39, 3.4e38];
        let stream = Stream::new(6, "rows");
        let number = |i: usize| match special.get(i % 41) {
            Some(special) => *special,
            // Any bits of an f32 that is not NaN.
            None => Some(f32::from_bits(stream.words([i as u32, 0, 0, 0])[0])).filter(|x| !x.is_nan()).unwrap_or(1.0),
        };
        for (count, width) in [(1, 1), (2, 16), (3, 33), (14, 31), (16, 64), (17, 7), (33, 130), (0, 5)] {
            let stride = width + 3;
            let data: Vec<f32> = (0..count * stride).map(number).collect();
            let rows = Rows { data: &data, stride, count, width };
            let at = |i: usize, j: usize| if i < count && j < width { data[i * stride + j] } else { 0.0 };
            let mut calls = Vec::new();
            for isa in Isa::here() {
                let set = Set::of(isa);
                let mut by_rows = vec![Pair(7); count.div_ceil(2) * (width + 2)];
                crosswise(set, rows, width + 2, &mut by_rows);
                for (at_pair, pair) in by_rows.iter().enumerate() {
                    let (p, j) = (at_pair / (width + 2), at_pair % (width + 2));
                    assert_eq!(*pair, Pair::new(at(2 * p, j), at(2 * p + 1, j)), "{isa:?} {count}x{width} {p} {j}");
                }
                let mut by_columns = vec![Pair(7); width.div_ceil(2) * (count + 5)];
                transposed(set, rows, count + 5, &mut by_columns);
                for (at_pair, pair) in by_columns.iter().enumerate() {
                    let (p, i) = (at_pair / (count + 5), at_pair % (count + 5));
                    assert_eq!(*pair, Pair::new(at(i, 2 * p), at(i, 2 * p + 1)), "{isa:?} {count}x{width} {p} {i}");
                }
                let mut along = vec![Pair(7); width.div_ceil(2)];
                lengthwise(
                    set,
                    data.get(..width).unwrap_or(&[]),
                    &mut along[..if count > 0 { width.div_ceil(2) } else { 0 }],
                );
                calls.push(along);
            }
            assert!(calls.windows(2).all(|calls| calls[0] == calls[1]), "{count}x{width}");
        }
    }

    #[test]
    fn a_sum_that_rounds_up_to_the_smallest_normal_number_is_flushed_by_what_it_was() {
        let step = |exponent: i32, mantissa: u32| f32::from_bits(((127 - exponent) as u32) << 23 | mantissa << 16);
        let smallest = f32::MIN_POSITIVE;
        // The smallest normal number less 2^-151 is a tie of 24 bits and goes up; anything more lies below it.
        assert_eq!(fused(smallest, -step(25, 0), smallest), smallest);
        assert_eq!(fused(smallest, -step(25, 1), smallest).to_bits(), 0);
        assert_eq!(fused(-smallest, -step(24, 0), -smallest).to_bits(), SIGN);
        assert_eq!(fused(1.0, 1.0, f32::from_bits(SIGN | 1)), 1.0);
    }

    /// Operands that meet every case: all bits, numbers about 1, products about the smallest normal number, specials.
    fn number(kind: u32, random: u32) -> u16 {
        let (low, choice) = (random as u16, random >> 16);
        let exponent = |from: u32, count: u32| low & 0x807f | ((from + choice % count) as u16) << 7;
        const SPECIAL: [u16; 8] = [0, 0x8000, 0x0080, 0x7f80, 0xff80, 0x7fc0, 0x7f7f, 0x3f81];
        match kind {
            0 => low,
            1 => exponent(120, 14),
            2 => exponent(30, 70),
            3 => exponent(52, 24),
            4 => low & 0x8000 | [0x3f80, 0x0080, 0x3300, 0x3301, 0x3380, 0x3381, 0x3280, 0x3400][choice as usize % 8],
            _ => SPECIAL[choice as usize % 8],
        }
    }

    #[test]
    fn a_dot_has_the_bits_of_the_machines_instruction() {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512bf16") {
            let stream = Stream::new(5, "pairs");
            for kind in 0..6 {
                for i in 0..200_000 {
                    let words: [[u32; 4]; 6] = std::array::from_fn(|j| stream.words([i, j as u32, kind, 0]));
                    let half = |at: usize| number(kind, words[at / 4][at % 4]);
                    let pair = |at: usize| {
                        let clean = |x: u16| f32::from_bits((x as u32) << 16);
                        Pair::new(clean(half(at)), clean(half(at + 1)))
                    };
                    let (a, b): ([Pair; 4], [Pair; 4]) =
                        (std::array::from_fn(|j| pair(2 * j)), std::array::from_fn(|j| pair(8 + 2 * j)));
                    let c: [f32; 4] = std::array::from_fn(|j| {
                        let word = words[4][j];
                        match kind {
                            4 => f32::from_bits((word & SIGN) | (MIN - 1 + word % 3)),
                            _ => f32::from_bits((number(kind, words[5][j]) as u32) << 16 | word & 0xffff),
                        }
                    });
                    // SAFETY: the machine has the instruction, as was just asked.
                    let there = unsafe { hardware(c, a, b) };
                    for j in 0..4 {
                        let here = dot(c[j], a[j], b[j]);
                        let is_same = here.to_bits() == there[j].to_bits() || here.is_nan() && there[j].is_nan();
                        assert!(is_same, "{:?} {:?} {:?}: {here:?} for {:?}", c[j], a[j], b[j], there[j]);
                    }
                }
            }
            return;
        }
        println!("skipped: a_dot_has_the_bits_of_the_machines_instruction: no avx512_bf16 here");
    }

    /// # Safety
    /// The machine has avx512bf16 and avx512vl.
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
    unsafe fn hardware(c: [f32; 4], a: [Pair; 4], b: [Pair; 4]) -> [f32; 4] {
        use std::arch::x86_64::*;
        let bits = |pairs: [Pair; 4]| {
            _mm_set_epi32(pairs[3].0 as i32, pairs[2].0 as i32, pairs[1].0 as i32, pairs[0].0 as i32)
        };
        let mut sums = [0.0; 4];
        // SAFETY: 128 bits are any pairs, and the arrays have as many.
        unsafe {
            let [a, b] = [a, b].map(|pairs| std::mem::transmute::<__m128i, __m128bh>(bits(pairs)));
            _mm_storeu_ps(sums.as_mut_ptr(), _mm_dpbf16_ps(_mm_loadu_ps(c.as_ptr()), a, b));
        }
        sums
    }
}
