//! A text model that goes on with several sequences at once, each token by token.
//!
//! A step is one pass: every sequence that waits for one token goes on by it, and prompts are read beside them, in pieces,
//! first come first served. So a long prompt holds nobody up for longer than a piece takes. The logits of a sequence are
//! those of [`Predictor::sequence_logits`](crate::Predictor::sequence_logits), bit for bit, whoever else is in the step.

use crate::Model;
use crate::description::{Description, Shape};
use crate::predictor::{fits_table, state_of};
use elastic_models::build_decode;
use elastic_tensor::{Asked, DecodeMemory, DecodeSize, Decoding, Piece, StateLayout};
use std::ops::Range;
use std::sync::Arc;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneratorSize {
    pub threads: usize,
    /// Sequences at a time.
    pub sequences: usize,
    /// Most tokens of prompts in one step.
    pub prompt_tokens: usize,
    /// Bytes that weights, cache and a step may take; what needs more is refused.
    pub memory_max: u64,
}

pub struct Generator {
    session: Box<dyn Decoding>,
    memory: DecodeMemory,
    context: usize,
    vocab: usize,
    prompt_tokens: usize,
    seats: Vec<Option<Sequence>>,
    /// Counts sequences, for their order.
    added: u64,
    logits: Vec<f32>,
}

/// A place for a sequence. It is the caller's from `add` to `remove`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seat(usize);

struct Sequence {
    number: u64,
    /// All tokens so far.
    tokens: Vec<i32>,
    /// How many of them the cache has.
    read: usize,
    wanted: Wanted,
}

/// Which logits a sequence is to give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Those behind its last token.
    Next,
    /// Those behind every token of the prompt as well.
    All,
}

/// What a step found of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub seat: Seat,
    /// The token behind which the first of the logits stand.
    pub place: usize,
    /// Whether the last of them stand behind the sequence's last token, and so say what comes next.
    pub is_next: bool,
    rows: Range<usize>,
}

/// Why a sequence cannot be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    #[error("all {0} places for sequences are taken")]
    Full(usize),
    #[error("the prompt has no tokens")]
    Empty,
    #[error("the prompt has {tokens} tokens, and the model's context is {context}")]
    TooLong { tokens: usize, context: usize },
    #[error("the prompt has {bytes} bytes, which are at least {tokens} tokens, and the model's context is {context}")]
    TooManyBytes { bytes: usize, tokens: usize, context: usize },
    #[error("token {token} at place {place} is none of the model's {vocab}")]
    Unknown { place: usize, token: i32, vocab: usize },
}

impl Generator {
    /// The error names what does not fit: a model that reads no text, a tensor, or the memory and its cure.
    pub fn new(model: &Model, size: GeneratorSize) -> Result<Generator, String> {
        fits_table(model)?;
        Generator::start(&model.description, size, |layout| state_of(model, layout).map(Arc::new))
    }

    /// `state` gives the weights in the layout's order, once it is known that they fit into memory.
    pub(crate) fn start(
        description: &Description,
        size: GeneratorSize,
        state: impl FnOnce(&StateLayout) -> Result<Arc<Vec<f32>>, String>,
    ) -> Result<Generator, String> {
        let Shape::Tokens { vocab, context } = description.data else {
            return Err(format!(
                "the model {:?} reads features, not text: it has nothing to go on with",
                description.name
            ));
        };
        let decode = build_decode(description.dtype, &description.model, &description.data.into())?;
        let (sequences, prompt_tokens) = (size.sequences.max(1), size.prompt_tokens.clamp(1, context));
        let rows = sequences + prompt_tokens;
        let of = |sequences| DecodeSize { threads: size.threads, seats: sequences, rows };
        let logits = (rows * vocab * size_of::<f32>()) as u64;
        let memory_of = |sequences| {
            let memory = decode.memory(of(sequences));
            DecodeMemory { pass: memory.pass.saturating_add(logits), ..memory }
        };
        let memory = memory_of(sequences);
        if memory.total() > size.memory_max {
            return Err(too_large(size.memory_max, sequences, context, memory));
        }
        let state = state(decode.layout())?;
        let session = decode.start(&state, of(sequences));
        let seats = (0..sequences).map(|_| None).collect();
        Ok(Generator { session, memory, context, vocab, prompt_tokens, seats, added: 0, logits: Vec::new() })
    }

    /// Most tokens of a sequence.
    pub fn context(&self) -> usize {
        self.context
    }

    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Sequences at a time.
    pub fn sequences(&self) -> usize {
        self.seats.len()
    }

    pub fn free(&self) -> usize {
        self.seats.iter().filter(|seat| seat.is_none()).count()
    }

    /// Bytes that were planned for weights, cache and steps.
    pub fn memory(&self) -> DecodeMemory {
        self.memory
    }

    /// Tokens in the cache, of all sequences.
    pub fn cached(&self) -> usize {
        self.seats.iter().flatten().map(|sequence| sequence.read).sum()
    }

