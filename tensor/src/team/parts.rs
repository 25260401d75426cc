//! One output of which tasks write parts that lie between those of others, such as the columns of a head.

use std::marker::PhantomData;
use std::ops::Range;

/// A slice that is borrowed exclusively, and lent in parts that the tasks name.
pub(crate) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks get disjoint parts of a slice of `T: Send` that is borrowed exclusively: `get` asks for it.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Parts<'a, T> {
        Parts { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// # Safety
    /// While a part is in use, no other that overlaps it is asked for.
    #[allow(clippy::mut_from_ref, reason = "what is lent is a part of the exclusive borrow that `new` took")]
    pub(crate) unsafe fn get(&self, part: Range<usize>) -> &mut [T] {
        assert!(part.start <= part.end && part.end <= self.len, "a part lies in the slice");
        // SAFETY: inside the slice, as just checked, and by the caller's promise apart from every other part.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(part.start), part.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::team::Team;

    #[test]
    fn tasks_write_between_each_others_parts() {
        let mut y = vec![0u32; 60];
        let parts = Parts::new(&mut y);
        Team::new(3).run(5, &|_, task| {
            for row in 0..4 {
                let at = row * 15 + task * 3;
                // SAFETY: rows are 15 long and a task has three columns of its own.
                unsafe { parts.get(at..at + 3) }.fill(task as u32);
            }
        });
        assert!(y.iter().enumerate().all(|(at, y)| *y as usize == at % 15 / 3), "{y:?}");
    }
}
