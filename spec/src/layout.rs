//! What one round reduces, cut into chunks on a grid that depends on the model alone.
//!
//! A round's value is a flat vector of f32 (gradients, then batch-norm statistics) and a [`Tail`] of
//! metrics. On the wire and in memory a chunk is its bytes: f32 little-endian, and in the last chunk the
//! tail behind them. Sums are IEEE additions in tree order; an absent leaf is zeros and is really added.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Floats in a block: the one grid for ownership, hashes, norms and checkpoint files.
pub const BLOCK_FLOATS: usize = 64 << 10;
/// Most chunks that a round is cut into; more would cost a frame header and a wake-up each.
pub const CHUNKS_MAX: usize = 64;

/// How a round's value is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Length of the flat vector.
    pub floats: usize,
    /// Floats in a block: [`BLOCK_FLOATS`] in the product, less in the simulator.
    pub block_floats: usize,
}

impl Layout {
    /// A validation round reduces the tail alone.
    pub const TAIL_ONLY: Layout = Layout::new(0);

    /// On the product's grid.
    pub const fn new(floats: usize) -> Layout {
        Layout { floats, block_floats: BLOCK_FLOATS }
    }

    /// Floats in each chunk but the last: whole blocks, as few as keep the count within the limit.
    pub fn chunk_floats(self) -> usize {
        let blocks = self.floats.div_ceil(self.block_floats);
        blocks.div_ceil(CHUNKS_MAX).max(1) * self.block_floats
    }

    /// Number of chunks, at least one (the tail must be somewhere).
    pub fn chunks(self) -> u32 {
        self.floats.div_ceil(self.chunk_floats()).max(1) as u32
    }

    /// The floats of a chunk.
    pub fn range(self, chunk: u32) -> Range<usize> {
        let size = self.chunk_floats();
        let start = chunk as usize * size;
        start..(start + size).min(self.floats)
    }

    pub fn is_last(self, chunk: u32) -> bool {
        chunk + 1 == self.chunks()
    }

    /// Bytes of a chunk, the tail included where it has one.
    pub fn bytes(self, chunk: u32) -> usize {
        self.range(chunk).len() * 4 + if self.is_last(chunk) { Tail::BYTES } else { 0 }
    }

    /// Cuts a leaf into its chunks.
    pub fn cut(self, floats: &[f32], tail: Tail) -> Vec<Bytes> {
        assert_eq!(floats.len(), self.floats, "a leaf has the layout's length");
        (0..self.chunks())
            .map(|chunk| {
                let mut bytes = Vec::with_capacity(self.bytes(chunk));
                bytes.extend(floats[self.range(chunk)].iter().flat_map(|x| x.to_le_bytes()));
                if self.is_last(chunk) {
                    bytes.extend_from_slice(&tail.to_bytes());
                }
                Bytes::from(bytes)
            })
            .collect()
    }

    /// Puts reduced chunks together again.
    pub fn join(self, chunks: &[Bytes], floats: &mut [f32]) -> Tail {
        assert_eq!(chunks.len(), self.chunks() as usize, "all chunks of a round");
        assert_eq!(floats.len(), self.floats, "the flat vector has the layout's length");
        for (chunk, bytes) in (0u32..).zip(chunks) {
            assert_eq!(bytes.len(), self.bytes(chunk), "a chunk has the layout's bytes");
            for (x, b) in floats[self.range(chunk)].iter_mut().zip(bytes.chunks_exact(4)) {
                *x = f32::from_le_bytes(b.try_into().expect("four bytes"));
            }
        }
        let last = chunks.last().expect("at least one chunk");
        Tail::from_bytes(last[last.len() - Tail::BYTES..].try_into().expect("the tail's bytes"))
    }

    /// The sum of two siblings' payloads: element-wise f32, and the tails.
    pub fn add(self, chunk: u32, left: &Bytes, right: &Bytes) -> Bytes {
        assert_eq!((left.len(), right.len()), (self.bytes(chunk), self.bytes(chunk)), "both are chunk {chunk}");
        let floats = self.range(chunk).len() * 4;
        let mut out = vec![0u8; left.len()];
        for ((o, a), b) in out[..floats].chunks_exact_mut(4).zip(left.chunks_exact(4)).zip(right.chunks_exact(4)) {
            let a = f32::from_le_bytes(a.try_into().expect("four bytes"));
            let b = f32::from_le_bytes(b.try_into().expect("four bytes"));
            o.copy_from_slice(&canonical(a + b).to_le_bytes());
        }
        if self.is_last(chunk) {
            let tail = |bytes: &Bytes| Tail::from_bytes(bytes[floats..].try_into().expect("the tail's bytes"));
            out[floats..].copy_from_slice(&tail(left).add(tail(right)).to_bytes());
        }
        Bytes::from(out)
    }
}

/// One bit pattern for every NaN: the payload of a NaN is the one thing that IEEE leaves open.
pub fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { x }
}

/// Metrics of a round, reduced along the same tree.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tail {
    /// Sum of the losses of the valid samples (or tokens).
    pub loss: f64,
    /// Valid samples (or tokens).
    pub count: u64,
    /// Of these, how many were predicted right.
    pub correct: u64,
}

impl Tail {
    pub const BYTES: usize = 24;

    pub fn to_bytes(self) -> [u8; Tail::BYTES] {
        let loss = if self.loss.is_nan() { 0x7ff8_0000_0000_0000 } else { self.loss.to_bits() };
        let mut out = [0; Tail::BYTES];
        for (slot, word) in out.chunks_exact_mut(8).zip([loss, self.count, self.correct]) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    pub fn from_bytes(bytes: &[u8; Tail::BYTES]) -> Tail {
        let word = |i: usize| u64::from_le_bytes(bytes[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
        Tail { loss: f64::from_bits(word(0)), count: word(1), correct: word(2) }
    }

    #[expect(clippy::should_implement_trait, reason = "counts wrap; `+` would promise that they do not")]
    pub fn add(self, other: Tail) -> Tail {
        Tail {
            loss: self.loss + other.loss,
            count: self.count.wrapping_add(other.count),
            correct: self.correct.wrapping_add(other.correct),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_survives_being_cut_and_joined() {
        for floats in [0, 1, 7, BLOCK_FLOATS, BLOCK_FLOATS + 1, BLOCK_FLOATS * 65] {
            let layout = Layout::new(floats);
            let source: Vec<f32> = (0..floats).map(|i| i as f32 * 0.5 - 3.0).collect();
            let tail = Tail { loss: 1.25, count: 3, correct: 2 };
            let chunks = layout.cut(&source, tail);
            assert!(chunks.len() <= CHUNKS_MAX);
            let mut back = vec![0.0; floats];
            assert_eq!(layout.join(&chunks, &mut back), tail);
            assert_eq!(back, source);
        }
    }

    #[test]
    fn adding_zero_turns_negative_zero_positive_as_ieee_says() {
        let layout = Layout::new(1);
        let (a, b) = (layout.cut(&[-0.0], Tail::default()), layout.cut(&[0.0], Tail::default()));
        let mut sum = [9.0];
        layout.join(&[layout.add(0, &a[0], &b[0])], &mut sum);
        assert_eq!(sum[0].to_bits(), 0);
    }

    #[test]
    fn every_nan_has_one_pattern() {
        let layout = Layout::new(1);
        let odd = layout.cut(&[f32::from_bits(0xffc1_2345)], Tail::default());
        let sum = layout.add(0, &odd[0], &odd[0]);
        assert_eq!(&sum[..4], &0x7fc0_0000u32.to_le_bytes());
    }
}
