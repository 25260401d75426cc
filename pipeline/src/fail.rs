//! Fail points: kills at named moments of a pipeline, for tests. `ELASTIC_PIPELINE_FAIL=train-stored` names one.
//!
//! Of each stage there are `begin` (it is recorded as running), `work` (half of its work is done), `stored` (its blobs are
//! kept, nothing is recorded) and `recorded`.

use rustix::process::{Signal, getpid, kill_process};

pub fn point(stage: &str, moment: &str) {
    let Some(wanted) = std::env::var_os("ELASTIC_PIPELINE_FAIL") else { return };
    if wanted.to_str() == Some(&format!("{stage}-{moment}")) {
        kill_process(getpid(), Signal::KILL).expect("a process may kill itself");
    }
}
