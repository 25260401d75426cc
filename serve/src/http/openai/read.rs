//! A request for completions as OpenAI's clients send it. What would change the answer and is not served is refused; so
//! is what nobody knows.

use crate::http::wishes::Wishes;
use crate::json::{Kind, Read, Scanner};
use crate::limits::{LIKELY_MAX, NAME_BYTES_MAX, TEXTS_MAX};
use crate::refusal::{Refusal, quote};

/// What is asked, before it is compared with a model.
#[derive(Debug, Default, PartialEq)]
pub struct Request {
    pub model: String,
    pub prompts: Vec<Prompt>,
    pub n: usize,
    pub wishes: Wishes,
    /// So many likely tokens are told beside each.
    pub likely: Option<usize>,
    pub echo: bool,
    pub stream: bool,
    pub include_usage: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    Text(String),
    Tokens(Vec<i32>),
}

impl Prompt {
    pub fn bytes(&self) -> usize {
        match self {
            Prompt::Text(text) => text.len(),
            Prompt::Tokens(tokens) => size_of_val(&tokens[..]),
        }
    }
}

/// A refusal in OpenAI's words: which parameter, and a code that programs look for.
#[derive(Debug, PartialEq)]
pub struct Wrong {
    pub refusal: Refusal,
    pub param: Option<String>,
    pub code: Option<&'static str>,
}

impl Wrong {
    pub fn at(param: &str, refusal: Refusal) -> Wrong {
        Wrong { refusal, param: Some(param.into()), code: None }
    }
}

impl From<Refusal> for Wrong {
    fn from(refusal: Refusal) -> Wrong {
        Wrong { refusal, param: None, code: None }
    }
}

pub fn read(json: &[u8]) -> Result<Request, Wrong> {
    let mut loose = Loose::default();
    let mut at = None;
    let mut scanner = Scanner::new(json);
    let found = scanner.object("the request", |s, key| {
        at = Some(quote(key));
        loose.key(s, key)?;
        at = None;
        Ok(())
    });
    found.and_then(|()| scanner.end()).map_err(|refusal| Wrong { refusal, param: at, code: None })?;
    loose.request()
}

#[derive(Default)]
struct Loose {
    model: Option<String>,
    prompts: Option<Vec<Prompt>>,
    n: Option<usize>,
    best_of: Option<usize>,
    wishes: Wishes,
    likely: Option<usize>,
    echo: bool,
    stream: bool,
    include_usage: Option<bool>,
}

impl Loose {
    fn key(&mut self, s: &mut Scanner<'_>, key: &str) -> Read<()> {
        match key {
            _ if s.kind()? == Kind::Null => s.null()?,
            "model" => {
                let name = s.text_value("'model'")?;
                if name.is_empty() || name.len() > NAME_BYTES_MAX {
                    return Err(Refusal::Invalid(format!("'model' must be of 1 to {NAME_BYTES_MAX} bytes")));
                }
                self.model = Some(name.into_owned());
            }
            "prompt" => self.prompts = Some(prompts(s)?),
            "n" => self.n = Some(counted(s, "n")?),
            "best_of" => self.best_of = Some(counted(s, "best_of")?),
            "logprobs" => {
                let likely = s.usize("'logprobs'")?;
                if likely > LIKELY_MAX {
                    return Err(Refusal::Invalid(format!("'logprobs' must be 0 to {LIKELY_MAX}, not {likely}")));
                }
                self.likely = Some(likely);
            }
            "echo" => self.echo = s.bool_value("'echo'")?,
            "stream" => self.stream = s.bool_value("'stream'")?,
            "stream_options" => self.stream_options(s)?,
            // Who asks changes no answer.
            "user" => drop(s.text_value("'user'")?),
            "suffix" => {
                if !s.text_value("'suffix'")?.is_empty() {
                    return Err(Refusal::invalid("'suffix' is not served: texts are continued at their end only"));
                }
            }
            "logit_bias" => s.object("'logit_bias'", |_, _| Err(Refusal::invalid("'logit_bias' is not served")))?,
            key if self.wishes.key(s, key)? => {}
            key => return Err(unknown(key)),
        }
        Ok(())
    }

    fn stream_options(&mut self, s: &mut Scanner<'_>) -> Read<()> {
        let include = self.include_usage.get_or_insert(false);
        s.object("'stream_options'", |s, key| match key {
            _ if s.kind()? == Kind::Null => s.null(),
            "include_usage" => s.bool_value("'include_usage'").map(|value| *include = value),
            // Padding against who measures the pieces of an encrypted stream: it has none here, whatever is asked.
            "include_obfuscation" => s.bool_value("'include_obfuscation'").map(drop),
            key => Err(unknown(key)),
        })
    }

    fn request(self) -> Result<Request, Wrong> {
        let missing = |param: &str| Wrong::at(param, Refusal::Invalid(format!("'{param}' is missing")));
        let wrong = |param: &str, why: String| Wrong::at(param, Refusal::Invalid(why));
        let model = self.model.ok_or_else(|| missing("model"))?;
        let prompts = self.prompts.ok_or_else(|| missing("prompt"))?;
        let n = self.n.unwrap_or(1);
        if let Some(best_of) = self.best_of.filter(|best_of| *best_of != n) {
            let why = format!("'best_of' is not served: it must be left out or be 'n', {n}, not {best_of}");
            return Err(wrong("best_of", why));
        }
        if prompts.len() * n > TEXTS_MAX {
            let why = format!("{} prompts, each {n} times, are more than {TEXTS_MAX} texts", prompts.len());
            return Err(wrong("n", why));
        }
        if self.include_usage.is_some() && !self.stream {
            return Err(wrong("stream_options", "'stream_options' is for streams only: say \"stream\": true".into()));
        }
        let Loose { wishes, likely, echo, stream, include_usage, .. } = self;
        let include_usage = include_usage.unwrap_or(false);
        Ok(Request { model, prompts, n, wishes, likely, echo, stream, include_usage })
    }
}

