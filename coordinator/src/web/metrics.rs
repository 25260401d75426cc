//! What Prometheus reads of a coordinator. Labels are states, methods and the newest jobs: their number is bounded.

use crate::meters::Meters;
use elastic_proto::server::Api;
use elastic_spec::api::{JobState, JobStatus, NodeStatus};
use elastic_spec::json::{accuracy, mean_loss};
use elastic_spec::view::Role;
use elastic_web::metrics::{Labels, Page};
use std::sync::atomic::Ordering;

pub(crate) async fn write(page: &mut Page, service: &impl Api, meters: &Meters) {
    let version = [("version", env!("CARGO_PKG_VERSION"))];
    page.gauges("elastic_build_info", "The version of this program.", [(&version[..], 1.0)]);
    let health = service.health().await;
    page.gauge("elastic_coordinator_leader", "Whether this coordinator leads.", health.leads.is_some() as u8);
    page.gauge(
        "elastic_coordinator_term",
        "The term it leads in; 0 for a standby.",
        health.leads.map_or(0, |t| t.0) as f64,
    );
    let away = health.store_away.is_some() as u8;
    page.gauge("elastic_coordinator_store_away", "Whether the store cannot be written at present.", away);
    // Of a standby there is none: the leader tells of them.
    let (jobs, nodes) = (service.jobs().await, service.nodes().await);
    if let (Ok(jobs), Ok(nodes)) = (jobs, nodes) {
        write_cluster(page, &jobs, &nodes);
    }
    write_own(page, meters);
}

fn write_own(page: &mut Page, meters: &Meters) {
    let labels = ["method", "outcome"];
    page.counts("elastic_coordinator_requests_total", "Calls over gRPC.", labels, &meters.requests);
    page.counts(
        "elastic_coordinator_notes_total",
        "What happened in the cluster, by kind.",
        ["kind", ""],
        &meters.notes,
    );
    page.histogram(
        "elastic_coordinator_decision_seconds",
        "Time to decide what follows from an event.",
        &meters.decisions,
    );
    let outcome = ["outcome", ""];
    page.counts("elastic_coordinator_store_commits_total", "Commits of records.", outcome, &meters.store_commits);
    let records = meters.store_records.load(Ordering::Relaxed);
    page.counter("elastic_coordinator_store_records_total", "Records written.", records);
    page.histogram("elastic_coordinator_store_commit_seconds", "Time of a commit.", &meters.store_writes);
}

fn write_cluster(page: &mut Page, jobs: &[JobStatus], nodes: &[NodeStatus]) {
    let of_state = |state: JobState| jobs.iter().filter(|job| job.state == state).count() as f64;
    let states: Vec<_> = STATES.iter().map(|state| ([("state", state.as_str())], of_state(*state))).collect();
    page.gauges("elastic_jobs", "Jobs by state.", states.iter().map(|(labels, n)| (&labels[..], *n)));
    let count = |is: &dyn Fn(&NodeStatus) -> bool| nodes.iter().filter(|node| is(node)).count() as f64;
    let kinds = [
        ([("state", "ready")], count(&|n| !n.draining && n.silent_ms < SILENT_MS)),
        ([("state", "draining")], count(&|n| n.draining && n.silent_ms < SILENT_MS)),
        ([("state", "silent")], count(&|n| n.silent_ms >= SILENT_MS)),
    ];
    page.gauges("elastic_nodes", "Nodes by state.", kinds.iter().map(|(labels, n)| (&labels[..], *n)));
    let slots = |of: &dyn Fn(&NodeStatus) -> u16| nodes.iter().map(|node| f64::from(of(node))).sum::<f64>();
    page.gauge("elastic_slots", "Slots of all nodes.", slots(&|node| node.slots));
    page.gauge("elastic_slots_used", "Slots that a job has.", slots(&|node| node.used));
    let shown = shown(jobs);
    let left_out = jobs.len() - shown.len();
    page.gauge("elastic_jobs_not_shown", "Jobs without metrics of their own: there are too many.", left_out as f64);
    write_jobs(page, &shown);
}

