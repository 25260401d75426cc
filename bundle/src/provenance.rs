//! `provenance.json`: where a bundle comes from. In no digest, because the same model may come about in many ways.

use elastic_spec::Digest;
pub use elastic_spec::about::Lived;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub job: String,
    /// Of the resolved spec.
    pub config_sha256: Option<Digest>,
    /// Of the inputs; none for data made from the seed.
    pub data_sha256: Option<Digest>,
    pub weights_sha256: Option<Digest>,
    pub step: u64,
    /// Whether the weights are the average that the run kept (`train.ema`).
    pub average: bool,
    /// The program that wrote the bundle.
    pub code_version: String,
    /// Seconds since 1970.
    pub exported_at: u64,
    /// The checkpoint.
    pub source: String,
    /// The job as it was resolved.
    pub spec: Option<serde_json::Value>,
    /// Every view that the run lived through, as far as its directory tells.
    pub views: Vec<Lived>,
}
