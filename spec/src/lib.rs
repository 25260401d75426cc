//! The words of the domain as types: job files, ids, views, facts and every limit with its unit.
//!
//! Pure: no clock, file, socket or environment. What travels on a wire is translated in `proto`.

pub mod about;
pub mod access;
pub mod api;
pub mod batch;
pub mod facts;
pub mod frame;
pub mod ids;
pub mod job;
pub mod json;
pub mod layout;
pub mod limits;
pub mod pipeline;
pub mod tree;
pub mod view;
pub mod weights;

pub use ids::{Digest, Epoch, Gen, JobId, NodeId, Rank, Round, Shard, Step, Term, TokenName, WorkerId};
