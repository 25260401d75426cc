//! One text that goes on: from logits to tokens, from tokens to text, until something ends it.
//!
//! Pure: the logits come from a [`Generator`](crate::Generator) or any other place. What it says depends on the prompt, the
//! model and what was asked for alone.

use crate::sample::{Draw, Likelihood, Sampling, choose, likelihood};
use crate::utterance::Utterance;
use elastic_transform::Text;
use std::collections::BTreeMap;

/// What is asked of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Asking {
    pub sampling: Sampling,
    pub penalties: Penalties,
    pub max_tokens: usize,
    pub stops: Vec<String>,
    /// So many of the most likely tokens are told beside each; None tells no likelihoods.
    pub likely: Option<usize>,
    /// Which of the texts of one request it is.
    pub choice: u32,
}

/// What is taken off the logits of tokens that the text has already, the prompt not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Penalties {
    /// Once for each that is there …
    pub presence: f64,
    /// … and for each time that it is.
    pub frequency: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// A stop, or the model's own end.
    Stop,
    /// max_tokens, or the model's context.
    Length,
}

/// One more token.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    pub token: i32,
    /// What became certain of the text.
    pub text: String,
    pub likelihood: Option<Likelihood>,
    pub finish: Option<Finish>,
}

#[derive(Clone, Debug)]
pub struct Completion {
    asking: Asking,
    utterance: Utterance,
    /// The token that ends a text.
    end: Option<i32>,
    /// Tokens that can still come.
    left: usize,
    made: u32,
    /// How often each token came; empty where no penalty asks for it.
    counts: BTreeMap<usize, u32>,
}

impl Completion {
    /// Of a prompt of so many tokens.
    pub fn new(asking: Asking, prompt: usize, context: usize, end: Option<i32>) -> Completion {
        // The token behind the last place of the context can be drawn, though nothing can follow it.
        let left = asking.max_tokens.min((context + 1).saturating_sub(prompt));
        Completion { utterance: Utterance::new(&asking.stops), asking, end, left, made: 0, counts: BTreeMap::new() }
    }

    /// Goes on within a character, of which a part was said before.
    pub fn after(mut self, part: &[u8]) -> Completion {
        self.utterance = self.utterance.after(part);
        self
    }

    /// Tokens so far.
    pub fn made(&self) -> usize {
        self.made as usize
    }

    /// Whether anything can be said at all.
    pub fn is_over(&self) -> bool {
        self.left == 0
    }

    fn penalized(&self, logits: &[f32]) -> Vec<f32> {
        let Penalties { presence, frequency } = self.asking.penalties;
        let mut logits = logits.to_vec();
        for (token, count) in &self.counts {
            let off = presence + frequency * f64::from(*count);
            logits[*token] = (f64::from(logits[*token]) - off) as f32;
        }
        logits
    }

    /// The next token from the logits behind the last one.
    pub fn next(&mut self, logits: &[f32], text: &Text) -> Said {
        let draw = Draw { choice: self.asking.choice, token: self.made };
        let token = match self.counts.is_empty() {
            true => choose(logits, &self.asking.sampling, draw),
            false => choose(&self.penalized(logits), &self.asking.sampling, draw),
        };
        if self.asking.penalties != Penalties::default() {
            *self.counts.entry(token).or_default() += 1;
        }
        // Of what the model says, before penalties and temperature.
        let likelihood = self.asking.likely.map(|top| likelihood(logits, token, top));
        let token = token as i32;
        self.made += 1;
        self.left = self.left.saturating_sub(1);
        let is_end = self.end == Some(token);
        let mut said = if is_end { String::new() } else { self.utterance.push(&text.decode(&[token])) };
        let finish = match () {
            () if is_end || self.utterance.is_stopped() => Some(Finish::Stop),
            () if self.left == 0 => Some(Finish::Length),
            () => None,
        };
        if finish.is_some() {
            said += &self.utterance.finish();
        }
        Said { token, text: said, likelihood, finish }
    }
}
