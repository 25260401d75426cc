//! HTTP: from a request to the part that answers it, and back. Sockets are [`crate::server`]'s.
//!
//! `v2` is the open inference protocol, `v1` what TensorFlow Serving and KServe's first protocol have, `openai` what
//! OpenAI's clients ask, `generate` Triton's way to ask for a text.

pub mod answer;
pub mod body;
mod generate;
mod openai;
mod prometheus;
pub mod route;
mod texts;
mod v1;
mod v2;
mod wishes;

pub use v2::{EXTENSIONS, PLATFORM};

use crate::refusal::Refusal;
use crate::serving::Which;
use crate::state::{Phase, Shared};
use answer::Answer;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::{Method, Request};
use route::{Dialect, Route};
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Answers one request. Never fails: a refusal is an answer too.
pub async fn answer(shared: Arc<Shared>, peer: SocketAddr, request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    let route = route::route(&head.method, head.uri.path());
    let dialect = route.as_ref().map_or_else(|_| Dialect::of(head.uri.path()), Route::dialect);
    let headers = head.headers;
    let answered = match route {
        Ok(route) => match shared.config.keys.admit(&headers, route.needed()) {
            Ok(()) => dispatch(&shared, route, &headers, body).await,
            Err(refusal) => {
                shared.config.door.refused(Some(peer), head.uri.path(), &refusal);
                Err(refusal)
            }
        },
        Err(refusal) => Err(refusal),
    };
    let answer = answered.unwrap_or_else(|refusal| answer::refusal(&refusal, dialect));
    let mut answer = answer::packed(answer, &headers);
    shared.answers.count(answer.status().as_u16());
    if shared.phase() == Phase::Draining {
        answer.headers_mut().insert(hyper::header::CONNECTION, hyper::header::HeaderValue::from_static("close"));
    }
    if head.method == Method::HEAD {
        *answer.body_mut() = body::Reply::Whole(None);
    }
    Ok(answer)
}

async fn dispatch(shared: &Arc<Shared>, route: Route, headers: &HeaderMap, body: Incoming) -> Result<Answer, Refusal> {
    match route {
        Route::Alive => Ok(answer::value(&json!({ "status": "alive" }))),
        Route::Live => Ok(answer::value(&json!({ "live": true }))),
        Route::Ready => Ok(ready(shared)),
        Route::Metrics => Ok(answer::typed(prometheus::CONTENT_TYPE, prometheus::text(shared))),
        Route::Server => Ok(answer::value(&v2::server())),
        Route::Models => Ok(answer::value(&v2::models(&shared.serving.table()))),
        Route::Model(name, which) => v2::metadata(shared, &name, &which),
        Route::ModelReady(name, which) => v2::model_ready(shared, &name, &which),
        Route::ModelConfig(name, which) => v2::config(shared, &name, &which),
        Route::Stats(None) => Ok(answer::value(&v2::stats(&shared.serving.table(), None))),
        Route::Stats(Some((name, which))) => {
            // An unknown model is told, not an empty list.
            shared.serving.find(&name, &which)?;
            Ok(answer::value(&v2::stats(&shared.serving.table(), Some((&name, &which)))))
        }
        Route::Infer(name, which) => v2::infer(shared, (&name, &which), headers, body).await,
        Route::Index => v2::index(shared, headers, body).await,
        Route::Load(name) => v2::load(shared, &name, headers, body).await,
        Route::Unload(name) => v2::unload(shared, &name, headers, body).await,
        Route::V1Models => Ok(answer::value(&v1::models(&shared.serving.table()))),
        Route::V1Model(name, which) => v1::model(shared, &name, &which),
        Route::V1Metadata(name, which) => v1::metadata(shared, &name, &which),
        Route::V1Call(name, which, call) => v1::call(shared, (&name, &which), call, headers, body).await,
        Route::Generate(name, which) => generate::whole(shared, (&name, &which), headers, body).await,
        Route::GenerateStream(name, which) => generate::stream(shared, (&name, &which), headers, body).await,
        Route::Completions => Ok(openai::completions(shared, headers, body).await),
    }
}

fn ready(shared: &Shared) -> Answer {
    match shared.readiness() {
        Ok(()) => answer::value(&json!({ "live": true, "ready": true })),
        Err(why) => {
            let mut answer = answer::value(&json!({ "live": true, "ready": false, "reason": why }));
            *answer.status_mut() = hyper::StatusCode::SERVICE_UNAVAILABLE;
            answer
        }
    }
}

/// The time that a request gives itself: `Request-Timeout-Ms`.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Refusal> {
    let Some(value) = headers.get("request-timeout-ms") else { return Ok(None) };
    let ms = value.to_str().ok().and_then(|text| text.parse::<u64>().ok()).filter(|ms| *ms > 0);
    let wrong = || Refusal::invalid("Request-Timeout-Ms must be a whole number of ms, 1 or more");
    ms.map(|ms| Some(Duration::from_millis(ms))).ok_or_else(wrong)
}

/// A model's name and which version, as a path has them.
type Named<'a> = (&'a str, &'a Which);
