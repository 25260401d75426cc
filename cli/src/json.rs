//! What `--json` prints of jobs and nodes: the same as the coordinator's `/api/` gives.

pub use elastic_spec::json::{job, node, role};
