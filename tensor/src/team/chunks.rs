//! Outputs cut into chunks that tasks write apart from each other.

use super::Team;
use std::marker::PhantomData;

/// A slice in chunks of one length (the last may be shorter), each lent to one task.
struct Chunks<'a, T> {
    start: *mut T,
    len: usize,
    chunk: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: tasks get disjoint parts of a slice of `T: Send` that is borrowed exclusively.
unsafe impl<T: Send> Sync for Chunks<'_, T> {}

impl<'a, T> Chunks<'a, T> {
    fn new(slice: &'a mut [T], chunk: usize) -> Chunks<'a, T> {
        assert!(chunk > 0, "a chunk has a length");
        Chunks { start: slice.as_mut_ptr(), len: slice.len(), chunk, slice: PhantomData }
    }

    fn count(&self) -> usize {
        self.len.div_ceil(self.chunk)
    }

    /// Where an element lies, if the slice has it.
    fn after(&self, elements: usize) -> *mut T {
        self.start.wrapping_add(elements)
    }

    /// # Safety
    /// A number is asked for again only when what was lent before is no longer in use.
    #[allow(clippy::mut_from_ref, reason = "what is lent is a part of the exclusive borrow that `new` took")]
    unsafe fn get(&self, number: usize) -> &mut [T] {
        let from = (number * self.chunk).min(self.len);
        let len = self.chunk.min(self.len - from);
        // SAFETY: inside the slice, and apart from every other chunk.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), len) }
    }
}

/// A slice as (sample, channel, plane), of which a task is lent all planes of one channel.
pub struct Channel<'a, T> {
    start: *mut T,
    samples: usize,
    /// From a sample's plane to the next one's.
    stride: usize,
    plane: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Channel<'_, T> {
    /// The channel's plane of a sample.
    pub fn plane(&mut self, sample: usize) -> &mut [T] {
        assert!(sample < self.samples, "the channel has a plane for each sample");
        // SAFETY: inside the slice that `Team::channels_in` was given, and of the one channel that this task has.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(sample * self.stride), self.plane) }
    }
}

