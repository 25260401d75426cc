//! Getting the state from peers: the state of exactly one round, striped over them.
//!
//! The round is chosen a little ahead of the peers (`lead`), since a running job does not stand still
//! while the question travels; a peer that is past it says so, and the lead doubles. When nothing moves
//! (the job may be waiting for this very member), the lead goes back to zero.

use bytes::Bytes;
use elastic_spec::{Digest, Round, WorkerId};

const LEAD_MAX: u64 = 4096;
const PARTS_MAX: usize = 16;

#[derive(Debug, Default)]
pub struct Fetch {
    lead: u64,
    target: Option<Target>,
}

#[derive(Debug)]
struct Target {
    round: Round,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    source: WorkerId,
    bytes: Vec<u8>,
    is_done: bool,
}

/// One frame of a part, as it came.
#[derive(Debug)]
pub struct Piece<'a> {
    pub round: Round,
    pub part: u16,
    pub parts: u16,
    pub total: u64,
    pub offset: u64,
    pub payload: &'a Bytes,
    pub sha256_of_part: [u8; 32],
    pub last: bool,
}

/// A question to send.
#[derive(Debug, PartialEq, Eq)]
pub struct Question {
    pub to: WorkerId,
    pub round: Round,
    pub part: u16,
    pub parts: u16,
}

impl Fetch {
    /// The round whose state is on its way, if one was chosen.
    pub fn round(&self) -> Option<Round> {
        self.target.as_ref().map(|t| t.round)
    }

    /// Whether the next choice looks ahead of the peers.
    pub fn is_ahead(&self) -> bool {
        self.lead > 0
    }

    /// Chooses a round at or ahead of `newest` and asks each of `sources` for a stripe.
    pub fn choose(&mut self, newest: Round, last: Round, sources: &[WorkerId]) -> Vec<Question> {
        let round = Round((newest.0 + self.lead).min(last.0));
        let count = sources.len().min(PARTS_MAX);
        let parts = sources[..count].iter().map(|s| Part { source: *s, bytes: Vec::new(), is_done: false }).collect();
        self.target = Some(Target { round, parts });
        let ask = |(part, to): (usize, &WorkerId)| Question { to: *to, round, part: part as u16, parts: count as u16 };
        sources[..count].iter().enumerate().map(ask).collect()
    }

    /// A source is past `wanted`: the next choice looks further ahead.
    pub fn is_missed(&mut self, wanted: Round) -> bool {
        let missed = self.round() == Some(wanted);
        if missed {
            self.lead = (self.lead * 2).clamp(1, LEAD_MAX);
            self.target = None;
        }
        missed
    }

    /// Nothing came for a while, or a source is gone: the next choice takes the peers where they stand.
    pub fn give_up(&mut self) {
        self.lead = 0;
        self.target = None;
    }

    pub fn uses(&self, source: WorkerId) -> bool {
        self.target.iter().flat_map(|t| &t.parts).any(|p| p.source == source && !p.is_done)
    }

    /// The sources whose part is not whole.
    pub fn waits_for(&self) -> Vec<WorkerId> {
        let mut sources: Vec<_> =
            self.target.iter().flat_map(|t| &t.parts).filter(|p| !p.is_done).map(|p| p.source).collect();
        sources.sort();
        sources.dedup();
        sources
    }

    /// Takes a piece; all parts in order once the last is whole. A piece that does not fit is left out:
    /// time will ask again.
    pub fn take(&mut self, from: WorkerId, piece: Piece<'_>) -> Option<(Round, Vec<Bytes>)> {
        let target = self.target.as_mut()?;
        let parts = target.parts.len();
        let part = target.parts.get_mut(piece.part as usize)?;
        let fits = piece.round == target.round
            && piece.parts as usize == parts
            && part.source == from
            && !part.is_done
            && piece.offset == part.bytes.len() as u64
            && piece.offset + piece.payload.len() as u64 <= piece.total;
        if !fits {
            return None;
        }
        part.bytes.extend_from_slice(piece.payload);
        if piece.last {
            if part.bytes.len() as u64 != piece.total || Digest::of(&part.bytes).0 != piece.sha256_of_part {
                self.give_up();
                return None;
            }
            part.is_done = true;
        }
        if !target.parts.iter().all(|p| p.is_done) {
            return None;
        }
        let target = self.target.take()?;
        self.lead = 0;
        Some((target.round, target.parts.into_iter().map(|p| Bytes::from(p.bytes)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(1);
    const B: WorkerId = WorkerId(2);

    fn piece(round: u64, part: u16, offset: u64, payload: &Bytes, whole: &[u8], last: bool) -> Piece<'static> {
        let payload = Box::leak(Box::new(payload.clone()));
        let sha256_of_part = Digest::of(whole).0;
        Piece { round: Round(round), part, parts: 2, total: whole.len() as u64, offset, payload, sha256_of_part, last }
    }

    #[test]
    fn a_state_is_whole_when_every_part_is_and_its_hash_fits() {
        let mut fetch = Fetch::default();
        assert_eq!(fetch.choose(Round(5), Round(9), &[A, B]).len(), 2);
        let (ab, cd, e) = (Bytes::from_static(b"ab"), Bytes::from_static(b"cd"), Bytes::from_static(b"e"));
        assert!(fetch.take(A, piece(5, 0, 0, &ab, b"abcd", false)).is_none());
        assert!(fetch.take(B, piece(5, 1, 0, &e, b"e", true)).is_none());
        assert!(fetch.take(A, piece(5, 0, 0, &ab, b"abcd", false)).is_none(), "a repeated piece changes nothing");
        assert!(fetch.take(B, piece(5, 0, 2, &cd, b"abcd", true)).is_none(), "a part comes from whom it was asked");
        let (round, parts) = fetch.take(A, piece(5, 0, 2, &cd, b"abcd", true)).unwrap();
        assert_eq!((round, parts.concat()), (Round(5), b"abcde".to_vec()));
    }

    #[test]
    fn a_wrong_hash_begins_anew() {
        let mut fetch = Fetch::default();
        fetch.choose(Round(5), Round(9), &[A, B]);
        assert!(fetch.take(A, piece(5, 0, 0, &Bytes::from_static(b"abcx"), b"abcd", true)).is_none());
        assert_eq!(fetch.round(), None);
    }

    #[test]
    fn a_running_job_is_met_further_ahead_each_time_but_never_past_its_end() {
        let mut fetch = Fetch::default();
        for round in [10, 11, 12, 14, 18, 20] {
            fetch.choose(Round(10), Round(20), &[A]);
            assert_eq!(fetch.round(), Some(Round(round)));
            assert!(fetch.is_missed(Round(round)));
        }
        fetch.give_up();
        fetch.choose(Round(10), Round(20), &[A]);
        assert_eq!(fetch.round(), Some(Round(10)), "nobody moved: take them where they stand");
    }
}