pub fn unknown(key: &str) -> Refusal {
    Refusal::Invalid(format!("the parameter '{}' is not known here", quote(key)))
}

fn counted(s: &mut Scanner<'_>, key: &str) -> Read<usize> {
    let count = s.i64(format_args!("'{key}'"))?;
    match usize::try_from(count).ok().filter(|count| (1..=TEXTS_MAX).contains(count)) {
        Some(count) => Ok(count),
        None => Err(Refusal::Invalid(format!("'{key}' must be 1 to {TEXTS_MAX}, not {count}"))),
    }
}

/// A text, tokens, or a list of either.
fn prompts(s: &mut Scanner<'_>) -> Read<Vec<Prompt>> {
    if s.kind()? != Kind::List {
        return Ok(vec![Prompt::Text(s.text_value("'prompt', where it is no list,")?.into_owned())]);
    }
    let mut prompts = Vec::new();
    let mut tokens = Vec::new();
    s.list("'prompt'", |s, at| {
        if prompts.len() == TEXTS_MAX {
            return Err(Refusal::Invalid(format!("'prompt' has more than {TEXTS_MAX} texts")));
        }
        let mixed = || Refusal::invalid("'prompt' has tokens and texts side by side");
        match s.kind()? {
            Kind::Number if prompts.is_empty() => tokens.push(token(s)?),
            Kind::Text if tokens.is_empty() => prompts.push(Prompt::Text(s.text_value("a prompt")?.into_owned())),
            Kind::List if tokens.is_empty() => {
                let mut tokens = Vec::new();
                s.list("a prompt", |s, _| token(s).map(|token| tokens.push(token)))?;
                prompts.push(Prompt::Tokens(tokens));
            }
            Kind::Number | Kind::Text | Kind::List => return Err(mixed()),
            found => {
                let found = found.word();
                return Err(Refusal::Invalid(format!("'prompt', place {at}, must be a text or tokens, not {found}")));
            }
        }
        Ok(())
    })?;
    if !tokens.is_empty() {
        prompts.push(Prompt::Tokens(tokens));
    }
    match prompts.is_empty() {
        true => Err(Refusal::invalid("'prompt' is an empty list")),
        false => Ok(prompts),
    }
}

fn token(s: &mut Scanner<'_>) -> Read<i32> {
    let number = s.i64("a token")?;
    i32::try_from(number).map_err(|_| Refusal::Invalid(format!("token {number} is none that a model can have")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn prompts_of(json: &str) -> Result<Vec<Prompt>, String> {
        let request = read(format!("{{\"model\": \"m\", \"prompt\": {json}}}").as_bytes());
        request.map(|request| request.prompts).map_err(|wrong| {
            assert_eq!(wrong.param.as_deref(), Some("prompt"));
            wrong.refusal.to_string()
        })
    }

    #[test]
    fn a_prompt_is_a_text_or_tokens_or_several() {
        let (text, tokens) = (|text: &str| Prompt::Text(text.into()), |t: &[i32]| Prompt::Tokens(t.to_vec()));
        assert_eq!(prompts_of("\"a\""), Ok(vec![text("a")]));
        assert_eq!(prompts_of("[\"a\", \"\"]"), Ok(vec![text("a"), text("")]));
        assert_eq!(prompts_of("[1, 2]"), Ok(vec![tokens(&[1, 2])]));
        assert_eq!(prompts_of("[[1], [2, 3]]"), Ok(vec![tokens(&[1]), tokens(&[2, 3])]));
    }

    #[test]
    fn what_is_no_prompt_is_told() {
        let why = |json| prompts_of(json).unwrap_err();
        assert_eq!(why("null"), "'prompt' is missing");
        assert_eq!(why("[]"), "'prompt' is an empty list");
        assert_eq!(why("[1, \"a\"]"), "'prompt' has tokens and texts side by side");
        assert_eq!(prompts_of("[\"a\", [1]]").map(|prompts| prompts.len()), Ok(2), "of both kinds, each by itself");
        assert_eq!(why("[{}]"), "'prompt', place 0, must be a text or tokens, not an object");
        assert_eq!(why("[1, 4294967296]"), "token 4294967296 is none that a model can have");
        assert_eq!(why("[1.5]"), "a token must be a whole number, not 1.5");
        assert_eq!(why("7"), "'prompt', where it is no list, must be a string, not a number");
    }

    proptest! {
        /// Pieces of requests, put together at random.
        #[test]
        fn any_text_is_read_or_refused(
            pieces in prop::collection::vec(prop::sample::select(vec![
                "{", "}", "[", "]", ",", ":", "\"prompt\"", "\"model\"", "\"m\"", "\"n\"", "1", "-1", "null", "true",
                "\"stop\"", "\"stream\"", "\"temperature\"", "0.5", "\"stream_options\"", "\"include_usage\"",
            ]), 0..24),
        ) {
            let _ = read(pieces.concat().as_bytes());
        }
    }
}
