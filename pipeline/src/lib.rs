//! From a raw file to a served model: stages, their artifacts, and where each came from.
//!
//! [`run()`] carries out what a `pipeline.toml` says. What is to be done is decided by pure functions (`plan`, `cache`,
//! `judge`); the heavy stages are processes of the product itself (`child`), so that a fault in one is a fault of one.

pub mod artifact;
pub mod cache;
pub mod child;
pub mod fail;
pub mod ingest;
pub mod judge;
pub mod lineage;
pub mod plan;
pub mod registry;
pub mod workspace;

mod http;
mod job;
mod run;
mod stages;

pub use job::{Asked, read};
pub use run::{Ended, Explained, Flags, Note, explain, run};
