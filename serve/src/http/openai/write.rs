//! Completions in OpenAI's words: whole answers, pieces of streams, errors.

use super::read::Wrong;
use crate::http::answer::{self, Answer};
use crate::http::route::Dialect;
use elastic_bundle::{Finish, Likelihood};
use elastic_transform::Text;
use serde_json::{Map, Value, json};

/// What all pieces of one answer have in common.
pub struct Head {
    pub id: String,
    pub created: u64,
    /// As the request names it.
    pub model: String,
    /// The weights, so that a seed means something.
    pub fingerprint: String,
}

impl Head {
    pub fn answer(&self, choices: Vec<Value>, usage: Option<Value>) -> Value {
        json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
            "usage": usage,
        })
    }
}

pub fn usage(prompt: usize, completion: usize) -> Value {
    json!({ "prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion })
}

pub fn choice(index: usize, text: &str, logprobs: Option<Value>, finish: Option<Finish>) -> Value {
    let finish = finish.map(|finish| match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    });
    json!({ "index": index, "text": text, "logprobs": logprobs, "finish_reason": finish })
}

/// One event of a stream.
pub fn event(value: &Value) -> Vec<u8> {
    let mut out = b"data: ".to_vec();
    serde_json::to_writer(&mut out, value).expect("a value is written into memory");
    out.extend_from_slice(b"\n\n");
    out
}

pub const DONE: &[u8] = b"data: [DONE]\n\n";

pub fn wrong(wrong: &Wrong) -> Answer {
    let mut answer = answer::refusal(&wrong.refusal, Dialect::OpenAi);
    if wrong.param.is_some() || wrong.code.is_some() {
        let body = answer::value(&error(wrong)).into_body();
        *answer.body_mut() = body;
    }
    answer
}

pub fn error(wrong: &Wrong) -> Value {
    answer::open_ai_error(&wrong.refusal, wrong.param.as_deref(), wrong.code)
}

/// Likelihoods of tokens, one beside the other as OpenAI has them.
#[derive(Default)]
pub struct Logprobs {
    tokens: Vec<String>,
    own: Vec<Option<f64>>,
    top: Vec<Option<Map<String, Value>>>,
    offsets: Vec<usize>,
    /// Characters before the next token.
    at: usize,
}

impl Logprobs {
    /// The first token of a prompt has no likelihood.
    pub fn push(&mut self, token: i32, likelihood: Option<&Likelihood>, text: &Text) {
        let word = word(token, text);
        let top = likelihood.map(|likelihood| {
            let mut top: Map<String, Value> =
                likelihood.top.iter().map(|(token, log)| (self::word(*token, text), finite(*log).into())).collect();
            top.insert(word.clone(), finite(likelihood.own).into());
            top
        });
        self.tokens.push(word);
        self.own.push(likelihood.map(|likelihood| finite(likelihood.own)));
        self.top.push(top);
        self.offsets.push(self.at);
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        self.at += text.decode(&[token]).iter().filter(begins).count();
    }

    /// What has been pushed since the last time.
    pub fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.own),
            "top_logprobs": std::mem::take(&mut self.top),
            "text_offset": std::mem::take(&mut self.offsets),
        })
    }
}

/// JSON has no infinity; -9999 is OpenAI's.
fn finite(log: f64) -> f64 {
    log.max(-9999.0)
}

/// A token as text; one that is a part of a character is `bytes:\xe2\x82`.
fn word(token: i32, text: &Text) -> String {
    String::from_utf8(text.decode(&[token])).unwrap_or_else(|error| {
        let bytes: String = error.as_bytes().iter().map(|byte| format!("\\x{byte:02x}")).collect();
        format!("bytes:{bytes}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_that_are_no_characters_have_names_and_places() {
        let mut logprobs = Logprobs::default();
        let likelihood = Likelihood { own: f64::NEG_INFINITY, top: vec![(65, -0.5), (0xe2, -2.0)] };
        logprobs.push(66, None, &Text::Bytes);
        for token in [0xe2, 0x82, 0xac, 67] {
            logprobs.push(token, Some(&likelihood), &Text::Bytes);
        }
        let value = logprobs.take();
        assert_eq!(value["tokens"], json!(["B", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "C"]));
        assert_eq!(value["text_offset"], json!([0, 1, 2, 2, 2]));
        assert_eq!(value["token_logprobs"], json!([null, -9999.0, -9999.0, -9999.0, -9999.0]));
        assert_eq!(value["top_logprobs"][0], Value::Null);
        assert_eq!(value["top_logprobs"][4], json!({ "A": -0.5, "bytes:\\xe2": -2.0, "C": -9999.0 }));
        assert_eq!(logprobs.take()["tokens"], json!([]));
    }
}
