//! Packing and transposing of f32 with AVX-512: whole vectors, the ends of rows by mask.

use crate::bf16::avx512::transpose;
use crate::real::Rows;
use std::arch::x86_64::*;

/// The first lanes of a vector, at most sixteen.
fn lanes(count: usize) -> __mmask16 {
    if count >= 16 { !0 } else { (1 << count) - 1 }
}

/// Rows of `width`, the numbers behind a row's columns zero.
///
/// # Safety
/// The machine has avx512f; `rows` holds its rows, no wider than `width`, and `to` as many of `width`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn crosswise(rows: Rows<'_, f32>, width: usize, to: &mut [f32]) {
    for column in (0..width).step_by(16) {
        let (from, into) = (lanes(rows.width.saturating_sub(column)), lanes(width - column));
        let (mut row, mut to) = (rows.data.as_ptr().wrapping_add(column), to.as_mut_ptr().wrapping_add(column));
        for _ in 0..rows.count {
            // SAFETY: the masks end with the row and with the panel's row; lanes without their bit are not touched.
            unsafe { _mm512_mask_storeu_ps(to, into, _mm512_maskz_loadu_ps(from, row)) };
            (row, to) = (row.wrapping_add(rows.stride), to.wrapping_add(width));
        }
    }
}

/// Rows as columns: (a row's width, `width`), zeros behind the last row's.
///
/// # Safety
/// The machine has avx512f; `rows` holds its rows, no more than `width`, and `to` `rows.width` rows of `width`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn transposed(rows: Rows<'_, f32>, width: usize, to: &mut [f32]) {
    let Rows { data, stride, count: columns, width: k } = rows;
    for column in (0..width).step_by(16) {
        let (here, into) = (columns.saturating_sub(column).min(16), lanes(width - column));
        let first = data.as_ptr().wrapping_add(column * stride);
        for p in (0..k).step_by(16) {
            let mut block = [_mm512_setzero_si512(); 16];
            let from = lanes(k - p);
            for (c, row) in block.iter_mut().take(here).enumerate() {
                // SAFETY: the mask ends with the row.
                *row = unsafe { _mm512_maskz_loadu_epi32(from, first.wrapping_add(c * stride + p).cast()) };
            }
            for (i, row) in transpose(block).into_iter().take(k - p).enumerate() {
                let to = to.as_mut_ptr().wrapping_add((p + i) * width + column);
                // SAFETY: the mask ends with the panel's row.
                unsafe { _mm512_mask_storeu_epi32(to.cast(), into, row) };
            }
        }
    }
}

/// `super::transpose::copy`.
///
/// # Safety
/// The machine has avx512f; `src` holds the matrix and `dst` its transpose.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn copy(
    src: *const f32,
    src_stride: usize,
    dst: *mut f32,
    dst_stride: usize,
    (rows, cols): (usize, usize),
) {
    for j0 in (0..cols).step_by(16) {
        for i0 in (0..rows).step_by(16) {
            let (from, into) = (lanes(cols - j0), lanes(rows - i0));
            let mut block = [_mm512_setzero_si512(); 16];
            for (i, row) in block.iter_mut().take(rows - i0).enumerate() {
                // SAFETY: the mask ends with the row.
                *row = unsafe { _mm512_maskz_loadu_epi32(from, src.add((i0 + i) * src_stride + j0).cast()) };
            }
            for (j, row) in transpose(block).into_iter().take(cols - j0).enumerate() {
                // SAFETY: the mask ends with the column.
                unsafe { _mm512_mask_storeu_epi32(dst.add((j0 + j) * dst_stride + i0).cast(), into, row) };
            }
        }
    }
}