impl Team {
    /// Calls `work(room, channel, its planes, its part of z)` for each channel of `y`, a (sample, channel, plane), with a
    /// room for each thread.
    pub fn channels_in<R: Send, T: Send, U: Send>(
        &self,
        rooms: &mut [R],
        (y, channels, plane): (&mut [T], usize, usize),
        (z, z_chunk): (&mut [U], usize),
        work: impl Fn(&mut R, usize, Channel<'_, T>, &mut [U]) + Sync,
    ) {
        let stride = channels * plane;
        let samples = y.len() / stride.max(1);
        let (y, z) = (Chunks::new(y, plane.max(1)), Chunks::new(z, z_chunk));
        assert_eq!(z.count(), channels, "each channel has its part");
        self.run_in(rooms, channels, |room, c| {
            let planes = Channel { start: y.after(c * plane), samples, stride, plane, slice: PhantomData };
            // SAFETY: `run` runs each task once.
            work(room, c, planes, unsafe { z.get(c) });
        });
    }

    /// Calls `work(thread, i, chunk)` for each chunk of `y`.
    pub fn chunks<T: Send>(&self, y: &mut [T], chunk: usize, work: impl Fn(usize, usize, &mut [T]) + Sync) {
        let y = Chunks::new(y, chunk);
        // SAFETY: `run` runs each task once.
        self.run(y.count(), &|thread, i| work(thread, i, unsafe { y.get(i) }));
    }

    /// `run` with a room for each thread: `work(room, task)`.
    pub fn run_in<R: Send>(&self, rooms: &mut [R], tasks: usize, work: impl Fn(&mut R, usize) + Sync) {
        assert!(rooms.len() >= self.threads(), "each thread has a room");
        let rooms = Chunks::new(rooms, 1);
        // SAFETY: a thread runs one task at a time, and an inner run cannot have these rooms: they are borrowed.
        self.run(tasks, &|thread, task| work(unsafe { &mut rooms.get(thread)[0] }, task));
    }

    /// `chunks` with a room for each thread: `work(room, i, chunk)`.
    pub fn chunks_in<R: Send, T: Send>(
        &self,
        rooms: &mut [R],
        y: &mut [T],
        chunk: usize,
        work: impl Fn(&mut R, usize, &mut [T]) + Sync,
    ) {
        let y = Chunks::new(y, chunk);
        // SAFETY: `run` runs each task once.
        self.run_in(rooms, y.count(), |room, i| work(room, i, unsafe { y.get(i) }));
    }

    /// The same over two outputs, which have as many chunks.
    pub fn chunks2<T: Send, U: Send>(
        &self,
        (y, y_chunk): (&mut [T], usize),
        (z, z_chunk): (&mut [U], usize),
        work: impl Fn(usize, usize, &mut [T], &mut [U]) + Sync,
    ) {
        let (y, z) = (Chunks::new(y, y_chunk), Chunks::new(z, z_chunk));
        assert_eq!(y.count(), z.count(), "outputs that are cut together have as many chunks");
        // SAFETY: `run` runs each task once.
        self.run(y.count(), &|thread, i| unsafe { work(thread, i, y.get(i), z.get(i)) });
    }

    /// `chunks2` with a room for each thread: `work(room, i, chunk, chunk)`.
    pub fn chunks2_in<R: Send, T: Send, U: Send>(
        &self,
        rooms: &mut [R],
        (y, y_chunk): (&mut [T], usize),
        (z, z_chunk): (&mut [U], usize),
        work: impl Fn(&mut R, usize, &mut [T], &mut [U]) + Sync,
    ) {
        let (y, z) = (Chunks::new(y, y_chunk), Chunks::new(z, z_chunk));
        assert_eq!(y.count(), z.count(), "outputs that are cut together have as many chunks");
        // SAFETY: `run` runs each task once.
        self.run_in(rooms, y.count(), |room, i| unsafe { work(room, i, y.get(i), z.get(i)) });
    }

    /// `chunks` over three outputs, which have as many chunks: `work(i, chunk, chunk, chunk)`.
    pub fn chunks3<T: Send>(
        &self,
        outputs: [(&mut [T], usize); 3],
        work: impl Fn(usize, &mut [T], &mut [T], &mut [T]) + Sync,
    ) {
        let [y, z, w] = outputs.map(|(slice, chunk)| Chunks::new(slice, chunk));
        let counts = [&y, &z, &w].map(|chunks| chunks.count());
        assert_eq!(counts, [counts[0]; 3], "outputs that are cut together have as many chunks");
        // SAFETY: `run` runs each task once.
        self.run(counts[0], &|_, i| unsafe { work(i, y.get(i), z.get(i), w.get(i)) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_cover_the_outputs_once() {
        let team = Team::new(3);
        for (samples, channels, plane) in [(2, 3, 4), (1, 1, 1), (0, 2, 5), (5, 7, 1)] {
            let (mut y, mut z) = (vec![0; samples * channels * plane], vec![0; channels]);
            team.channels_in(&mut [(); 3], (&mut y, channels, plane), (&mut z, 1), |(), c, mut planes, z| {
                z[0] += c;
                (0..samples).for_each(|s| planes.plane(s).iter_mut().for_each(|y| *y += 1 + s * channels + c));
            });
            assert!((0..).zip(&y).all(|(at, y)| *y == 1 + at / plane), "{y:?}");
            assert!((0..).zip(&z).all(|(c, z)| *z == c), "{z:?}");
        }
    }

    #[test]
    fn chunks_cover_the_outputs_once() {
        let team = Team::new(3);
        for len in [0, 1, 7, 64, 65] {
            let mut y = vec![0u32; len];
            team.chunks(&mut y, 8, |_, i, chunk| chunk.iter_mut().for_each(|y| *y += 1 + i as u32));
            assert!((0..).zip(&y).all(|(at, y)| *y == 1 + at / 8), "{y:?}");
        }
    }

    #[test]
    fn a_room_is_one_threads_own() {
        let team = Team::new(3);
        let mut rooms = [0u64; 3];
        for _ in 0..100 {
            team.run_in(&mut rooms, 50, |room, _| *room += 1);
        }
        assert_eq!(rooms.iter().sum::<u64>(), 5_000);
    }

    #[test]
    fn two_outputs_are_cut_in_step() {
        let team = Team::new(2);
        let (mut rows, mut sums) = (vec![1u64; 40], vec![0u64; 10]);
        team.chunks2((&mut rows, 8), (&mut sums, 2), |_, i, rows, sums| {
            sums.fill(rows.iter().sum::<u64>() + i as u64);
        });
        assert_eq!(sums, [8, 8, 9, 9, 10, 10, 11, 11, 12, 12]);
        let mut rooms = [(); 2];
        team.chunks2_in(&mut rooms, (&mut rows, 8), (&mut sums, 2), |(), i, rows, sums| {
            sums.fill(rows.iter().sum::<u64>() * 10 + i as u64);
        });
        assert_eq!(sums, [80, 80, 81, 81, 82, 82, 83, 83, 84, 84]);
    }

    #[test]
    fn three_outputs_are_cut_in_step() {
        let team = Team::new(2);
        let (mut a, mut b, mut c) = (vec![1u64; 41], vec![0u64; 11], vec![0u64; 6]);
        team.chunks3([(&mut a, 8), (&mut b, 2), (&mut c, 1)], |i, a, b, c| {
            c.fill(a.iter().sum::<u64>());
            b.fill(i as u64);
        });
        assert_eq!((b, c), (vec![0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5], vec![8, 8, 8, 8, 8, 1]));
    }
}
