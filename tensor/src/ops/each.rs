//! Loops over elements that do not know each other: cut into fixed chunks for the team, vectorised.
//!
//! No element depends on another, so neither chunks nor threads nor instruction sets show in the bits.

use crate::simd::{Set, vectorised};
use crate::team::Team;

/// Elements of a task. At 0.03 ns for the cheapest element 16 Ki of them take 0.5 µs in the cache: less would not
/// pay for a fork and join (1 to 2 µs), and what fits in one chunk runs on the caller alone.
pub(super) const CHUNK: usize = 16 << 10;

/// y = f(a), element by element.
pub(super) fn map<F: Send + Sync + Copy>(team: &Team, y: &mut [F], a: &[F], f: impl Fn(F) -> F + Copy + Sync) {
    let set = Set::best();
    team.chunks(y, CHUNK, |_, i, y| {
        let a = &a[i * CHUNK..][..y.len()];
        map_chunk(set, y, a, f);
    });
}

vectorised! {
    pub(super) fn map_chunk[F: Copy, Each: Fn(F) -> F](y: &mut [F], a: &[F], f: Each) {
        for (y, a) in y.iter_mut().zip(a) {
            *y = f(*a);
        }
    }
}

/// y = f(a, b), element by element.
pub(super) fn map2<F: Send + Sync + Copy>(
    team: &Team,
    y: &mut [F],
    (a, b): (&[F], &[F]),
    f: impl Fn(F, F) -> F + Copy + Sync,
) {
    let set = Set::best();
    team.chunks(y, CHUNK, |_, i, y| {
        let (a, b) = (&a[i * CHUNK..][..y.len()], &b[i * CHUNK..][..y.len()]);
        map2_chunk(set, y, a, b, f);
    });
}

vectorised! {
    pub(super) fn map2_chunk[F: Copy, Each: Fn(F, F) -> F](y: &mut [F], a: &[F], b: &[F], f: Each) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = f(*a, *b);
        }
    }
}

/// Each row of y = f(row of a, b), element by element, with rows as long as b.
pub(super) fn map2_rows<F: Send + Sync + Copy>(
    team: &Team,
    y: &mut [F],
    (a, b): (&[F], &[F]),
    f: impl Fn(F, F) -> F + Copy + Sync,
) {
    let (width, set) = (b.len().max(1), Set::best());
    let task = rows_of_task(width) * width;
    team.chunks(y, task, |_, i, y| {
        let a = &a[i * task..][..y.len()];
        for (y, a) in y.chunks_exact_mut(width).zip(a.chunks_exact(width)) {
            map2_chunk(set, y, a, b, f);
        }
    });
}

/// Rows of `cols` elements in a task of about [`CHUNK`] elements.
pub(super) fn rows_of_task(cols: usize) -> usize {
    (CHUNK / cols.max(1)).max(1)
}
