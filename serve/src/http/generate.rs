//! Triton's extension of the open inference protocol for texts: `generate` answers once, `generate_stream` in events.

use super::answer::{self, Answer};
use super::body::{self, Whole};
use super::texts;
use super::wishes::Wishes;
use super::{Named, timeout};
use crate::clock::now_us;
use crate::json::{Kind, Read, Scanner};
use crate::limits::NAME_BYTES_MAX;
use crate::refusal::{Refusal, quote};
use crate::serving::{Counted, Loaded, deadline_us};
use crate::state::Shared;
use crate::text::scribe::Hearing;
use crate::text::{Ask, Word};
use bytes::Bytes;
use elastic_bundle::AddError;
use hyper::HeaderMap;
use hyper::body::Incoming;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::sync::Arc;

pub async fn whole(
    shared: &Arc<Shared>,
    named: Named<'_>,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Refusal> {
    let mut telling = begin(shared, named, headers, body, Form::Whole).await?;
    let mut text = String::new();
    loop {
        match telling.next().await {
            None => break,
            Some(Ok(piece)) => text += &piece,
            Some(Err(refusal)) => return Err(telling.counted.refused(refusal)),
        }
    }
    let answer = answer::value(&telling.answer(&text));
    telling.counted.answered(&telling.hearing.times());
    Ok(answer)
}

pub async fn stream(
    shared: &Arc<Shared>,
    named: Named<'_>,
    headers: &HeaderMap,
    body: Incoming,
) -> Result<Answer, Refusal> {
    let mut telling = begin(shared, named, headers, body, Form::Stream).await?;
    // Before anything is said a refusal has its own status.
    match telling.next().await {
        Some(Err(refusal)) => Err(telling.counted.refused(refusal)),
        first => {
            telling.first = first.transpose()?;
            let pieces = futures_util::stream::unfold(Some(telling), |telling| async { telling?.piece().await });
            Ok(answer::live("text/event-stream; charset=utf-8", Box::pin(pieces)))
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Whole,
    Stream,
}

async fn begin(
    shared: &Arc<Shared>,
    (name, which): Named<'_>,
    headers: &HeaderMap,
    body: Incoming,
    form: Form,
) -> Result<Telling, Refusal> {
    let start_us = now_us();
    let loaded = shared.find(name, which)?;
    let counted = Counted::new(&loaded, start_us);
    let begun = async {
        let scribe = texts::scribe(&loaded)?;
        let timeout = timeout(headers)?;
        let body = body::read(body, headers, &shared.bodies).await?;
        let (id, prompt, wishes) = read_ask(&loaded, body, form).await?;
        let deadline_us = deadline_us(start_us, timeout, scribe.policy().timeout);
        let ask = Ask {
            prompts: vec![prompt],
            begun: Vec::new(),
            n: 1,
            asking: wishes.asking(None),
            of_prompt: false,
            deadline_us,
        };
        Ok((id, scribe.ask(ask)?))
    };
    match begun.await {
        Ok((id, hearing)) => Ok(Telling { id, loaded, hearing, counted, first: None, is_told: false }),
        Err(refusal) => Err(counted.refused(refusal)),
    }
}

type Asked = (Option<String>, Arc<[i32]>, Wishes);

async fn read_ask(loaded: &Arc<Loaded>, body: Whole, form: Form) -> Result<Asked, Refusal> {
    let loaded = loaded.clone();
    texts::apart(body.bytes.len(), move || {
        let (id, text, wishes) = read(&body.bytes, form)?;
        let scribe = texts::scribe(&loaded)?;
        let wrong = |error: AddError| Refusal::Invalid(format!("'text_input': {error}"));
        scribe.check_bytes(text.len()).map_err(wrong)?;
        let tokens = texts::encode(scribe, &text)?;
        scribe.check(&tokens).map_err(wrong)?;
        Ok((id, tokens.into(), wishes))
    })
    .await
}

/// Parameters stand in their own object or, as Triton's ensembles have them, beside it.
fn read(json: &[u8], form: Form) -> Read<(Option<String>, String, Wishes)> {
    let (mut id, mut text, mut wishes) = (None, None, Wishes::default());
    let mut known = HashSet::new();
    let mut parameter = |s: &mut Scanner<'_>, key: &str| match key {
        _ if s.kind()? == Kind::Null => s.null(),
        // A key that stands twice in one object is refused where it is read.
        key if !known.insert(key.to_string()) => {
            Err(Refusal::Invalid(format!("the parameter '{}' stands both in 'parameters' and beside it", quote(key))))
        }
        "stream" => match (s.bool_value("'stream'")?, form) {
            (true, Form::Whole) => Err(Refusal::invalid("'stream' is true: ask generate_stream, beside generate")),
            _ => Ok(()),
        },
        key => match wishes.key(s, key)? {
            true => Ok(()),
            false => Err(Refusal::Invalid(format!("the parameter '{}' is not known here", quote(key)))),
        },
    };
    let mut scanner = Scanner::new(json);
    scanner.object("the request", |s, key| match key {
        _ if s.kind()? == Kind::Null => s.null(),
        "id" => {
            let found = s.text_value("'id'")?;
            if found.len() > NAME_BYTES_MAX {
                return Err(Refusal::Invalid(format!("'id' is longer than {NAME_BYTES_MAX} bytes")));
            }
            id = Some(found.into_owned());
            Ok(())
        }
        "text_input" => s.text_value("'text_input'").map(|found| text = Some(found.into_owned())),
        "parameters" => s.object("'parameters'", &mut parameter),
        key => parameter(s, key),
    })?;
    scanner.end()?;
    Ok((id, text.ok_or_else(|| Refusal::invalid("'text_input' is missing"))?, wishes))
}

/// One answer that is being told. Dropped with its connection, it is counted as cancelled, and its text ends.
struct Telling {
    id: Option<String>,
    loaded: Arc<Loaded>,
    hearing: Hearing,
    counted: Counted,
    first: Option<String>,
    /// Whether an event was told: there is one at least.
    is_told: bool,
}

impl Telling {
    /// The next piece of the text.
    async fn next(&mut self) -> Option<Result<String, Refusal>> {
        Some(self.hearing.next().await?.map(|word| match word {
            Word::Said { said, .. } => said.text,
            Word::Prompt { .. } | Word::Nothing { .. } => String::new(),
        }))
    }

    fn answer(&self, text: &str) -> Value {
        let (name, version) = (&*self.loaded.name, self.loaded.version.to_string());
        let mut answer = json!({ "model_name": name, "model_version": version, "text_output": text });
        if let Some(id) = &self.id {
            answer["id"] = json!(id);
        }
        answer
    }

    /// The next event. Nothing stands behind an error.
    async fn piece(mut self) -> Option<(Bytes, Option<Telling>)> {
        let event = |value: &Value| Bytes::from(format!("data: {value}\n\n"));
        if let Some(text) = self.first.take().filter(|text| !text.is_empty()) {
            self.is_told = true;
            return Some((event(&self.answer(&text)), Some(self)));
        }
        loop {
            match self.next().await {
                Some(Ok(text)) if text.is_empty() => continue,
                Some(Ok(text)) => {
                    self.is_told = true;
                    return Some((event(&self.answer(&text)), Some(self)));
                }
                Some(Err(refusal)) => {
                    let refusal = self.counted.refused(refusal);
                    return Some((event(&json!({ "error": refusal.to_string() })), None));
                }
                None if !self.is_told => {
                    self.is_told = true;
                    return Some((event(&self.answer("")), Some(self)));
                }
                None => {
                    self.counted.answered(&self.hearing.times());
                    return None;
                }
            }
        }
    }
}
