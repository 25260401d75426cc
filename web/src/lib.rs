//! An HTTP listener for looking at a process: pages, JSON and metrics, under the same rule of access as gRPC.
//!
//! Coordinator and agent say what there is to see; here are the listener with its bounds, who may read, the
//! headers that keep a browser from doing more than the page needs, and the text that Prometheus reads. Nothing
//! here changes anything: every route is a read.

mod access;
mod listener;
pub mod metrics;

pub use access::allowed;
pub use axum;
pub use listener::{Routes, WebError, serve};

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// An answer that says what is wrong, as JSON.
pub fn refused(status: StatusCode, why: &str) -> Response {
    let body = serde_json::json!({ "error": why }).to_string();
    (status, [("content-type", "application/json")], body).into_response()
}
