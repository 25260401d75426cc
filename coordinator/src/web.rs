//! What can be seen of the cluster over HTTP: the page, its JSON and its live streams, and metrics.
//!
//! Everything is a read, and nothing is decided here. The page is three files in this program; it loads nothing
//! from elsewhere. A standby shows that it is one, and its own metrics.

mod board;
mod curve;
mod diary;
mod live;
mod metrics;
#[cfg(test)]
mod tests;

pub(crate) use board::Board;
pub(crate) use diary::Diary;

use crate::meters::Meters;
use crate::service::Service;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use elastic_proto::Refusal;
use elastic_proto::server::Api;
use elastic_spec::{JobId, Rank, json as words};
use elastic_web::metrics::Page;
use elastic_web::{Routes, axum, refused};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone)]
pub(crate) struct Web {
    pub service: Arc<Service>,
    pub board: Arc<Board>,
    pub meters: Arc<Meters>,
}

impl Web {
    pub fn routes(self) -> Routes {
        let open = Router::new()
            .route("/", get(|| async { file("text/html; charset=utf-8", include_str!("../page/index.html")) }))
            .route("/app.css", get(|| async { file("text/css; charset=utf-8", include_str!("../page/app.css")) }))
            .route("/app.js", get(|| async { file("text/javascript; charset=utf-8", include_str!("../page/app.js")) }))
            .route("/icon.svg", get(|| async { file("image/svg+xml", include_str!("../page/icon.svg")) }));
        let guarded = Router::new()
            .route("/metrics", get(scrape))
            .route("/api/health", get(health))
            .route("/api/jobs", get(jobs))
            .route("/api/jobs/{job}", get(job))
            .route("/api/jobs/{job}/curve", get(curve))
            .route("/api/jobs/{job}/logs", get(logs))
            .route("/api/nodes", get(nodes))
            .route("/api/events", get(events))
            .with_state(self);
        Routes { open, guarded }
    }
}

fn file(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], text).into_response()
}

fn answer(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

type Answer = Result<Response, Refused>;

/// A refusal as an answer of HTTP.
struct Refused(Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused(refusal)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = match &self.0 {
            Refusal::Invalid(_) => StatusCode::BAD_REQUEST,
            Refusal::NotFound(_) => StatusCode::NOT_FOUND,
            Refusal::NotNow(_) => StatusCode::CONFLICT,
            Refusal::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Refusal::Forbidden(_) => StatusCode::FORBIDDEN,
            Refusal::Standby { .. } | Refusal::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Refusal::TooMuch(_) => StatusCode::TOO_MANY_REQUESTS,
            Refusal::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        refused(status, &self.0.to_string())
    }
}

async fn scrape(State(web): State<Web>, headers: HeaderMap) -> Page {
    let mut page = Page::for_caller(&headers);
    metrics::write(&mut page, &*web.service, &web.meters).await;
    page
}

async fn health(State(web): State<Web>) -> Response {
    answer(&board::about(&web.service.health().await))
}

async fn jobs(State(web): State<Web>) -> Answer {
    Ok(answer(&web.service.jobs().await?.iter().map(words::job).collect()))
}

async fn job(State(web): State<Web>, Path(job): Path<String>) -> Answer {
    Ok(answer(&words::job(&web.service.status(id(&job)?).await?)))
}

async fn nodes(State(web): State<Web>) -> Answer {
    Ok(answer(&web.service.nodes().await?.iter().map(words::node).collect()))
}

async fn curve(State(web): State<Web>, Path(job): Path<String>) -> Answer {
    let job = web.service.status(id(&job)?).await?.job;
    let (diary, _) = web.board.diary.since(&job, 0);
    Ok(answer(&json!({ "points": web.board.points(&job, 0), "diary": diary })))
}

async fn logs(
    State(web): State<Web>,
    Path(job): Path<String>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Answer {
    let rank = query.get("rank").map(|text| text.parse().map(Rank)).transpose();
    let rank = rank.map_err(|_| Refusal::Invalid("rank: a number is meant".into()))?;
    Ok(live::log_lines(&web.service, id(&job)?, rank).await?)
}

async fn events(State(web): State<Web>, Query(query): Query<BTreeMap<String, String>>) -> Answer {
    Ok(match query.get("job") {
        Some(job) => live::job(&web.board, id(job)?),
        None => live::cluster(&web.board),
    })
}

fn id(text: &str) -> Result<JobId, Refusal> {
    JobId::parse(text).map_err(|error| Refusal::Invalid(format!("job: {error}")))
}
