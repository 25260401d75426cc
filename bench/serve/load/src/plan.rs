//! What to send, where, and how: read from a file that the bench writes.

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub struct Plan {
    /// HOST:PORT.
    pub address: String,
    pub path: String,
    pub way: Way,
    /// One request each, all of one width.
    pub rows: Vec<Vec<f32>>,
    /// What the model answers to each, as numbers …
    pub expected: Vec<Vec<f32>>,
    /// … up to this share of the largest of them.
    pub tolerance: f32,
    pub runs: Vec<Run>,
}

/// The shape of requests and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The open inference protocol; numbers as JSON.
    V2,
    /// The same; numbers as bytes, both ways.
    V2Binary,
    /// `{"inputs": [[…]]}` and `{"outputs": [[…]]}`, as people write it by hand.
    Plain,
}

#[derive(Debug, Deserialize)]
pub struct Run {
    pub name: String,
    pub shape: Shape,
    /// Not counted, before the rest.
    pub warm_s: f64,
    pub seconds: f64,
    /// Each client's requests are counted from when they should have gone out.
    pub connections: usize,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Each connection sends its next request when it has its answer.
    Closed,
    /// Requests come at random times (Poisson) whatever becomes of them. One that finds no connection free is turned
    /// away, as a proxy in front of the server would do it.
    Open { rate: f64, seed: u64 },
}
