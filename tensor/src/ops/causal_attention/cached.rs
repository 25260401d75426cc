//! Attention of new tokens to those before them, whose keys and values a cache has kept.
//!
//! The cache holds them as the operands that [`attend`] reads, so nothing is copied or packed again: keys as panels of a
//! head, values as rows across tokens (in bf16 both take half the memory). A tile of queries is the forward pass's own
//! code, and what differs there is padding, which weighs exactly 0: the bits are those of the pass over all tokens.

use super::*;

/// Keys and values of one layer: for each seat, room for a sequence as long as the context.
pub(crate) struct Cache<F: Real> {
    sizes: Sizes,
    /// (seat, head, panel, operand along the head's width, PANEL).
    keys: Vec<F::Operand>,
    /// (seat, head, operand across tokens, padded width).
    values: Vec<F::Operand>,
}

/// Rows of a pass that continue one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub seat: usize,
    /// The first row's place in its sequence.
    pub place: usize,
    pub row: usize,
    pub count: usize,
}

/// What one cache is to hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub channels: usize,
    pub seats: usize,
    pub context: usize,
}

impl CausalAttention {
    fn sizes_of(self, shape: Shape) -> Sizes {
        let (samples, tokens, channels) = (shape.seats, shape.context, shape.channels);
        Sizes { samples, tokens, channels, heads: self.heads, width: channels / self.heads }
    }

    /// Bytes of a cache.
    pub(crate) fn cache_bytes<F: Real>(self, shape: Shape) -> u64 {
        let s = self.sizes_of(shape);
        let operands = (s.panels_len::<F>() + s.stack_len::<F>(s.tokens)) as u64;
        operands * s.all_heads() as u64 * size_of::<F::Operand>() as u64
    }

    pub(crate) fn cache<F: Real>(self, shape: Shape) -> Cache<F> {
        let sizes = self.sizes_of(shape);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        crate::memory::grow(&mut keys, sizes.all_heads() * sizes.panels_len::<F>());
        crate::memory::grow(&mut values, sizes.all_heads() * sizes.stack_len::<F>(sizes.tokens));
        Cache { sizes, keys, values }
    }
}

impl<F: Real> Cache<F> {
    fn seen(&self, head: usize) -> Seen<'_, F> {
        let (keys, values) = (self.sizes.panels_len::<F>(), self.sizes.stack_len::<F>(self.sizes.tokens));
        Seen { keys: &self.keys[head * keys..][..keys], values: &self.values[head * values..][..values] }
    }

    /// Keeps the keys and values of a part's rows. qkv: (row of the pass, 3·channel).
    pub(crate) fn keep(&mut self, part: Part, qkv: &[F], room: &mut Vec<F::Operand>) {
        let (s, set) = (self.sizes, Set::best());
        let (width, padded) = (s.width.div_ceil(F::PER), s.padded());
        assert!(part.place + part.count <= s.tokens && part.seat < s.samples, "a sequence stays in its seat");
        let along = take(room, width);
        for (row, token) in (part.row..).zip(part.place..part.place + part.count) {
            for head in 0..s.heads {
                let number = part.seat * s.heads + head;
                let of = |which: usize| &qkv[(row * 3 + which) * s.channels + head * s.width..][..s.width];
                F::lengthwise(set, of(1), along);
                let at = number * s.panels_len::<F>() + token / PANEL * width * PANEL + token % PANEL;
                for (key, operand) in self.keys[at..].iter_mut().step_by(PANEL).zip(&*along) {
                    *key = *operand;
                }
                let at = number * s.stack_len::<F>(s.tokens) + token / F::PER * padded;
                for (value, number) in self.values[at..].iter_mut().zip(of(2)) {
                    F::put(value, token % F::PER, *number);
                }
            }
        }
    }

    /// y (row, channel) of all parts' rows, whose keys and values are kept already. `tiles` is room.
    pub(crate) fn attend(&self, parts: &[Part], qkv: &[F], y: &mut [F], tiles: &mut Tiles<F>, work: &mut Work<F>) {
        let (s, set) = (self.sizes, Set::best());
        let (width, padded) = (s.width, s.padded());
        tiles.list.clear();
        for part in parts {
            let queries = s.tiles(part.place..part.place + part.count);
            tiles.list.extend(queries.map(|queries| (part.seat, part.row + queries.start - part.place, queries)));
        }
        let Tiles { list, out } = tiles;
        let height = list.iter().map(|(.., queries)| queries.len()).max().unwrap_or(0);
        let out = take(out, list.len() * s.heads * height * padded);
        let Work { team, rooms } = work;
        team.chunks_in(rooms, out, (height * padded).max(1), |room, task, out| {
            let ((seat, row, queries), head) = (&list[task / s.heads], task % s.heads);
            let mut rest = take(&mut room.columns, s.scores_len() + 2 * QUERIES);
            let (scores, sums, shares) =
                (cut(&mut rest, s.scores_len()), cut(&mut rest, QUERIES), cut(&mut rest, QUERIES));
            let along = (QUERIES * s.width.div_ceil(F::PER)).max(s.scores_len());
            let mut rest = take(&mut room.operands, along + padded);
            let (along, last) = (cut(&mut rest, along), cut(&mut rest, padded));
            let (sums, shares) = (&mut sums[..queries.len()], &mut shares[..queries.len()]);
            let data = &qkv[row * 3 * s.channels + head * width..];
            let q = Rows { data, stride: 3 * s.channels, count: queries.len(), width };
            let mut room = TileRoom { scores, out, shares, along, last };
            attend(set, s, (queries.clone(), q), self.seen(seat * s.heads + head), sums, &mut room);
            for (row, share) in room.out.chunks_exact_mut(padded).zip(&*room.shares) {
                row.iter_mut().for_each(|x| *x *= *share);
            }
        });
        let tile = (height * padded).max(1);
        for (task, out) in out.chunks_exact(tile).enumerate() {
            let ((_, row, queries), head) = (&list[task / s.heads], task % s.heads);
            for (row, out) in (*row..).zip(out.chunks_exact(padded)).take(queries.len()) {
                y[row * s.channels + head * width..][..width].copy_from_slice(&out[..width]);
            }
        }
    }
}

/// The tiles of a pass, kept between passes: seat, first row and places; and what they give.
#[derive(Debug, Default)]
pub(crate) struct Tiles<F> {
    list: Vec<(usize, usize, Range<usize>)>,
    out: Vec<F>,
}