    /// What is wrong with a prompt, whether or not there is a place for it.
    pub fn check(&self, tokens: &[i32]) -> Result<(), AddError> {
        let vocab = self.vocab;
        if tokens.is_empty() {
            return Err(AddError::Empty);
        }
        if tokens.len() > self.context {
            return Err(AddError::TooLong { tokens: tokens.len(), context: self.context });
        }
        match tokens.iter().position(|token| usize::try_from(*token).map_or(true, |token| token >= vocab)) {
            Some(place) => Err(AddError::Unknown { place, token: tokens[place], vocab }),
            None => Ok(()),
        }
    }

    /// A sequence that begins with a prompt. The next steps read it.
    pub fn add(&mut self, tokens: &[i32], wanted: Wanted) -> Result<Seat, AddError> {
        self.check(tokens)?;
        let seat = self.seats.iter().position(Option::is_none).ok_or(AddError::Full(self.seats.len()))?;
        self.session.clear(seat);
        self.seats[seat] = Some(Sequence { number: self.added, tokens: tokens.to_vec(), read: 0, wanted });
        self.added += 1;
        Ok(Seat(seat))
    }

    /// The next token of a sequence, chosen by the caller. False when it is as long as the context: nothing can follow.
    pub fn go_on(&mut self, seat: Seat, token: i32) -> bool {
        let context = self.context;
        assert!(usize::try_from(token).is_ok_and(|token| token < self.vocab), "a token of the model");
        let sequence = self.seats[seat.0].as_mut().expect("the seat is the caller's");
        if sequence.tokens.len() == context {
            return false;
        }
        sequence.tokens.push(token);
        true
    }

    /// The seat is free for the next.
    pub fn remove(&mut self, seat: Seat) {
        assert!(self.seats[seat.0].take().is_some(), "the seat is the caller's");
        self.session.clear(seat.0);
    }

    /// One pass over what waits. Nothing waits: nothing is found.
    pub fn step(&mut self) -> Vec<Found> {
        let mut pieces = Vec::new();
        let mut found = Vec::new();
        let mut rows = 0;
        for (seat, count) in self.turn() {
            let sequence = self.seats[seat].as_ref().expect("only what is there waits");
            let end = sequence.read + count;
            let is_next = end == sequence.tokens.len();
            let asked = match sequence.wanted {
                Wanted::All => Asked::All,
                Wanted::Next if is_next => Asked::Last,
                Wanted::Next => Asked::None,
            };
            let piece = Piece { seat, tokens: &sequence.tokens[sequence.read..end], asked };
            let scores = piece.scores();
            if scores > 0 {
                found.push(Found { seat: Seat(seat), place: end - scores, is_next, rows: rows..rows + scores });
            }
            rows += scores;
            pieces.push(piece);
        }
        self.logits.resize(rows * self.vocab, 0.0);
        self.session.advance(&pieces, &mut self.logits);
        let counts: Vec<(usize, usize)> = pieces.iter().map(|piece| (piece.seat, piece.tokens.len())).collect();
        for (seat, count) in counts {
            let sequence = self.seats[seat].as_mut().expect("it was there before the pass");
            sequence.read += count;
        }
        found
    }

    /// The last step's logits of one sequence, (token, vocabulary).
    pub fn logits(&self, found: &Found) -> &[f32] {
        &self.logits[found.rows.start * self.vocab..found.rows.end * self.vocab]
    }

    /// Who goes on in the next step, by how many tokens: all that wait for one, then prompts in their order.
    fn turn(&self) -> Vec<(usize, usize)> {
        let waiting = |seat: &usize| self.seats[*seat].as_ref().map_or(0, |s| s.tokens.len() - s.read);
        let is_begun = |seat: &usize| self.seats[*seat].as_ref().is_some_and(|s| s.read > 0);
        let all = (0..self.seats.len()).filter(|seat| waiting(seat) > 0);
        let (single, mut prompts): (Vec<_>, Vec<_>) = all.partition(|seat| waiting(seat) == 1 && is_begun(seat));
        prompts.sort_by_key(|seat| self.seats[*seat].as_ref().map(|s| s.number));
        let mut out: Vec<(usize, usize)> = single.into_iter().map(|seat| (seat, 1)).collect();
        let mut left = self.prompt_tokens;
        for seat in prompts {
            let count = waiting(&seat).min(left);
            if count > 0 {
                out.push((seat, count));
            }
            left -= count;
        }
        out
    }
}

fn too_large(allowed: u64, sequences: usize, context: usize, memory: DecodeMemory) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let of_one = memory.cache / sequences as u64;
    let rest = memory.weights.saturating_add(memory.pass);
    let cure = match allowed.saturating_sub(rest).checked_div(of_one.max(1)) {
        Some(fit) if fit > 0 => format!("allow more, or at most {fit} sequences"),
        _ => "allow more".to_string(),
    };
    format!(
        "{sequences} sequences of {context} tokens need {} MiB ({} weights, {} cache, {} a step), and {} MiB are allowed: {cure}",
        mib(memory.total()),
        mib(memory.weights),
        mib(memory.cache),
        mib(memory.pass),
        allowed >> 20,
    )
}
