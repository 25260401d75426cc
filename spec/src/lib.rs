//! The words of the domain as types: job files, ids, views, facts and every limit with its unit.
//!
//! Pure: no clock, file, socket or environment. What travels on a wire is translated in `proto`.

pub mod ids;
pub mod tree;
pub mod layout;
pub mod view;
pub mod frame;
pub mod facts;
pub mod api;
pub mod job;
pub mod limits;

pub use ids::{Digest, Epoch, Gen, JobId, NodeId, Rank, Round, Shard, Step, Term, WorkerId};
