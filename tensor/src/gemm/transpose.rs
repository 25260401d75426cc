//! Copies a matrix transposed, which is what packing does to rows: sixteen by sixteen in registers with AVX-512, eight by
//! eight and then four by four with AVX2.

/// `dst[j * dst_stride + i] = src[i * src_stride + j]` for i < rows, j < cols.
pub(crate) fn copy(src: &[f32], src_stride: usize, dst: &mut [f32], dst_stride: usize, (rows, cols): (usize, usize)) {
    if rows == 0 || cols == 0 {
        return;
    }
    assert!(src.len() > (rows - 1) * src_stride + cols - 1, "the source holds the matrix");
    assert!(dst.len() > (cols - 1) * dst_stride + rows - 1, "the target holds its transpose");
    #[cfg(target_arch = "x86_64")]
    if rows >= 4 && cols >= 4 && is_x86_feature_detected!("avx512f") {
        // SAFETY: the machine has avx512f, and both slices reach as far as was checked.
        return unsafe {
            super::pack_avx512::copy(src.as_ptr(), src_stride, dst.as_mut_ptr(), dst_stride, (rows, cols))
        };
    }
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the machine has avx2, and both slices reach as far as was checked.
        return unsafe { copy_avx2(src.as_ptr(), src_stride, dst.as_mut_ptr(), dst_stride, (rows, cols)) };
    }
    // Sixteen columns at a time, so that the target's lines stay in the first-level cache.
    for j0 in (0..cols).step_by(16) {
        for i in 0..rows {
            for j in j0..cols.min(j0 + 16) {
                dst[j * dst_stride + i] = src[i * src_stride + j];
            }
        }
    }
}

/// # Safety
/// The machine has avx2; `src` holds the matrix and `dst` its transpose.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn copy_avx2(
    src: *const f32,
    src_stride: usize,
    dst: *mut f32,
    dst_stride: usize,
    (rows, cols): (usize, usize),
) {
    let (rows8, cols8) = (rows / 8 * 8, cols / 8 * 8);
    // SAFETY: every block, and every element after them, lies inside the matrix.
    unsafe {
        // Rows may be a power of two apart, and then share a set of the first-level cache: the side with the longer
        // stride has its lines read or written whole, eight rows at a time, before the next rows' turn.
        let block = if dst_stride > src_stride { 8 } else { 16 };
        for j0 in (0..cols8).step_by(block) {
            for i in (0..rows8).step_by(8) {
                for j in (j0..cols8.min(j0 + block)).step_by(8) {
                    eight(src.add(i * src_stride + j), src_stride, dst.add(j * dst_stride + i), dst_stride);
                }
            }
            if rows - rows8 >= 4 {
                for j in (j0..cols8.min(j0 + block)).step_by(4) {
                    four(src.add(rows8 * src_stride + j), src_stride, dst.add(j * dst_stride + rows8), dst_stride);
                }
            }
        }
        let rows4 = rows / 4 * 4;
        for j in 0..cols {
            for i in if j < cols8 { rows4..rows } else { 0..rows } {
                *dst.add(j * dst_stride + i) = *src.add(i * src_stride + j);
            }
        }
    }
}

/// # Safety
/// The machine has avx2; `src` and `dst` reach eight floats into their eighth rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn eight(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
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

/// # Safety
/// The machine has avx2; `src` and `dst` reach four floats into their fourth rows.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn four(src: *const f32, src_stride: usize, dst: *mut f32, dst_stride: usize) {
    use std::arch::x86_64::*;
    // SAFETY: the caller's promise.
    let r: [__m128; 4] = std::array::from_fn(|i| unsafe { _mm_loadu_ps(src.add(i * src_stride)) });
    let (a0, a1) = (_mm_unpacklo_ps(r[0], r[1]), _mm_unpackhi_ps(r[0], r[1]));
    let (a2, a3) = (_mm_unpacklo_ps(r[2], r[3]), _mm_unpackhi_ps(r[2], r[3]));
    let out = [_mm_movelh_ps(a0, a2), _mm_movehl_ps(a2, a0), _mm_movelh_ps(a1, a3), _mm_movehl_ps(a3, a1)];
    for (j, row) in out.into_iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe { _mm_storeu_ps(dst.add(j * dst_stride), row) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_copy_of_any_size_is_the_transpose() {
        for (rows, cols) in [(1, 1), (8, 8), (9, 17), (12, 32), (14, 256), (32, 31), (7, 40), (0, 3)] {
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
