//! `elastic drain NODE`.

use crate::args;
use crate::exit::{Exit, Outcome, mistake};
use crate::{reach, show};
use anyhow::Context;
use elastic_spec::NodeId;

pub async fn run(args: args::Drain) -> Outcome {
    let node = NodeId::parse(&args.node).map_err(mistake)?;
    reach::connect(&args.reach).await?.drain(&node).await.context("drain the node")?;
    show::out(&format!("{node} drains: its workers hand over and leave, and it gets no more work\n"))?;
    Ok(Exit::Ok)
}
