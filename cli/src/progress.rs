//! Shows how far a job is: a bar on a terminal, else a line every few seconds; always on stderr.

use crate::show;
use elastic_spec::Epoch;
use elastic_spec::api::{Fault, JobState, JobStatus};
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

const LINE_EVERY: Duration = Duration::from_secs(5);
/// A job that does not start says why after this.
const PATIENCE: Duration = Duration::from_secs(2);

pub struct Progress {
    bar: Option<ProgressBar>,
    since: Instant,
    last_line: Instant,
    last: Last,
}

/// What was said, so that only changes are said again.
#[derive(Default)]
struct Last {
    started: bool,
    workers: usize,
    epoch: Option<Epoch>,
    state: Option<JobState>,
    reason: String,
    fault: Option<Fault>,
    unpublished: bool,
    run_dir_differs: bool,
}

impl Progress {
    pub fn new() -> Progress {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸─"));
            bar
        });
        let now = Instant::now();
        Progress { bar, since: now, last_line: now, last: Last::default() }
    }

    /// A line above the bar.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    pub fn show(&mut self, status: &JobStatus) {
        self.say_changes(status);
        let line = measures(status);
        match &self.bar {
            Some(bar) if status.steps_total > 0 => {
                bar.set_length(status.steps_total);
                bar.set_position(status.step.0);
                bar.set_message(format!("{line}{}", self.remaining(status)));
            }
            Some(_) => {}
            None if self.last_line.elapsed() >= LINE_EVERY && status.step.0 > 0 => {
                self.last_line = Instant::now();
                let (step, total) = (status.step, status.steps_total);
                eprintln!("step {step}/{total}  {line}{}", self.remaining(status));
            }
            None => {}
        }
    }

    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn say_changes(&mut self, status: &JobStatus) {
        if status.last_fault != self.last.fault {
            self.last.fault = status.last_fault.clone();
            if let Some(fault) = &status.last_fault {
                self.say(&format!(
                    "step {}: lost worker {} on {}: {}",
                    status.step, fault.worker, fault.node, fault.cause
                ));
            }
        }
        self.say_disks(status);
        let workers = status.members.iter().filter(|m| m.rank.is_some()).count();
        if status.state == JobState::Running && !self.last.started && workers > 0 && status.steps_total > 0 {
            self.last.started = true;
            let total = show::plural(status.steps_total, "step");
            self.say(&format!("{}: {total} on {}", status.job, show::plural(workers as u64, "worker")));
        } else if self.last.started
            && workers != self.last.workers
            && status.epoch != self.last.epoch
            && !status.state.is_over()
            && workers > 0
        {
            self.say(&format!("step {}: now on {}", status.step, show::plural(workers as u64, "worker")));
        }
        // A new leader hears of the members one by one; only another view is a change.
        if status.epoch != self.last.epoch {
            self.last.workers = workers;
            self.last.epoch = status.epoch;
        }
        let waits = matches!(status.state, JobState::Pending | JobState::Paused);
        let patient = status.state == JobState::Pending && self.since.elapsed() < PATIENCE;
        let is_new = (Some(status.state), &status.reason) != (self.last.state, &self.last.reason);
        if waits && !patient && is_new {
            self.last.state = Some(status.state);
            self.last.reason = status.reason.clone();
            self.say(&format!("{}: {}", status.state.as_str(), status.reason));
        }
        if !waits {
            self.last.state = Some(status.state);
        }
    }

    /// Each once: the text of an error may change with each try.
    fn say_disks(&mut self, status: &JobStatus) {
        if let Some((node, why)) = status.unpublished.as_ref().filter(|_| !self.last.unpublished) {
            self.say(&format!("a checkpoint could not be written on {node}; it is tried again: {}", why.error));
        }
        if self.last.unpublished
            && status.unpublished.is_none()
            && status.published.is_some()
            && !status.members.is_empty()
        {
            self.say("checkpoints are written again");
        }
        self.last.unpublished = status.unpublished.is_some();
        if let Some(differs) = status.run_dir_differs.as_ref().filter(|_| !self.last.run_dir_differs) {
            self.say(&format!("warning: {differs}"));
            self.last.run_dir_differs = true;
        }
    }

    fn remaining(&self, status: &JobStatus) -> String {
        let left = status.steps_total.saturating_sub(status.step.0);
        let per_step_us = status.metrics.map_or(0, |m| m.step_us);
        match left * per_step_us / 1_000 {
            0 => String::new(),
            ms => format!("  {} left", show::span(ms)),
        }
    }
}

fn measures(status: &JobStatus) -> String {
    let mut parts = Vec::new();
    if let Some(metrics) = status.metrics {
        parts.extend(show::mean_loss(metrics.train).map(|loss| format!("loss {}", show::loss(loss))));
        let accuracy = metrics.validation.and_then(|(_, tail)| show::accuracy(tail));
        parts.extend(accuracy.map(|accuracy| format!("validation {}", show::percent(accuracy))));
    }
    if status.samples_per_second > 0.0 {
        parts.push(format!("{} samples/s", show::count(status.samples_per_second)));
    }
    parts.join("  ")
}
