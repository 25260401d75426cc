//! What programs are told of jobs and nodes: `--json` and the coordinator's `/api/`. Keys are only ever added.

use crate::api::{JobStatus, MemberStatus, NodeStatus};
use crate::layout::Tail;
use crate::view::Role;
use serde_json::{Value, json};

pub fn job(status: &JobStatus) -> Value {
    let metrics = status.metrics.map(|m| {
        json!({
            "step": m.step,
            "loss": mean_loss(m.train),
            "lr": m.lr,
            "grad_norm": m.grad_norm,
            "skipped": m.skipped,
            "step_us": m.step_us,
            "input_wait_us": m.input_wait_us,
            "validation": m.validation.map(|(step, tail)| json!({
                "step": step,
                "loss": mean_loss(tail),
                "accuracy": accuracy(tail),
                "samples": tail.count,
            })),
        })
    });
    json!({
        "job": status.job,
        "name": status.name,
        "state": status.state,
        "reason": status.reason,
        "view": status.epoch.map(|e| json!({ "term": e.term, "gen": e.gen_ })),
        "views": status.views,
        "members": status.members.iter().map(member).collect::<Vec<_>>(),
        "round": status.round,
        "step": status.step,
        "steps": status.steps_total,
        "metrics": metrics,
        "samples_per_second": status.samples_per_second,
        "restarts": status.restarts,
        "last_fault": status.last_fault,
        "published": status.published,
        "run_dir": status.run_dir,
        "min_workers": status.min_workers,
        "max_workers": status.max_workers,
        "stalls_ms": status.stalls_ms,
        "submitted_unix_ms": status.submitted_unix_ms,
        "published_on": status.published_on,
        "exit_code": status.exit_code,
        "is_command": status.is_command,
        "run_dir_differs": status.run_dir_differs,
        "unpublished": status.unpublished.as_ref().map(|(node, why)| json!({
            "node": node,
            "round": why.round,
            "error": why.error,
            "since_unix_ms": why.since_unix_ms,
        })),
    })
}

fn member(member: &MemberStatus) -> Value {
    json!({
        "worker": member.worker.to_string(),
        "node": member.node,
        "slot": member.slot,
        "rank": member.rank,
        "role": member.role.map(role),
        "round": member.round,
        "silent_ms": member.silent_ms,
        "shards": member.shards,
    })
}

pub fn role(role: Role) -> &'static str {
    match role {
        Role::Active => "active",
        Role::Learner => "learner",
    }
}

pub fn node(status: &NodeStatus) -> Value {
    json!({
        "node": status.node,
        "host": status.host,
        "slots": status.slots,
        "used": status.used,
        "draining": status.draining,
        "silent_ms": status.silent_ms,
        "jobs": status.jobs,
        "strikes": status.strikes,
    })
}

/// The mean loss of a tail; none without samples.
pub fn mean_loss(tail: Tail) -> Option<f64> {
    (tail.count > 0).then(|| tail.loss / tail.count as f64)
}

pub fn accuracy(tail: Tail) -> Option<f64> {
    (tail.count > 0).then(|| tail.correct as f64 / tail.count as f64)
}
