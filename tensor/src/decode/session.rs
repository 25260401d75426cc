//! Runs a program over the new tokens of some sequences.

use super::compile::{Buffer, From, Program, Step, Table};
use super::product::{Packed, Room};
use super::{Asked, DecodeSize, Decoding, Piece};
use crate::ops::{Cache, CacheShape, IO_MAX, Io, Key, Part, Tiles, Work};
use crate::real::Single;
use crate::simd::Set;

pub(super) struct Session<F: Single> {
    program: Program,
    rows_max: usize,
    kept: Vec<F>,
    packed: Vec<Packed<F>>,
    caches: Vec<Cache<F>>,
    /// Tokens of each seat's sequence.
    lens: Vec<usize>,
    buffers: Vec<Vec<F>>,
    /// Rows whose scores are asked for.
    asked: Vec<F>,
    room: Rooms<F>,
    work: Work<F>,
}

/// What steps use and leave dirty.
#[derive(Default)]
struct Rooms<F: Single> {
    product: Room<F>,
    turns: Vec<F>,
    keys: Vec<F::Operand>,
    tiles: Tiles<F>,
}

/// The rows of a pass.
struct Pass {
    tokens: Vec<i32>,
    places: Vec<usize>,
    parts: Vec<Part>,
    /// Rows whose scores are asked for.
    asked: Vec<usize>,
}

impl Pass {
    fn new(pieces: &[Piece<'_>], lens: &[usize]) -> Pass {
        let mut pass = Pass { tokens: Vec::new(), places: Vec::new(), parts: Vec::new(), asked: Vec::new() };
        for piece in pieces.iter().filter(|piece| !piece.tokens.is_empty()) {
            let (row, place, count) = (pass.tokens.len(), lens[piece.seat], piece.tokens.len());
            let is_first = pass.parts.iter().all(|part| part.seat != piece.seat);
            assert!(is_first, "a seat has one piece in a pass");
            pass.parts.push(Part { seat: piece.seat, place, row, count });
            pass.tokens.extend_from_slice(piece.tokens);
            pass.places.extend(place..place + count);
            match piece.asked {
                Asked::None => {}
                Asked::Last => pass.asked.push(row + count - 1),
                Asked::All => pass.asked.extend(row..row + count),
            }
        }
        pass
    }
}

impl<F: Single> Session<F> {
    pub(super) fn new(program: &Program, state: &[F], size: DecodeSize, set: Set) -> Session<F> {
        let DecodeSize { threads, seats, rows } = size;
        let shape = |channels| CacheShape { channels, seats, context: program.context };
        let mut buffers = vec![Vec::new(); program.widths.len()];
        for (buffer, width) in buffers.iter_mut().zip(&program.widths) {
            crate::memory::grow(buffer, rows * width);
        }
        Session {
            rows_max: rows,
            kept: program.kept.iter().flat_map(|range| &state[range.clone()]).copied().collect(),
            packed: program.weights.iter().map(|weight| Packed::new(set, weight, state)).collect(),
            caches: program.caches.iter().map(|(op, channels)| op.cache(shape(*channels))).collect(),
            lens: vec![0; seats],
            buffers,
            asked: Vec::new(),
            room: Rooms::default(),
            work: Work::new(threads),
            program: program.clone(),
        }
    }

    /// A buffer, to be written while others are read; it is put back afterwards.
    fn lend(&mut self, buffer: Buffer) -> Vec<F> {
        std::mem::take(&mut self.buffers[buffer])
    }

    fn step(&mut self, step: &Step, pass: &Pass) {
        let rows = pass.tokens.len();
        match step {
            Step::Embed { table: Table { at, channels }, to } => {
                let table = &self.kept[at.clone()];
                for (y, token) in self.buffers[*to].chunks_exact_mut(*channels).zip(&pass.tokens) {
                    y.copy_from_slice(&table[*token as usize * channels..][..*channels]);
                }
            }
            Step::Place { table: Table { at, channels }, from, to } => {
                let mut y = self.lend(*to);
                let (table, x) = (&self.kept[at.clone()], &self.buffers[*from]);
                let rows = y.chunks_exact_mut(*channels).zip(x.chunks_exact(*channels)).zip(&pass.places);
                for ((y, x), place) in rows {
                    let table = &table[place * channels..][..*channels];
                    y.iter_mut().zip(x).zip(table).for_each(|((y, x), place)| *y = *x + *place);
                }
                self.buffers[*to] = y;
            }
            Step::Product { linear, from, to } => {
                let mut y = self.lend(*to);
                let weight = &self.program.weights[linear.weight];
                let (x, bias) = (&self.buffers[*from][..rows * weight.inner], linear.bias.clone().unwrap_or(0..0));
                let (packed, bias) = (&self.packed[linear.weight], &self.kept[bias]);
                packed.multiply(x, bias, &mut y[..rows * weight.out], &mut self.room.product, &mut self.work);
                self.buffers[*to] = y;
            }
            Step::Turn { rotary, from, to } => {
                let mut y = self.lend(*to);
                let len = rows * rotary.channels(self.program.context);
                rotary.turn_at(&pass.places, &self.buffers[*from][..len], &mut y[..len], &mut self.room.turns);
                self.buffers[*to] = y;
            }
            Step::Attend { cache, from, to } => {
                let mut y = self.lend(*to);
                let (cache, qkv) = (&mut self.caches[*cache], &self.buffers[*from]);
                pass.parts.iter().for_each(|part| cache.keep(*part, qkv, &mut self.room.keys));
                cache.attend(&pass.parts, qkv, &mut y, &mut self.room.tiles, &mut self.work);
                self.buffers[*to] = y;
            }
            Step::Rows { .. } => self.by_rows(step, rows),
        }
    }

