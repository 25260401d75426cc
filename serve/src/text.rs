//! Texts that go on: what a request asks of a model that reads text, and what it hears.
//!
//! A request has one text or more: each of its prompts, so many times. Each text waits at the [`desk`] until a seat is
//! free, joins those that are under way between two steps, and leaves when it is finished or late, or when nobody
//! listens any more. [`scribe`] is the thread that does it. What a text says depends on its prompt, the model and what
//! was asked for alone, not on who else is served.

pub mod desk;
pub mod scribe;
pub mod stats;

use crate::limits::{QUEUE_BYTES_MAX, TIMEOUT_MAX};
use elastic_bundle::{Asking, Found, GeneratorSize, Likelihood, Said, Seat, Wanted};
use elastic_transform::Text;
use std::sync::Arc;
use std::time::Duration;

/// What continues texts with one model, and makes tokens of them.
pub struct Writer {
    pub generator: Box<dyn Continue>,
    pub text: Arc<Text>,
}

/// Several texts at once, token by token, as [`elastic_bundle::Generator`] does it. Tokens were checked before.
pub trait Continue: Send {
    fn free(&self) -> usize;
    fn add(&mut self, tokens: &[i32], wanted: Wanted) -> Seat;
    /// False: the context is full.
    fn go_on(&mut self, seat: Seat, token: i32) -> bool;
    fn remove(&mut self, seat: Seat);
    fn step(&mut self) -> Vec<Found>;
    fn logits(&self, found: &Found) -> &[f32];
}

/// How texts are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Texts of one model that go on at the same time; 0 serves none.
    pub sequences: usize,
    /// Tokens of prompts that are read in one step: more are read sooner, and hold those up who are under way.
    pub prompt_tokens: usize,
    /// Bytes for a model's packed weights, its cache and a step.
    pub memory_max: u64,
    /// Texts that wait at most …
    pub waiting_max: usize,
    /// … and the bytes of their prompts.
    pub bytes_max: usize,
    /// Of requests that ask for no time of their own.
    pub timeout: Duration,
    /// A listener that takes nothing for so long is gone …
    pub silence: Duration,
    /// … and for so long where texts of others wait for a seat.
    pub silence_needed: Duration,
}

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            sequences: 8,
            prompt_tokens: 128,
            memory_max: 4 << 30,
            waiting_max: 1024,
            bytes_max: QUEUE_BYTES_MAX,
            timeout: TIMEOUT_MAX,
            silence: Duration::from_secs(20),
            silence_needed: Duration::from_secs(1),
        }
    }
}

impl Policy {
    pub fn size(self, threads: usize) -> GeneratorSize {
        let Policy { sequences, prompt_tokens, memory_max, .. } = self;
        GeneratorSize { threads, sequences, prompt_tokens, memory_max }
    }
}

/// A request: each prompt, `n` times. Prompts have 1 to `context` tokens of the vocabulary.
pub struct Ask {
    pub prompts: Vec<Arc<[i32]>>,
    /// Of each prompt that ends within a character, and is told before its texts: the part, which they go on with.
    pub begun: Vec<Vec<u8>>,
    pub n: usize,
    /// Of each text; its choice is counted here.
    pub asking: Asking,
    /// Whether likelihoods of the prompt's tokens are told as well.
    pub of_prompt: bool,
    pub deadline_us: u64,
}

/// What is heard of the texts; `text` is the prompt's place times `n`, plus the choice.
#[derive(Clone, Debug, PartialEq)]
pub enum Word {
    /// How likely each token of the prompt was, but the first.
    Prompt {
        text: usize,
        likelihoods: Vec<Likelihood>,
    },
    Said {
        text: usize,
        said: Said,
    },
    /// Nothing was to be said.
    Nothing {
        text: usize,
    },
}

impl Word {
    fn is_last(&self) -> bool {
        match self {
            Word::Prompt { .. } => false,
            Word::Said { said, .. } => said.finish.is_some(),
            Word::Nothing { .. } => true,
        }
    }
}
