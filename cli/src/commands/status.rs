//! `elastic status JOB`: all that is known of one job.

mod watch;

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::{json, reach, show};
use anyhow::Context;
use elastic_spec::JobId;
use elastic_spec::api::{JobStatus, MemberStatus};

pub async fn run(args: args::Status) -> Outcome {
    let job = JobId::parse(&args.job).map_err(mistake)?;
    if args.watch {
        return watch::run(&args, job).await;
    }
    let status = reach::connect(&args.reach).await?.status(&job).await.context("ask for the job")?;
    match args.json {
        true => show::out(&format!("{}\n", json::job(&status)))?,
        false => show::out(&words(&status))?,
    }
    Ok(Exit::Ok)
}

fn words(status: &JobStatus) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: String| text += &format!("{name:<12}{value}\n");
    say("job", status.job.to_string());
    say("state", [status.state.as_str(), &status.reason].join("  ").trim_end().to_string());
    if let Some(view) = status.epoch {
        say("view", format!("{view}, the {}{} so far", status.views, ordinal(status.views)));
    }
    match status.exit_code {
        None if status.is_command => {}
        Some(code) => say("exit code", code.to_string()),
        None => say("step", format!("{} of {}", status.step, status.steps_total)),
    }
    if let Some(metrics) = status.metrics {
        if let Some(loss) = show::mean_loss(metrics.train) {
            say(
                "loss",
                format!("{}  (lr {:.3e}, gradient norm {:.3})", show::loss(loss), metrics.lr, metrics.grad_norm),
            );
        }
        if metrics.skipped > 0 {
            say("skipped", format!("{}: not finite", show::plural(metrics.skipped, "step")));
        }
        if let Some((step, tail)) = metrics.validation
            && let (Some(loss), Some(accuracy)) = (show::mean_loss(tail), show::accuracy(tail))
        {
            let accuracy = show::percent(accuracy);
            say("validation", format!("{accuracy} accuracy, loss {}, after step {step}", show::loss(loss)));
        }
        let step_ms = metrics.step_us as f64 / 1e3;
        let mut throughput = format!("{} samples/s, {step_ms:.1} ms a step", show::count(status.samples_per_second));
        if metrics.input_wait_us.saturating_mul(WAIT_SHARE) > metrics.step_us {
            let wait_ms = metrics.input_wait_us as f64 / 1e3;
            throughput += &format!("; lately steps waited {wait_ms:.1} ms for samples on average");
        }
        say("throughput", throughput);
    }
    let who = if status.is_command { "nodes" } else { "workers" };
    say(who, format!("{} to {} wanted, {} in the view", status.min_workers, status.max_workers, in_view(status)));
    say("restarts", status.restarts.to_string());
    match &status.last_fault {
        None => say("last fault", "none".into()),
        Some(fault) => {
            let when = show::ago(fault.unix_ms);
            say("last fault", format!("{}: worker {} on {}, {when}", fault.cause, fault.worker, fault.node));
        }
    }
    if let Some(published) = &status.published {
        say("checkpoint", format!("step {}, weights {}", published.step, published.weights_sha256));
        say("", show::lies_at(status, &published.path));
    }
    if let Some((node, why)) = &status.unpublished {
        say("unwritten", format!("checkpoints on {node} fail, first {}: {}", show::ago(why.since_unix_ms), why.error));
    }
    say("run", status.run_dir.clone());
    if let Some(differs) = &status.run_dir_differs {
        say("", differs.clone());
    }
    if !status.members.is_empty() {
        let heads = ["RANK", "WORKER", "NODE", "SLOT", "ROLE", "SHARDS", "ROUND", "HEARD"];
        let rows: Vec<_> = status.members.iter().map(member).collect();
        text += &format!("\n{}", show::table(&heads, &rows));
    }
    text
}

fn in_view(status: &JobStatus) -> usize {
    status.members.iter().filter(|m| m.rank.is_some()).count()
}

fn member(member: &MemberStatus) -> Vec<String> {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    vec![
        or_dash(member.rank.map(|rank| rank.to_string())),
        member.worker.to_string(),
        member.node.to_string(),
        member.slot.to_string(),
        or_dash(member.role.map(|role| json::role(role).to_string())),
        member.shards.to_string(),
        or_dash(member.round.map(|round| round.to_string())),
        format!("{} ms ago", member.silent_ms),
    ]
}

fn ordinal(n: u64) -> &'static str {
    match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    }
}

/// Waits for samples are told from this part of a step on.
const WAIT_SHARE: u64 = 50;
