//! `elastic scale JOB --min A --max B`.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::{reach, show};
use anyhow::{Context, anyhow};
use elastic_spec::JobId;
use elastic_spec::api::Scale;

pub async fn run(args: args::Scale) -> Outcome {
    let job = JobId::parse(&args.job).map_err(mistake)?;
    let coordinator = reach::connect(&args.reach).await?;
    let now = coordinator.status(&job).await.context("ask for the job")?;
    let (min_workers, max_workers) = (args.min.unwrap_or(now.min_workers), args.max.unwrap_or(now.max_workers));
    if min_workers > max_workers {
        return Err(mistake(anyhow!("--min {min_workers} is above --max {max_workers}")).into());
    }
    coordinator.scale(Scale { job: job.clone(), min_workers, max_workers }).await.context("scale the job")?;
    show::out(&format!("{job}: {min_workers} to {max_workers} workers\n"))?;
    Ok(Exit::Ok)
}
