//! The whole replicated state of one rank, and its bytes for a joiner.
//!
//! Every member holds the same state at the same round, bit for bit, so a joiner may take each stripe
//! from another peer. The SHA-256 of the whole stands at the end: stripes of states that differ, or that
//! were torn, are refused together.

use crate::rows::Row;
use bytes::Bytes;
use elastic_spec::frame::Body;
use elastic_spec::{Digest, Round};
use sha2::Digest as _;
use std::ops::Range;

#[derive(Clone, Debug, PartialEq)]
pub struct State {
    pub round: Round,
    /// Parameters, then buffers.
    pub floats: Vec<f32>,
    /// The optimizer's memory: vectors over the parameters. The average of the weights, if one is kept, is the last.
    pub moments: Vec<Vec<f32>>,
    /// One for each step done.
    pub rows: Vec<Row>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadState {
    #[error("a state's bytes begin otherwise")]
    Head,
    #[error("the state is of round {0}")]
    Round(Round),
    #[error("the state has {found} bytes where this job's has {expected}")]
    Size { found: usize, expected: usize },
    #[error("the state's hash does not fit its bytes")]
    Hash,
}

impl State {
    /// The pieces of stripe `part` of `parts`, ready for the wire.
    pub fn frames(&self, part: u16, parts: u16) -> Vec<Body> {
        let range = stripe(self.bytes_total(), part, parts);
        let bytes = Bytes::from(self.bytes(range));
        let sha256_of_part = Digest::of(&bytes).0;
        let pieces = bytes.len().div_ceil(PIECE_BYTES).max(1);
        let piece = |i: usize| {
            let payload = bytes.slice(i * PIECE_BYTES..((i + 1) * PIECE_BYTES).min(bytes.len()));
            let (offset, total, last) = ((i * PIECE_BYTES) as u64, bytes.len() as u64, i + 1 == pieces);
            Body::State { round: self.round, part, parts, total, offset, payload, sha256_of_part, last }
        };
        (0..pieces).map(piece).collect()
    }

    /// Replaces this state by one whose stripes came from peers; unchanged if they are refused.
    pub fn install(&mut self, round: Round, stripes: &[Bytes]) -> Result<(), BadState> {
        let bytes = stripes.concat();
        let head = bytes.get(..HEAD_BYTES).filter(|head| head[..8] == *MAGIC).ok_or(BadState::Head)?;
        let word = |i: usize| u64::from_le_bytes(head[i * 8..i * 8 + 8].try_into().expect("eight bytes"));
        if word(1) != round.0 {
            return Err(BadState::Round(Round(word(1))));
        }
        let rows = word(4).min(bytes.len() as u64) as usize;
        let expected = HEAD_BYTES + self.floats_total() * 4 + rows * Row::BYTES + HASH_BYTES;
        if bytes.len() != expected || (word(2), word(3)) != (self.floats.len() as u64, self.moments.len() as u64) {
            return Err(BadState::Size { found: bytes.len(), expected });
        }
        let (body, hash) = bytes.split_at(bytes.len() - HASH_BYTES);
        if Digest::of(body).0 != hash {
            return Err(BadState::Hash);
        }
        let (floats, rows) = body[HEAD_BYTES..].split_at(self.floats_total() * 4);
        let mut floats = floats.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes")));
        for section in std::iter::once(&mut self.floats).chain(&mut self.moments) {
            section.iter_mut().zip(&mut floats).for_each(|(x, new)| *x = new);
        }
        self.rows = rows.chunks_exact(Row::BYTES).map(|b| Row::from_bytes(b.try_into().expect("a row"))).collect();
        self.round = round;
        Ok(())
    }

    fn floats_total(&self) -> usize {
        self.floats.len() + self.moments.iter().map(Vec::len).sum::<usize>()
    }

    fn bytes_total(&self) -> usize {
        self.hashed_total() + HASH_BYTES
    }

    fn hashed_total(&self) -> usize {
        HEAD_BYTES + self.floats_total() * 4 + self.rows.len() * Row::BYTES
    }

    /// A range of the state's bytes; both ends are multiples of four.
    fn bytes(&self, range: Range<usize>) -> Vec<u8> {
        let mut out = Vec::with_capacity(range.len());
        let mut at = 0;
        let mut section = |len: usize, write: &mut dyn FnMut(Range<usize>, &mut Vec<u8>)| {
            let (start, end) = (range.start.max(at), range.end.min(at + len));
            if start < end {
                write(start - at..end - at, &mut out);
            }
            at += len;
        };
        section(HEAD_BYTES, &mut |r, out| out.extend_from_slice(&self.head()[r]));
        for floats in std::iter::once(&self.floats).chain(&self.moments) {
            section(floats.len() * 4, &mut |r, out| extend(out, &floats[r.start / 4..r.end / 4]));
        }
        section(self.rows.len() * Row::BYTES, &mut |r, out| {
            let rows = &self.rows[r.start / Row::BYTES..r.end.div_ceil(Row::BYTES)];
            let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_bytes()).collect();
            let skip = r.start % Row::BYTES;
            out.extend_from_slice(&bytes[skip..skip + r.len()]);
        });
        section(HASH_BYTES, &mut |r, out| out.extend_from_slice(&self.hash()[r]));
        out
    }

