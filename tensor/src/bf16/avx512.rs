//! Rounding and packing of pairs with AVX-512's instructions for bf16.
//!
//! `vcvtne2ps2bf16` rounds thirty-two numbers as `round` does, denormal ones to zeros; only a NaN keeps its upper bits.

use super::Pair;
use crate::real::Rows;
use std::arch::x86_64::*;

/// The lowest `count` lanes, at most sixteen.
fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(16)) - 1) as __mmask16
}

/// `super::lengthwise`.
///
/// # Safety
/// `super::has_instructions`, and `to` holds a pair for every two numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn lengthwise(row: &[f32], to: &mut [Pair]) {
    for (at, pair) in (0..row.len()).step_by(32).zip((0..).step_by(16)) {
        // SAFETY: the masks end with the row, and `to` is as long as the caller promises.
        unsafe {
            let pairs = thirty_two(row.as_ptr().add(at), row.len() - at);
            _mm512_mask_storeu_epi32(to.as_mut_ptr().add(pair).cast(), lanes((row.len() - at).div_ceil(2)), pairs);
        }
    }
}

/// The next numbers of a row, at most thirty-two of `left`, as pairs; zeros behind them.
///
/// # Safety
/// `from` points to `left` numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn thirty_two(from: *const f32, left: usize) -> __m512i {
    // SAFETY: the masks end with the numbers, and 512 bits are any pairs.
    unsafe {
        let first = _mm512_maskz_loadu_ps(lanes(left), from);
        let second = _mm512_maskz_loadu_ps(lanes(left.saturating_sub(16)), from.wrapping_add(16));
        std::mem::transmute(_mm512_cvtne2ps_pbh(second, first))
    }
}

/// `super::crosswise`.
///
/// # Safety
/// `super::has_instructions`; `rows` holds its rows, and `to` half as many of `width`, rounded up.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn crosswise(rows: Rows<'_, f32>, width: usize, to: &mut [Pair]) {
    let Rows { data, stride, count: k, width: columns } = rows;
    // Of lanes 0 to 15, which hold the first row, and 16 to 31, which hold the second, one of each in turn.
    let interleave: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
    // SAFETY: the masks end with the rows; the slices are as long as the caller promises.
    unsafe {
        let interleave = _mm512_loadu_si512(interleave.as_ptr().cast());
        for column in (0..width).step_by(16) {
            let (from, into) = (lanes(columns.saturating_sub(column)), lanes(width - column));
            for p in (0..k).step_by(2) {
                let at = data.as_ptr().wrapping_add(p * stride + column);
                let first = _mm512_maskz_loadu_ps(from, at);
                let is_there = if p + 1 < k { from } else { 0 };
                let second = _mm512_maskz_loadu_ps(is_there, at.wrapping_add(stride));
                let both: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(second, first));
                let pairs = _mm512_permutexvar_epi16(interleave, both);
                _mm512_mask_storeu_epi32(to.as_mut_ptr().add(p / 2 * width + column).cast(), into, pairs);
            }
        }
    }
}

/// `super::transposed`.
///
/// # Safety
/// `super::has_instructions`; `rows` holds its rows, and `to` as many of `width` as half a row has numbers, rounded up.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn transposed(rows: Rows<'_, f32>, width: usize, to: &mut [Pair]) {
    let Rows { data, stride, count: columns, width: k } = rows;
    for column in (0..width).step_by(16) {
        let (here, into) = (columns.saturating_sub(column).min(16), lanes(width - column));
        for p in (0..k).step_by(32) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (c, row) in rows.iter_mut().take(here).enumerate() {
                // SAFETY: the numbers of a column end with its k.
                *row = unsafe { thirty_two(data.as_ptr().add((column + c) * stride + p), k - p) };
            }
            let rows = transpose(rows);
            for (i, row) in rows.into_iter().take((k - p).div_ceil(2)).enumerate() {
                // SAFETY: the mask ends with the panel's row.
                unsafe {
                    _mm512_mask_storeu_epi32(to.as_mut_ptr().add((p / 2 + i) * width + column).cast(), into, row);
                }
            }
        }
    }
}

/// Sixteen by sixteen, pairs or f32.
#[inline]
#[target_feature(enable = "avx512f")]
pub(crate) fn transpose(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut a = r;
    for i in (0..16).step_by(2) {
        a[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    let mut b = a;
    for i in (0..16).step_by(4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4 g + c] holds, in its four quarters q, column 4 q + c of rows 4 g to 4 g + 3.
    let mut out = r;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let low_odd = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        let high_odd = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(low, high);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(low_odd, high_odd);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(low_odd, high_odd);
    }
    out
}
