//! Large buffers on huge pages, where the system has them to give.
//!
//! With pages of 4 KiB a pass over channels or columns that lie apart looks up a page for every few lines; and a buffer
//! of 256 MiB is touched for the first time in 65,536 faults. Systems that leave it to the program (`madvise`, the usual
//! setting) are asked; others ignore it.

/// Bytes from which it is worth asking: two huge pages, of which one is whole wherever the buffer starts.
const LARGE: usize = 4 << 20;

/// Makes room for `len` elements, the new ones zero; the old ones stay.
pub fn grow<T: Copy + Default>(xs: &mut Vec<T>, len: usize) {
    if len > xs.capacity() && len * size_of::<T>() >= LARGE {
        let mut larger: Vec<T> = Vec::with_capacity(len);
        ask_for_huge_pages(&mut larger);
        larger.extend_from_slice(xs);
        *xs = larger;
    }
    if len > xs.len() {
        xs.resize(len, T::default());
    }
}

#[cfg(target_os = "linux")]
fn ask_for_huge_pages<T>(xs: &mut Vec<T>) {
    use rustix::mm::{Advice, madvise};
    const PAGE: usize = 4096;
    let room = xs.spare_capacity_mut();
    let (start, bytes) = (room.as_mut_ptr().cast::<u8>(), size_of_val(room));
    let skip = start.align_offset(PAGE);
    let Some(bytes) = bytes.checked_sub(skip).map(|bytes| bytes / PAGE * PAGE) else { return };
    // SAFETY: the range lies in the vector's own memory, and the advice changes only which pages it is made of. Whether
    // it is followed is no matter: a refusal leaves small pages.
    let _ = unsafe { madvise(start.wrapping_add(skip).cast(), bytes, Advice::LinuxHugepage) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages<T>(_: &mut Vec<T>) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_grows_with_zeros_and_keeps_what_it_holds() {
        let mut xs = vec![1u32, 2, 3];
        for len in [2, 5, 3 << 20, (3 << 20) + 1] {
            let before = xs.len();
            grow(&mut xs, len);
            assert_eq!(xs.len(), len.max(before));
            assert_eq!(xs[..3], [1, 2, 3]);
            assert!(xs[3..].iter().all(|x| *x == 0));
        }
        let mut floats: Vec<f32> = Vec::new();
        grow(&mut floats, 2 << 20);
        assert!(floats.len() == 2 << 20 && floats.iter().all(|x| x.to_bits() == 0));
    }
}