    fn head(&self) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(MAGIC);
        let words = [self.round.0, self.floats.len() as u64, self.moments.len() as u64, self.rows.len() as u64];
        for (slot, word) in head[8..].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        head
    }

    fn hash(&self) -> [u8; HASH_BYTES] {
        let mut hash = sha2::Sha256::new();
        let total = self.hashed_total();
        for start in (0..total).step_by(PIECE_BYTES) {
            hash.update(self.bytes(start..(start + PIECE_BYTES).min(total)));
        }
        hash.finalize().into()
    }
}

/// Stripes begin at multiples of 64 bytes, so that no number is cut.
fn stripe(total: usize, part: u16, parts: u16) -> Range<usize> {
    let cut = |part: u16| total / 64 * part as usize / parts.max(1) as usize * 64;
    let end = if part + 1 >= parts { total } else { cut(part + 1) };
    cut(part).min(end)..end
}

fn extend(out: &mut Vec<u8>, floats: &[f32]) {
    let start = out.len();
    out.resize(start + floats.len() * 4, 0);
    for (slot, x) in out[start..].chunks_exact_mut(4).zip(floats) {
        slot.copy_from_slice(&x.to_le_bytes());
    }
}

const MAGIC: &[u8; 8] = b"elstate1";
const HEAD_BYTES: usize = 64;
const HASH_BYTES: usize = 32;
/// One frame of a state: large enough that headers do not matter, small enough that a chunk of a running
/// round does not wait long behind it.
const PIECE_BYTES: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state(floats: usize, moments: usize, rows: usize) -> State {
        let row = |i| Row { lr: i as f64, ..Row::default() };
        State {
            round: Round(rows as u64),
            floats: (0..floats).map(|i| i as f32 * 0.5).collect(),
            moments: (0..moments).map(|m| (0..floats / 2).map(|i| (i + m) as f32).collect()).collect(),
            rows: (0..rows).map(row).collect(),
        }
    }

    fn blank(of: &State) -> State {
        let moments = of.moments.iter().map(|m| vec![0.0; m.len()]).collect();
        State { round: Round(0), floats: vec![0.0; of.floats.len()], moments, rows: Vec::new() }
    }

    fn stripes(state: &State, parts: u16) -> Vec<Bytes> {
        let payload = |body| match body {
            Body::State { payload, .. } => payload,
            other => panic!("a state is sent, not {other:?}"),
        };
        (0..parts)
            .map(|p| state.frames(p, parts).into_iter().map(payload).collect::<Vec<_>>().concat().into())
            .collect()
    }

    proptest! {
        #[test]
        fn any_number_of_stripes_gives_the_whole_state(floats in 0usize..3000, moments in 0usize..3, rows in 0usize..40, parts in 1u16..20) {
            let state = state(floats, moments, rows);
            let mut other = blank(&state);
            other.install(state.round, &stripes(&state, parts)).unwrap();
            prop_assert_eq!(other, state);
        }

        #[test]
        fn bytes_that_were_changed_are_refused(at in 0usize..2000, bit in 0u8..8) {
            let state = state(300, 1, 4);
            let mut bytes = stripes(&state, 1)[0].to_vec();
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            let mut other = blank(&state);
            prop_assert!(other.install(state.round, &[bytes.into()]).is_err());
            prop_assert_eq!(other, blank(&state), "a refused state changes nothing");
        }
    }

    #[test]
    fn a_large_part_is_cut_into_pieces_that_say_where_they_belong() {
        let state = state(3 << 20, 0, 0);
        let frames = state.frames(0, 1);
        assert_eq!(frames.len(), 4);
        let places: Vec<_> = frames
            .iter()
            .map(|f| match f {
                Body::State { offset, last, .. } => (*offset as usize / PIECE_BYTES, *last),
                other => panic!("a state is sent, not {other:?}"),
            })
            .collect();
        assert_eq!(places, [(0, false), (1, false), (2, false), (3, true)]);
    }

    #[test]
    fn another_jobs_state_is_refused_by_its_size() {
        let mut other = blank(&state(10, 1, 0));
        let refused = other.install(Round(2), &stripes(&state(12, 1, 2), 1)).unwrap_err();
        assert!(matches!(refused, BadState::Size { .. }), "{refused}");
    }
}
