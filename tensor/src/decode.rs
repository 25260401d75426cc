//! Sequences that grow token by token: the forward pass of new tokens alone, which see those before them through a cache
//! of keys and values.
//!
//! A module is traced as for the forward pass of whole rows (`predict`), so there is one description of a network. What
//! treats each token by itself runs on as many rows as there are new tokens; attention runs against the cache; places
//! are those of the sequences. Bits are those of the forward pass over the whole sequence: each element of a product is
//! the same chain, and attention is the same code. So neither the other sequences of a pass show, nor how a prompt is
//! cut, nor the number of threads.

mod compile;
mod product;
mod session;

use crate::mixed::Mixed;
use crate::network::StateLayout;
use crate::nn::Module;
use elastic_spec::batch::DataShape;
use elastic_spec::job::Dtype;

/// A module compiled to continue sequences.
pub trait Decode: Send + Sync {
    fn layout(&self) -> &StateLayout;

    /// Most tokens of a sequence.
    fn context(&self) -> usize;

    /// Scores of a token.
    fn vocab(&self) -> usize;

    /// What a session takes, known before it is made.
    fn memory(&self, size: DecodeSize) -> DecodeMemory;

    /// Weights packed for rows, an empty cache, threads. `state` has the layout's length.
    fn start(&self, state: &[f32], size: DecodeSize) -> Box<dyn Decoding>;
}

/// Sequences in their seats, and what continues them.
pub trait Decoding: Send {
    /// Tokens that a seat's sequence has.
    fn len(&self, seat: usize) -> usize;

    /// Whether the sequence has no tokens.
    fn is_empty(&self, seat: usize) -> bool {
        self.len(seat) == 0
    }

    /// The seat's next sequence begins.
    fn clear(&mut self, seat: usize);

    /// One pass: appends each piece to its sequence, and writes the scores that are asked for, (token, vocabulary), in
    /// the pieces' order. Each seat has one piece at most. Tokens are under the vocabulary, sequences stay in the
    /// context, and a pass has at most [`DecodeSize::rows`] tokens.
    fn advance(&mut self, pieces: &[Piece<'_>], scores: &mut [f32]);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeSize {
    /// The caller's among them.
    pub threads: usize,
    /// Sequences at a time.
    pub seats: usize,
    /// Most tokens of a pass, all sequences together.
    pub rows: usize,
}

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DecodeMemory {
    pub weights: u64,
    pub cache: u64,
    /// What a pass computes in.
    pub pass: u64,
}

impl DecodeMemory {
    pub fn total(self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.pass)
    }
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Piece<'a> {
    pub seat: usize,
    pub tokens: &'a [i32],
    pub asked: Asked,
}

/// The tokens of a piece whose scores are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    None,
    Last,
    All,
}

impl Piece<'_> {
    /// How many rows of scores it gives.
    pub fn scores(&self) -> usize {
        match self.asked {
            Asked::None => 0,
            Asked::Last => self.tokens.len().min(1),
            Asked::All => self.tokens.len(),
        }
    }
}

/// Compiles a module that reads tokens. The error names what cannot be computed token by token, and its place.
pub fn compile_decode(dtype: Dtype, module: &dyn Module, data: &DataShape) -> Result<Box<dyn Decode>, String> {
    Ok(match dtype {
        Dtype::F32 => Box::new(compile::Decoder::<f32>::new(module, data)?),
        Dtype::Bf16 => Box::new(compile::Decoder::<Mixed>::new(module, data)?),
    })
}

#[cfg(test)]
mod tests;