    fn by_rows(&mut self, step: &Step, rows: usize) {
        let Step::Rows { op, path, from, to, types } = step else { unreachable!("the caller looked") };
        let mut types = types.clone();
        for (ty, from) in types.iter_mut().zip(from) {
            if let From::Buffer(_) = from {
                ty.shape[1] = rows;
            }
        }
        let out_types =
            op.infer(&types.iter().collect::<Vec<_>>()).expect("the op took as many rows as the context has");
        let mut lent: [Vec<F>; IO_MAX] =
            std::array::from_fn(|at| to.get(at).map_or_else(Vec::new, |to| self.lend(*to)));
        let mut at = 0;
        let y = lent.each_mut().map(|y| {
            at += 1;
            &mut y[..out_types.get(at - 1).map_or(0, |ty| ty.len())]
        });
        let x = std::array::from_fn(|at| match from.get(at) {
            Some(From::Buffer(buffer)) => &self.buffers[*buffer][..types[at].len()],
            Some(From::Kept(range)) => &self.kept[range.clone()],
            None => &[],
        });
        let key = Key { seed: 0, step: 0, scale: 0.0, label_smoothing: 0.0, shards: 1, slots: &[0] };
        let (types, out_types) = (&types[..], &out_types[..]);
        op.run(Io { x, ints: [&[]; IO_MAX], y, types, out_types, key: &key, path, work: &mut self.work });
        for (to, y) in to.iter().zip(lent) {
            self.buffers[*to] = y;
        }
    }

    /// Scores of the asked rows alone: most of a prompt's are of no use.
    fn scores(&mut self, pass: &Pass, scores: &mut [F]) {
        let (linear, from) = self.program.scores.as_ref().expect("a compiled program makes scores");
        let inner = self.program.weights[linear.weight].inner;
        self.asked.clear();
        for row in &pass.asked {
            self.asked.extend_from_slice(&self.buffers[*from][row * inner..][..inner]);
        }
        let bias = &self.kept[linear.bias.clone().unwrap_or(0..0)];
        self.packed[linear.weight].multiply(&self.asked, bias, scores, &mut self.room.product, &mut self.work);
    }
}

impl<F: Single> Decoding for Session<F> {
    fn len(&self, seat: usize) -> usize {
        self.lens[seat]
    }

    fn clear(&mut self, seat: usize) {
        self.lens[seat] = 0;
    }

    fn advance(&mut self, pieces: &[Piece<'_>], scores: &mut [f32]) {
        let _ieee = crate::float_mode::Ieee::enter();
        let pass = Pass::new(pieces, &self.lens);
        assert!(pass.tokens.len() <= self.rows_max, "a pass has at most {} tokens", self.rows_max);
        let is_known = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < self.program.vocab);
        assert!(pass.tokens.iter().all(is_known), "the caller promised tokens under {}", self.program.vocab);
        let fits = |part: &Part| part.place + part.count <= self.program.context;
        assert!(
            pass.parts.iter().all(fits),
            "the caller promised sequences of at most {} tokens",
            self.program.context
        );
        assert_eq!(scores.len(), pass.asked.len() * self.program.vocab, "a row of scores for each token that is asked");
        if pass.tokens.is_empty() {
            return;
        }
        let steps = std::mem::take(&mut self.program.steps);
        steps.iter().for_each(|step| self.step(step, &pass));
        self.program.steps = steps;
        if !pass.asked.is_empty() {
            self.scores(&pass, F::of_floats_mut(scores));
        }
        pass.parts.iter().for_each(|part| self.lens[part.seat] += part.count);
        self.work.level();
    }
}
