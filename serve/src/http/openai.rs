//! OpenAI's completions: texts that are continued, whole or as a stream of events.
//!
//! `GET /v1/models` is in `v1`, beside the others who ask it. Chats are not served: bundles have no form for them.

mod read;
mod write;

use super::answer::{self, Answer};
use super::body::{self, Whole};
use super::texts;
use super::{timeout, wishes};
use crate::clock::{now_us, unix_ms};
use crate::limits::BODY_BYTES_SMALL;
use crate::refusal::Refusal;
use crate::serving::{Counted, Loaded, Which, deadline_us};
use crate::state::Shared;
use crate::text::scribe::Hearing;
use crate::text::{Ask, Word};
use bytes::Bytes;
use elastic_bundle::{AddError, Finish, Utterance};
use elastic_transform::Text;
use hyper::HeaderMap;
use hyper::body::Incoming;
use read::{Prompt, Request, Wrong};
use serde_json::Value;
use std::sync::Arc;
use write::{Head, Logprobs};

pub async fn completions(shared: &Arc<Shared>, headers: &HeaderMap, body: Incoming) -> Answer {
    answered(shared, headers, body).await.unwrap_or_else(|wrong| write::wrong(&wrong))
}

async fn answered(shared: &Arc<Shared>, headers: &HeaderMap, body: Incoming) -> Result<Answer, Wrong> {
    let start_us = now_us();
    let timeout = timeout(headers)?;
    let body = body::read(body, headers, &shared.bodies).await?;
    let request = read_request(body).await?;
    let loaded = find(shared, &request.model)?;
    let counted = Counted::new(&loaded, start_us);
    let begun = async {
        let scribe = texts::scribe(&loaded).map_err(|refusal| Wrong::at("model", refusal))?;
        let (stream, include_usage) = (request.stream, request.include_usage);
        let deadline_us = deadline_us(start_us, timeout, scribe.policy().timeout);
        let (telling, ask) = told(&loaded, request, deadline_us).await?;
        Ok((stream, include_usage, telling, scribe.ask(ask)?))
    };
    let (stream, include_usage, telling, mut hearing) = match begun.await {
        Ok(begun) => begun,
        Err(wrong) => return Err(refused(counted, wrong)),
    };
    if !stream {
        return whole(telling, hearing, counted).await;
    }
    // The head is not sent before there is something to say: a refusal until then has its own status.
    match hearing.next().await {
        Some(Err(refusal)) => Err(refused(counted, refusal.into())),
        first => {
            let live = Live { first, hearing, telling, include_usage, counted };
            Ok(answer::live("text/event-stream; charset=utf-8", live.pieces()))
        }
    }
}

fn refused(counted: Counted, wrong: Wrong) -> Wrong {
    Wrong { refusal: counted.refused(wrong.refusal), ..wrong }
}

/// A large request is read on a thread of its own. Its body is not needed any more then.
async fn read_request(body: Whole) -> Result<Request, Wrong> {
    if body.bytes.len() <= BODY_BYTES_SMALL {
        return read::read(&body.bytes);
    }
    let read = tokio::task::spawn_blocking(move || read::read(&body.bytes));
    read.await.map_err(|error| Refusal::Internal(format!("read a request: {error}")))?
}

/// NAME, NAME:VERSION or NAME:LABEL.
fn find(shared: &Shared, named: &str) -> Result<Arc<Loaded>, Wrong> {
    let table = shared.serving.table();
    let (name, which) = match named.rsplit_once(':') {
        Some((name, which)) if !table.models.contains_key(named) => {
            (name, which.parse().map_or_else(|_| Which::Label(which.into()), Which::Version))
        }
        _ => (named, Which::Default),
    };
    table.find(name, &which).cloned().map_err(|refusal| {
        let code = matches!(refusal, Refusal::NotFound(_)).then_some("model_not_found");
        Wrong { code, ..Wrong::at("model", refusal) }
    })
}

/// What is to be asked of the scribe, and how its words become an answer.
async fn told(loaded: &Arc<Loaded>, request: Request, deadline_us: u64) -> Result<(Telling, Ask), Wrong> {
    let Request { model, prompts, n, wishes, likely, echo, .. } = request;
    let (prompts, echoed) = tokens(loaded, prompts, echo).await?;
    let asking = wishes.asking(likely);
    let content = &loaded.face().content;
    let head = Head {
        id: format!("cmpl-{:016x}{:08x}", wishes::anything(), wishes::anything() as u32),
        created: unix_ms() / 1000,
        model,
        fingerprint: format!("fp_{}", &content[..content.len().min(16)]),
    };
    let spoken = |at: usize| Spoken {
        text: echoed.get(at / n).map(|echoed| echoed.text.clone()).unwrap_or_default(),
        begun: echoed.get(at / n).map(|echoed| echoed.begun.clone()).unwrap_or_default(),
        logprobs: likely.map(|_| Logprobs::default()),
        finish: None,
    };
    let telling = Telling {
        head,
        loaded: loaded.clone(),
        texts: (0..prompts.len() * n).map(spoken).collect(),
        prompt_tokens: prompts.iter().map(|prompt| prompt.len()).sum(),
        prompts: prompts.clone(),
        n,
        made: 0,
    };
    let begun = echoed.into_iter().map(|echoed| echoed.begun).collect();
    Ok((telling, Ask { prompts, begun, n, asking, of_prompt: echo && likely.is_some(), deadline_us }))
}

