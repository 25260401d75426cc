//! What is said when a job is over: words for people, one line for programs.

use crate::exit::Exit;
use crate::show;
use elastic_spec::api::{JobState, JobStatus};
use elastic_spec::facts::Published;
use serde::Serialize;
use std::path::Path;

/// The last line of `submit --json`, with its keys in this order.
#[derive(Debug, Serialize)]
pub struct Line<'a> {
    job: &'a str,
    state: &'a str,
    steps: u64,
    validation: Option<Validation>,
    weights_sha256: Option<String>,
    run_dir: &'a str,
    views: u64,
    stall_ms: Stall,
    /// Mean of the last steps.
    input_wait_us: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Validation {
    loss: f64,
    accuracy: f64,
}

#[derive(Debug, Serialize)]
struct Stall {
    p50: Option<u32>,
    p99: Option<u32>,
}

/// `result.json` in the run directory: the line, and what else is worth keeping.
#[derive(Debug, Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    line: Line<'a>,
    reason: &'a str,
    state_sha256: Option<String>,
    checkpoint: Option<&'a str>,
    checkpoint_on: Option<&'a str>,
    restarts: u32,
    seconds: f64,
    first_step_seconds: Option<f64>,
}

/// A job that is over, and how long it took from here.
pub struct Ending<'a> {
    pub status: &'a JobStatus,
    pub took_ms: u64,
    pub first_step_ms: Option<u64>,
}

/// How a program ends that waited for the job.
pub fn exit_of(status: &JobStatus) -> Exit {
    match status.state {
        JobState::Succeeded => Exit::Ok,
        JobState::Cancelled => Exit::Cancelled,
        JobState::Failed => crate::run::exit_of(status),
        _ => Exit::Failed,
    }
}

impl Ending<'_> {
    pub fn exit(&self) -> Exit {
        exit_of(self.status)
    }

    pub fn line(&self) -> Line<'_> {
        let status = self.status;
        let tail = status.metrics.and_then(|m| m.validation).map(|(_, tail)| tail);
        let validation =
            tail.and_then(|tail| Some(Validation { loss: show::mean_loss(tail)?, accuracy: show::accuracy(tail)? }));
        Line {
            job: status.job.as_str(),
            state: status.state.as_str(),
            steps: status.step.0,
            validation,
            weights_sha256: self.weights().map(|p| p.weights_sha256.to_string()),
            run_dir: &status.run_dir,
            views: status.views,
            stall_ms: Stall { p50: percentile(&status.stalls_ms, 50), p99: percentile(&status.stalls_ms, 99) },
            input_wait_us: status.metrics.map(|m| m.input_wait_us),
        }
    }

    /// What was published of the step that the job came to; the newest checkpoint of a job that was stopped is of an
    /// earlier one.
    fn weights(&self) -> Option<&Published> {
        let is_over = self.status.state == JobState::Succeeded;
        self.status.published.as_ref().filter(|p| is_over || p.step == self.status.step)
    }

    /// Written beside the checkpoints, where the run directory is on this machine.
    pub fn keep(&self) {
        let status = self.status;
        let published = status.published.as_ref();
        let record = Record {
            line: self.line(),
            reason: &status.reason,
            state_sha256: published.map(|p| p.state_sha256.to_string()),
            checkpoint: published.map(|p| p.path.as_str()),
            checkpoint_on: status.published_on.as_ref().map(|node| node.as_str()),
            restarts: status.restarts,
            seconds: self.took_ms as f64 / 1e3,
            first_step_seconds: self.first_step_ms.map(|ms| ms as f64 / 1e3),
        };
        let text = serde_json::to_string_pretty(&record).unwrap_or_default() + "\n";
        let path = Path::new(&status.run_dir).join("result.json");
        if let Err(error) = std::fs::write(&path, text) {
            tracing::warn!(path = %path.display(), %error, "the result was not kept");
        }
    }

    pub fn words(&self) -> String {
        let status = self.status;
        let how = match status.state {
            JobState::Succeeded => "finished",
            JobState::Cancelled => "was cancelled",
            _ => "failed",
        };
        let steps = show::plural(status.step.0, "step");
        let work = if status.is_command { show::plural(status.views, "generation") } else { steps };
        let mut lines = vec![format!("{} {how}: {work} in {}", status.job, show::span(self.took_ms)), String::new()];
        let mut say = |name: &str, value: String| lines.push(format!("  {name:<21}{value}"));
        if status.state != JobState::Succeeded && !status.reason.is_empty() {
            say("because", status.reason.clone());
        }
        let tail = status.metrics.and_then(|m| m.validation).map(|(_, tail)| tail);
        if let Some(tail) = tail
            && let (Some(loss), Some(accuracy)) = (show::mean_loss(tail), show::accuracy(tail))
        {
            say("validation accuracy", format!("{}  ({} of {})", show::percent(accuracy), tail.correct, tail.count));
            say("validation loss", show::loss(loss));
        }
        if let Some(skipped) = status.metrics.map(|m| m.skipped).filter(|skipped| *skipped > 0) {
            say("skipped", format!("{} whose gradient was not finite", show::plural(skipped, "step")));
        }
        match (self.weights(), &status.published) {
            (Some(weights), _) => say("weights SHA-256", weights.weights_sha256.to_string()),
            (None, Some(older)) => {
                say("newest checkpoint", format!("step {}, weights {}", older.step, older.weights_sha256));
            }
            (None, None) => {}
        }
        if let Some(ms) = self.first_step_ms {
            say("first step after", show::span(ms));
        }
        if status.restarts > 0 {
            say("restarts", status.restarts.to_string());
        }
        if let Some(p50) = percentile(&status.stalls_ms, 50) {
            let p99 = percentile(&status.stalls_ms, 99).unwrap_or(p50);
            say("stall after faults", format!("{p50} ms median, {p99} ms p99"));
        }
        say("run directory", short(&status.run_dir));
        if let (Some(_), Some(published)) = (&status.run_dir_differs, &status.published) {
            say("checkpoint", show::lies_at(status, &published.path));
        }
        lines.join("\n") + "\n"
    }
}

