//! From a raw file to a served model: stages, their artifacts, and where each came from.

pub mod ingest;
