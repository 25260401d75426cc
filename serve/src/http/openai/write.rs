//! Completions in OpenAI's words: whole answers, pieces of streams, errors.

use super::read::Wrong;
use crate::http::answer::{self, Answer};
use crate::http::route::Dialect;
use elastic_bundle::{Finish, Likelihood, Utterance};
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
    /// What the tokens say so far, and its whole characters.
    said: Utterance,
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
        let bytes = text.decode(&[token]);
        self.offsets.push(self.place(&bytes));
        self.at += self.said.push(&bytes).chars().count();
    }

    /// Of the character that has the first of these bytes, which come next.
    fn place(&self, bytes: &[u8]) -> usize {
        let Some(first) = bytes.get(..1) else { return self.at };
        let mut said = self.said.clone();
        let text = said.push(first) + &said.finish();
        self.at + text.chars().count() - 1
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
    use proptest::prelude::*;

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
        assert_eq!(value["text_offset"], json!([0, 1, 1, 1, 2]));
        let mut broken = Logprobs::default();
        [128, 65, 226].iter().for_each(|token| broken.push(*token, None, &Text::Bytes));
        assert_eq!(broken.take()["text_offset"], json!([0, 1, 2]));
        assert_eq!(value["token_logprobs"], json!([null, -9999.0, -9999.0, -9999.0, -9999.0]));
        assert_eq!(value["top_logprobs"][0], Value::Null);
        assert_eq!(value["top_logprobs"][4], json!({ "A": -0.5, "bytes:\\xe2": -2.0, "C": -9999.0 }));
        assert_eq!(logprobs.take()["tokens"], json!([]));
    }

    proptest! {
        /// The text in front of a token, with a character that it goes on with left out.
        #[test]
        fn a_token_stands_where_its_first_byte_is_seen(
            bytes in prop::collection::vec(prop::sample::select(&b"aab\x80\x82\xac\xc3\xa9\xe2\xf0\x90\xef\xbf\xbd\xff"[..]), 1..20),
        ) {
            let mut logprobs = Logprobs::default();
            bytes.iter().for_each(|byte| logprobs.push(i32::from(*byte), None, &Text::Bytes));
            let expected: Vec<usize> =
                (1..=bytes.len()).map(|end| String::from_utf8_lossy(&bytes[..end]).chars().count() - 1).collect();
            prop_assert_eq!(&logprobs.take()["text_offset"], &json!(expected));
        }
    }
}
