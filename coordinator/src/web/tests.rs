//! What tests of the page share.

use elastic_spec::api::{JobState, JobStatus};
use elastic_spec::facts::Metrics;
use elastic_spec::layout::Tail;
use elastic_spec::{JobId, Round, Step};

/// A running job after so many steps.
pub fn status(job: &str, step: u64) -> JobStatus {
    let train = Tail { loss: 2.0, count: 4, correct: 1 };
    JobStatus {
        job: JobId::parse(job).unwrap(),
        name: job.into(),
        state: JobState::Running,
        reason: String::new(),
        epoch: None,
        members: Vec::new(),
        round: Round(step),
        step: Step(step),
        steps_total: 10_000,
        metrics: Some(Metrics { step: Step(step), train, ..Metrics::default() }),
        samples_per_second: 100.0,
        restarts: 0,
        views: 1,
        last_fault: None,
        published: None,
        run_dir: "/runs/a".into(),
        min_workers: 1,
        max_workers: 1,
        stalls_ms: Vec::new(),
        submitted_unix_ms: 0,
        published_on: None,
        run_dir_differs: None,
        unpublished: None,
        exit_code: None,
        error_file: None,
        is_command: false,
    }
}