/// Those that are not over, then the newest of the others.
fn shown(jobs: &[JobStatus]) -> Vec<&JobStatus> {
    let mut shown: Vec<&JobStatus> = jobs.iter().collect();
    shown.sort_by_key(|job| (job.state.is_over(), std::cmp::Reverse(job.submitted_unix_ms)));
    shown.truncate(JOBS_SHOWN);
    shown
}

fn write_jobs(page: &mut Page, jobs: &[&JobStatus]) {
    let mut gauge = |name: &str, help: &str, of: &dyn Fn(&JobStatus) -> Option<f64>| {
        let samples: Vec<_> = jobs.iter().filter_map(|job| Some(([("job", job.job.as_str())], of(job)?))).collect();
        page.gauges(name, help, samples.iter().map(|(labels, value)| (&labels[..], *value)));
    };
    let us = |us: u64| us as f64 / 1e6;
    gauge("elastic_job_step", "Steps done.", &|job| Some(job.step.0 as f64));
    gauge("elastic_job_steps_planned", "Steps of the whole job, once known.", &|job| {
        (job.steps_total > 0).then_some(job.steps_total as f64)
    });
    gauge("elastic_job_loss", "Mean training loss of the newest step.", &|job| mean_loss(job.metrics?.train));
    gauge("elastic_job_learning_rate", "Learning rate of the newest step.", &|job| Some(job.metrics?.lr));
    gauge("elastic_job_gradient_norm", "Norm of the newest step's gradient.", &|job| Some(job.metrics?.grad_norm));
    gauge("elastic_job_validation_loss", "Mean loss of the newest validation.", &|job| {
        mean_loss(job.metrics?.validation?.1)
    });
    gauge("elastic_job_validation_accuracy_ratio", "Accuracy of the newest validation.", &|job| {
        accuracy(job.metrics?.validation?.1)
    });
    gauge("elastic_job_samples_per_second", "Throughput.", &|job| Some(job.samples_per_second));
    gauge("elastic_job_step_seconds", "Median time of a step lately.", &|job| Some(us(job.metrics?.step_us)));
    gauge("elastic_job_input_wait_seconds", "Mean wait of a step for its samples lately.", &|job| {
        Some(us(job.metrics?.input_wait_us))
    });
    gauge("elastic_job_view_gen", "The gen of the view in force.", &|job| Some(job.epoch?.gen_.0 as f64));
    gauge("elastic_job_checkpoint_step", "The step of the newest checkpoint.", &|job| {
        Some(job.published.as_ref()?.step.0 as f64)
    });
    let unwritten = |job: &JobStatus| Some(job.unpublished.is_some() as u8 as f64);
    gauge("elastic_job_checkpoint_failing", "Whether checkpoints cannot be written at present.", &unwritten);
    let roles = [("active", Some(Role::Active)), ("learner", Some(Role::Learner)), ("waiting", None)];
    let members: Vec<_> = jobs
        .iter()
        .flat_map(|job| {
            let count = |role: Option<Role>| job.members.iter().filter(|m| m.role == role).count() as f64;
            roles.map(|(name, role)| ([("job", job.job.as_str()), ("role", name)], count(role)))
        })
        .collect();
    let samples = members.iter().map(|(labels, count)| (&labels[..], *count));
    page.gauges("elastic_job_members", "Workers by their role in the view; waiting: in none.", samples);
    let mut counter = |name: &str, help: &str, of: &dyn Fn(&JobStatus) -> u64| {
        let samples: Vec<_> = jobs.iter().map(|job| ([("job", job.job.as_str())], of(job))).collect();
        page.counters(name, help, samples.iter().map(|(labels, value)| (&labels[..] as Labels<'_>, *value)));
    };
    counter("elastic_job_restarts_total", "Slots started again after a fault.", &|job| job.restarts.into());
    counter("elastic_job_views_total", "Views so far.", &|job| job.views);
    counter("elastic_job_skipped_steps_total", "Steps that moved nothing: not finite.", &|job| {
        job.metrics.map_or(0, |m| m.skipped)
    });
}

const STATES: [JobState; 6] = [
    JobState::Pending,
    JobState::Running,
    JobState::Paused,
    JobState::Succeeded,
    JobState::Failed,
    JobState::Cancelled,
];
const SILENT_MS: u64 = elastic_spec::limits::SUSPECT_MS;
/// Each has some twenty samples.
const JOBS_SHOWN: usize = 200;