/// The nearest rank; None of nothing.
fn percentile(values: &[u32], percent: usize) -> Option<u32> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied()
}

/// A path as one would type it from here.
pub fn short(path: &str) -> String {
    let here = std::env::current_dir().ok();
    let inside = here.and_then(|here| Path::new(path).strip_prefix(here).ok().map(|p| p.display().to_string()));
    inside.filter(|p| !p.is_empty()).unwrap_or_else(|| path.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use elastic_spec::facts::Metrics;
    use elastic_spec::layout::Tail;
    use elastic_spec::{Digest, JobId, Round, Step};

    fn status() -> JobStatus {
        let validation = Some((Step(420), Tail { loss: 5.0, count: 50, correct: 49 }));
        JobStatus {
            job: JobId::parse("digits-3f2a").unwrap(),
            name: "digits".into(),
            state: JobState::Succeeded,
            reason: String::new(),
            epoch: None,
            members: vec![],
            round: Round(420),
            step: Step(420),
            steps_total: 420,
            metrics: Some(Metrics { validation, ..Metrics::default() }),
            samples_per_second: 0.0,
            restarts: 0,
            views: 2,
            last_fault: None,
            published: Some(Published {
                round: Round(421),
                step: Step(420),
                path: "/runs/digits-3f2a/checkpoints/step-00000420.t1.g2".into(),
                weights_sha256: Digest::of(b""),
                state_sha256: Digest::of(b"x"),
            }),
            run_dir: "/runs/digits-3f2a".into(),
            min_workers: 1,
            max_workers: 4,
            stalls_ms: vec![30, 10, 20],
            submitted_unix_ms: 0,
            published_on: None,
            run_dir_differs: None,
            unpublished: None,
            exit_code: None,
            error_file: None,
            is_command: false,
        }
    }

    #[test]
    fn the_line_has_exactly_the_promised_keys_in_their_order() {
        let status = status();
        let ending = Ending { status: &status, took_ms: 1_000, first_step_ms: None };
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(
            serde_json::to_string(&ending.line()).unwrap(),
            format!(
                "{{\"job\":\"digits-3f2a\",\"state\":\"succeeded\",\"steps\":420,\"validation\":{{\"loss\":0.1,\
                 \"accuracy\":0.98}},\"weights_sha256\":\"{digest}\",\"run_dir\":\"/runs/digits-3f2a\",\"views\":2,\
                 \"stall_ms\":{{\"p50\":20,\"p99\":30}},\"input_wait_us\":0}}"
            )
        );
    }

    #[test]
    fn without_validation_and_faults_the_line_says_null() {
        let mut status = status();
        (status.metrics, status.stalls_ms, status.published) = (None, vec![], None);
        let ending = Ending { status: &status, took_ms: 1_000, first_step_ms: None };
        let line = serde_json::to_string(&ending.line()).unwrap();
        assert!(line.contains("\"validation\":null") && line.contains("\"p50\":null"), "{line}");
    }

    #[test]
    fn the_words_name_what_one_looks_for() {
        let status = status();
        let words = Ending { status: &status, took_ms: 61_000, first_step_ms: Some(400) }.words();
        for part in
            ["digits-3f2a finished: 420 steps in 61 s", "98.00 %  (49 of 50)", "run directory        /runs/digits-3f2a"]
        {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn a_checkpoint_of_an_earlier_step_is_not_told_as_the_weights() {
        let status = JobStatus { state: JobState::Cancelled, step: Step(500), ..status() };
        let ending = Ending { status: &status, took_ms: 1_000, first_step_ms: None };
        let line = serde_json::to_string(&ending.line()).unwrap();
        assert!(line.contains("\"weights_sha256\":null"), "{line}");
        assert!(ending.words().contains("newest checkpoint    step 420, weights e3b0"), "{}", ending.words());
    }

    #[test]
    fn a_failure_says_why() {
        let status = JobStatus { state: JobState::Failed, reason: "no restart is left".into(), ..status() };
        let ending = Ending { status: &status, took_ms: 1_000, first_step_ms: None };
        assert_eq!(ending.exit(), Exit::Failed);
        assert!(ending.words().contains("because              no restart is left"), "{}", ending.words());
    }
}
