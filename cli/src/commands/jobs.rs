//! `elastic jobs`.

use crate::args;
use crate::exit::{Exit, Outcome};
use crate::json;
use crate::reach;
use crate::show::{self, table};
use anyhow::Context;
use elastic_spec::api::JobStatus;

pub async fn run(args: args::Jobs) -> Outcome {
    let jobs = reach::connect(&args.reach).await?.jobs().await.context("list the jobs")?;
    if args.json {
        show::out(&format!("{}\n", serde_json::Value::from_iter(jobs.iter().map(json::job))))?;
        return Ok(Exit::Ok);
    }
    if jobs.is_empty() {
        show::out("no jobs; `elastic submit job.toml` submits one\n")?;
        return Ok(Exit::Ok);
    }
    let row = |job: &JobStatus| {
        vec![
            job.job.to_string(),
            job.state.as_str().to_string(),
            if job.is_command { "-".into() } else { format!("{}/{}", job.step, job.steps_total) },
            job.members.iter().filter(|m| m.rank.is_some()).count().to_string(),
            job.metrics.and_then(|m| show::mean_loss(m.train)).map_or("-".into(), show::loss),
            show::ago(job.submitted_unix_ms),
        ]
    };
    let rows: Vec<_> = jobs.iter().map(row).collect();
    show::out(&table(&["JOB", "STATE", "STEP", "WORKERS", "LOSS", "SUBMITTED"], &rows))?;
    Ok(Exit::Ok)
}
