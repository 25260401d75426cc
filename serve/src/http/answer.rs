//! Answers: a body with its type, and refusals in each protocol's words.

use super::body::{Live, Reply};
use super::route::Dialect;
use crate::refusal::Refusal;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use hyper::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER,
};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use std::io::Write;

/// Bytes of JSON in front of the tensors' bytes, both ways.
pub static JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

pub type Answer = Response<Reply>;

pub fn json(body: Vec<u8>) -> Answer {
    typed("application/json", body)
}

pub fn value(value: &serde_json::Value) -> Answer {
    json(serde_json::to_vec(value).expect("a value is written into memory"))
}

pub fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Reply::Whole(Some(body.into())));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Pieces as they come. Nobody between here and the client keeps them back.
pub fn live(content_type: &'static str, pieces: Live) -> Answer {
    let mut answer = Response::new(Reply::Live(pieces));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer.headers_mut().insert("x-accel-buffering", HeaderValue::from_static("no"));
    answer
}

pub fn refusal(refusal: &Refusal, dialect: Dialect) -> Answer {
    let text = refusal.to_string();
    let mut answer = match dialect {
        Dialect::Plain => value(&json!({ "error": text })),
        Dialect::OpenAi => value(&open_ai_error(refusal, None, None)),
    };
    *answer.status_mut() = StatusCode::from_u16(refusal.status()).expect("every refusal has a status");
    if let Some(seconds) = refusal.retry_after_s() {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if let Refusal::Method { allowed, .. } = refusal {
        answer.headers_mut().insert(hyper::header::ALLOW, HeaderValue::from_static(allowed));
    }
    if let Refusal::Unauthenticated(_) = refusal {
        answer.headers_mut().insert(hyper::header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer
}

/// `param` is the parameter that is wrong, `code` what programs look for.
pub fn open_ai_error(refusal: &Refusal, param: Option<&str>, code: Option<&str>) -> Value {
    let code = code.or(match refusal.status() {
        401 => Some("invalid_api_key"),
        429 => Some("rate_limit_exceeded"),
        _ => None,
    });
    let (text, of_type) = (refusal.to_string(), open_ai_type(refusal));
    json!({ "error": { "message": text, "type": of_type, "param": param, "code": code } })
}

fn open_ai_type(refusal: &Refusal) -> &'static str {
    match refusal.status() {
        429 => "rate_limit_error",
        500.. => "server_error",
        _ => "invalid_request_error",
    }
}

/// Packs a large answer as the client asked for it.
pub fn packed(answer: Answer, request: &HeaderMap) -> Answer {
    let Some(accepted) = request.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()) else { return answer };
    let word = ["gzip", "deflate"].into_iter().find(|word| accepted.split(',').any(|part| part.trim() == *word));
    let (Some(word), Reply::Whole(Some(body))) = (word, answer.body()) else { return answer };
    if body.len() < PACKED_BYTES_MIN {
        return answer;
    }
    let packed = match word {
        "gzip" => {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).and_then(|_| encoder.finish())
        }
        _ => {
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(body).and_then(|_| encoder.finish())
        }
    };
    let Ok(packed) = packed else { return answer };
    let (mut parts, _) = answer.into_parts();
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static(word));
    Response::from_parts(parts, Reply::Whole(Some(packed.into())))
}

/// Below, packing costs more than it saves.
const PACKED_BYTES_MIN: usize = 1024;