type Tokens = Vec<Arc<[i32]>>;

/// A prompt as it is repeated: whole characters, and the part of one that its tokens may end with.
struct Echoed {
    text: String,
    begun: Vec<u8>,
}

impl Echoed {
    fn of(tokens: &[i32], text: &Text) -> Echoed {
        let mut said = Utterance::default();
        let text = said.push(&text.decode(tokens));
        Echoed { text, begun: said.held().to_vec() }
    }
}

/// The prompts' tokens and, where they are to be repeated, their texts.
async fn tokens(loaded: &Arc<Loaded>, prompts: Vec<Prompt>, echo: bool) -> Result<(Tokens, Vec<Echoed>), Wrong> {
    let size = prompts.iter().map(Prompt::bytes).sum();
    let loaded = loaded.clone();
    let read = texts::apart(size, move || {
        let scribe = texts::scribe(&loaded)?;
        let (mut tokens, mut echoed) = (Vec::with_capacity(prompts.len()), Vec::new());
        for (at, prompt) in prompts.into_iter().enumerate() {
            let checked = match &prompt {
                Prompt::Text(text) => scribe.check_bytes(text.len()),
                Prompt::Tokens(tokens) => scribe.check(tokens),
            };
            if let Err(error) = checked {
                return Ok(Err((at, error)));
            }
            match prompt {
                Prompt::Text(text) => {
                    let found = texts::encode(scribe, &text)?;
                    if let Err(error) = scribe.check(&found) {
                        return Ok(Err((at, error)));
                    }
                    tokens.push(found.into());
                    echoed.extend(echo.then_some(Echoed { text, begun: Vec::new() }));
                }
                Prompt::Tokens(found) => {
                    echoed.extend(echo.then(|| Echoed::of(&found, scribe.text())));
                    tokens.push(found.into());
                }
            }
        }
        Ok(Ok((tokens, echoed)))
    });
    let read = read.await.map_err(|refusal| Wrong::at("prompt", refusal))?;
    read.map_err(|(at, error)| {
        let is_long = matches!(error, AddError::TooLong { .. } | AddError::TooManyBytes { .. });
        let code = is_long.then_some("context_length_exceeded");
        Wrong { code, ..Wrong::at("prompt", Refusal::Invalid(format!("prompt {at}: {error}"))) }
    })
}

/// The texts of one answer as they grow. It keeps the model's version until it is told.
struct Telling {
    head: Head,
    loaded: Arc<Loaded>,
    texts: Vec<Spoken>,
    prompts: Tokens,
    n: usize,
    prompt_tokens: usize,
    /// Tokens that were made.
    made: usize,
}

/// What was said of one text and not told yet.
struct Spoken {
    text: String,
    /// The part of a character that an echo ends with.
    begun: Vec<u8>,
    logprobs: Option<Logprobs>,
    finish: Option<Finish>,
}

impl Telling {
    /// Which text it is of.
    fn hear(&mut self, word: Word) -> usize {
        let text = self.loaded.text().expect("it said the word").text();
        match word {
            Word::Prompt { text: at, likelihoods } => {
                let logprobs = self.texts[at].logprobs.get_or_insert_default();
                let likelihoods = std::iter::once(None).chain(likelihoods.iter().map(Some));
                for (token, likelihood) in self.prompts[at / self.n].iter().zip(likelihoods) {
                    logprobs.push(*token, likelihood, text);
                }
                at
            }
            Word::Said { text: at, said } => {
                self.made += 1;
                let spoken = &mut self.texts[at];
                spoken.text += &said.text;
                spoken.finish = said.finish;
                if let (Some(logprobs), Some(likelihood)) = (&mut spoken.logprobs, &said.likelihood) {
                    logprobs.push(said.token, Some(likelihood), text);
                }
                at
            }
            Word::Nothing { text: at } => {
                let spoken = &mut self.texts[at];
                spoken.text += &String::from_utf8_lossy(&std::mem::take(&mut spoken.begun));
                spoken.finish = Some(Finish::Length);
                at
            }
        }
    }

