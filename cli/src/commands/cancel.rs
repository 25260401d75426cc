//! `elastic cancel JOB`.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::reach;
use anyhow::Context;
use elastic_spec::JobId;

pub async fn run(args: args::Cancel) -> Outcome {
    let job = JobId::parse(&args.job).map_err(mistake)?;
    reach::connect(&args.reach).await?.cancel(&job).await.context("cancel the job")?;
    println!("{job} is cancelled; `elastic submit JOB_FILE --resume {job}` goes on from its last checkpoint");
    Ok(Exit::Ok)
}
