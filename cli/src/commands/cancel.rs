//! `elastic cancel JOB`.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::{reach, show};
use anyhow::Context;
use elastic_spec::JobId;

pub async fn run(args: args::Cancel) -> Outcome {
    let job = JobId::parse(&args.job).map_err(mistake)?;
    reach::connect(&args.reach).await?.cancel(&job).await.context("cancel the job")?;
    show::out(&format!(
        "{job} is cancelled; `elastic submit JOB_FILE --resume {job}` goes on from its last checkpoint\n"
    ))?;
    Ok(Exit::Ok)
}