    /// All that was not told yet.
    fn choice(&mut self, at: usize) -> Value {
        let spoken = &mut self.texts[at];
        let logprobs = spoken.logprobs.as_mut().map(Logprobs::take);
        write::choice(at, &std::mem::take(&mut spoken.text), logprobs, spoken.finish)
    }

    fn usage(&self) -> Value {
        write::usage(self.prompt_tokens, self.made)
    }
}

async fn whole(mut telling: Telling, mut hearing: Hearing, counted: Counted) -> Result<Answer, Wrong> {
    while let Some(heard) = hearing.next().await {
        match heard {
            Ok(word) => drop(telling.hear(word)),
            Err(refusal) => return Err(refused(counted, refusal.into())),
        }
    }
    let choices = (0..telling.texts.len()).map(|at| telling.choice(at)).collect();
    let answer = answer::value(&telling.head.answer(choices, Some(telling.usage())));
    counted.answered(&hearing.times());
    Ok(answer)
}

/// A stream that is being told. Dropped with its connection, it is counted as cancelled, and its texts end.
struct Live {
    first: Option<Result<Word, Refusal>>,
    hearing: Hearing,
    telling: Telling,
    include_usage: bool,
    counted: Counted,
}

impl Live {
    fn pieces(self) -> body::Live {
        Box::pin(futures_util::stream::unfold(Some(self), |live| async {
            let (bytes, live) = live?.piece().await;
            Some((bytes, live))
        }))
    }

    /// The next events; no stream is behind the last ones.
    async fn piece(mut self) -> (Bytes, Option<Live>) {
        loop {
            let heard = match self.first.take() {
                None => self.hearing.next().await,
                first => first,
            };
            match heard {
                Some(Ok(word)) => {
                    let at = self.telling.hear(word);
                    let Spoken { text, logprobs, finish, .. } = &self.telling.texts[at];
                    // What may begin a stop or a character is held back; nothing is told of it.
                    if text.is_empty() && logprobs.is_none() && finish.is_none() {
                        continue;
                    }
                    let choice = self.telling.choice(at);
                    let event = write::event(&self.telling.head.answer(vec![choice], None));
                    return (event.into(), Some(self));
                }
                Some(Err(refusal)) => {
                    let refusal = self.counted.refused(refusal);
                    return (write::event(&write::error(&refusal.into())).into(), None);
                }
                None => {
                    let usage = self.telling.usage();
                    let mut end = match self.include_usage {
                        true => write::event(&self.telling.head.answer(Vec::new(), Some(usage))),
                        false => Vec::new(),
                    };
                    end.extend_from_slice(write::DONE);
                    self.counted.answered(&self.hearing.times());
                    return (end.into(), None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::repository::Orders;
    use crate::serving::{Entry, Hands, Table};
    use crate::testing::{Held, echo};

    #[test]
    fn a_model_is_named_alone_or_with_a_version_or_a_label() {
        let shared = Shared::new(Config::new("models".into()), Orders::new().0);
        let load = |name: &str, version| {
            let hands = Hands { instances: 1, threads: 1, behind: false };
            let model = echo(2, &Held::new());
            Arc::new(Loaded::start(name, version, model, Default::default(), hands, None).unwrap())
        };
        let entry = |name: &str, default| {
            let versions = [3, 12].map(|version| (version, load(name, version))).into();
            Entry { versions, labels: [("stable".to_string(), 3)].into(), default: Some(default), unready: None }
        };
        let models = [("m", 12), ("a:b", 12), ("back", 3)];
        let models = models.map(|(name, default)| (name.to_string(), entry(name, default))).into();
        shared.serving.replace(Table { models });
        let found = |name: &str| find(&shared, name).map(|loaded| (loaded.name.to_string(), loaded.version));
        assert_eq!(found("m").unwrap(), ("m".into(), 12));
        assert_eq!(found("back").unwrap(), ("back".into(), 3));
        assert_eq!(found("back:12").unwrap(), ("back".into(), 12));
        assert_eq!(found("m:3").unwrap(), ("m".into(), 3));
        assert_eq!(found("m:stable").unwrap(), ("m".into(), 3));
        assert_eq!(found("a:b").unwrap(), ("a:b".into(), 12));
        assert_eq!(found("a:b:3").unwrap(), ("a:b".into(), 3));
        for unknown in ["x", "m:4", "m:canary", "a", "m:"] {
            let wrong = found(unknown).unwrap_err();
            assert_eq!((wrong.refusal.status(), wrong.code), (404, Some("model_not_found")), "{unknown}");
        }
    }
}
