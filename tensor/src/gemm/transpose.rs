//! Copies a matrix transposed, which is what packing does to rows: eight by eight in registers with AVX2.

/// `dst[j * dst_stride + i] = src[i * src_stride + j]` for i < rows, j < cols.
pub(super) fn copy(src: &[f32], src_stride: usize, dst: &mut [f32], dst_stride: usize, (rows, cols): (usize, usize)) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(src.len() > (rows - 1) * src_stride + cols - 1, "the source holds the matrix");
    assert!(dst.len() > (cols - 1) * dst_stride + rows - 1, "the target holds its transpose");
    let (rows8, cols8) = if has_avx2() { (rows / 8 * 8, cols / 8 * 8) } else { (0, 0) };
    for i in (0..rows8).step_by(8) {
        for j in (0..cols8).step_by(8) {
            block(&src[i * src_stride + j..], src_stride, &mut dst[j * dst_stride + i..], dst_stride);
        }
    }
    let mut rest = |rows: std::ops::Range<usize>, cols: std::ops::Range<usize>| {
        // Sixteen columns at a time, so that the target's lines stay in the first-level cache.
        for j0 in cols.clone().step_by(16) {
            for i in rows.clone() {
                for j in j0..cols.end.min(j0 + 16) {
                    dst[j * dst_stride + i] = src[i * src_stride + j];
                }
            }
        }
    };
    rest(0..rows8, cols8..cols);
    rest(rows8..rows, 0..cols);
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
fn block(_: &[f32], _: usize, _: &mut [f32], _: usize) {
    unreachable!("blocks are copied with AVX2 only");
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2")
}

#[cfg(target_arch = "x86_64")]
fn block(src: &[f32], src_stride: usize, dst: &mut [f32], dst_stride: usize) {
    assert!(src.len() >= 7 * src_stride + 8 && dst.len() >= 7 * dst_stride + 8, "eight rows of eight");
    // SAFETY: `copy` calls this only where `has_avx2`; the slices hold eight rows of eight, as just checked.
    unsafe { block_avx2(src.as_ptr(), src_stride, dst.as_mut_ptr(), dst_stride) }
}

/// # Safety
/// The machine has avx2; `src` and `dst` reach eight floats into their eighth rows.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn block_avx2(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let r: [__m256; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(src.add(i * src_stride)) });
    let pairs = |a, b| (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
    let quads = |a, b| (_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xee>(a, b));
    let ((a0, a1), (a2, a3)) = (pairs(r[0], r[1]), pairs(r[2], r[3]));
    let ((a4, a5), (a6, a7)) = (pairs(r[4], r[5]), pairs(r[6], r[7]));
    let ((b0, b1), (b2, b3)) = (quads(a0, a2), quads(a1, a3));
    let ((b4, b5), (b6, b7)) = (quads(a4, a6), quads(a5, a7));
    let low = |a, b| _mm256_permute2f128_ps::<0x20>(a, b);
    let high = |a, b| _mm256_permute2f128_ps::<0x31>(a, b);
    let out =
        [low(b0, b4), low(b1, b5), low(b2, b6), low(b3, b7), high(b0, b4), high(b1, b5), high(b2, b6), high(b3, b7)];
    for (j, row) in out.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm256_storeu_ps(dst.add(j * dst_stride), row) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_copy_of_any_size_is_the_transpose() {
        for (rows, cols) in [(1, 1), (8, 8), (9, 17), (14, 256), (32, 31), (7, 40), (0, 3)] {
            let (src_stride, dst_stride) = (cols + 3, rows + 2);
            let src: Vec<f32> = (0..rows * src_stride).map(|i| i as f32).collect();
            let mut dst = vec![-1.0; cols * dst_stride];
            super::copy(&src, src_stride, &mut dst, dst_stride, (rows, cols));
            for (at, x) in dst.iter().enumerate() {
                let (j, i) = (at / dst_stride, at % dst_stride);
                assert_eq!(*x, if i < rows { src[i * src_stride + j] } else { -1.0 }, "{rows}x{cols} at {i}, {j}");
            }
        }
    }
}
