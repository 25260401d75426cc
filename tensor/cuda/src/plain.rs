//! Numbers as the bytes that they are in memory, for copies to and from a GPU: both are little-endian.

/// A number any bytes of which are a value, and which has no padding.
///
/// # Safety
/// That holds.
pub unsafe trait Plain: Copy {}

// SAFETY: any four bytes are an f32.
unsafe impl Plain for f32 {}
// SAFETY: any four bytes are an i32.
unsafe impl Plain for i32 {}
// SAFETY: any eight bytes are a u64.
unsafe impl Plain for u64 {}

pub fn bytes<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: the numbers' memory is initialised and has no padding (`Plain`); bytes need no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), size_of_val(numbers)) }
}

pub fn bytes_mut<T: Plain>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: as above, and any bytes that are written are numbers (`Plain`); the borrow is handed on.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), size_of_val(numbers)) }
}
