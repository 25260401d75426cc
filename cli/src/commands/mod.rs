//! The commands, one a file.

mod agent;
mod cancel;
mod checkpoint;
mod completions;
pub mod coordinator;
mod dev;
mod devices;
mod drain;
pub mod evaluate;
pub mod export;
pub mod generate;
mod jobs;
pub mod lineage;
mod logs;
mod nodes;
pub mod pipeline;
mod profile;
mod scale;
mod status;
mod submit;

use crate::args::Command;
use crate::exit::{Exit, Outcome};
use anyhow::Context;

/// Runs one; those that wait for others get a runtime.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Checkpoint(args) => checkpoint::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Certs(args) => crate::certs::run(args),
        Command::Serve(args) => crate::serve::run(args),
        Command::Pipeline(args) => pipeline::run(args),
        Command::Lineage(args) => lineage::run(args),
        Command::Export(args) => export::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Generate(args) => generate::run(args),
        command => tokio::runtime::Runtime::new().context("start the runtime")?.block_on(run_async(command)),
    }
}

async fn run_async(command: Command) -> Outcome {
    match command {
        Command::Submit(args) => submit::run(args).await,
        Command::Run(args) => crate::run::run(*args).await,
        Command::Jobs(args) => jobs::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Logs(args) => logs::run(args).await,
        Command::Nodes(args) => nodes::run(args).await,
        Command::Scale(args) => scale::run(args).await,
        Command::Drain(args) => drain::run(args).await,
        Command::Cancel(args) => cancel::run(args).await,
        Command::Token(args) => crate::token::run(args).await,
        Command::Coordinator(args) => coordinator::run(args).await,
        Command::Agent(args) => agent::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Checkpoint(_)
        | Command::Completions(_)
        | Command::Profile(_)
        | Command::Devices(_)
        | Command::Certs(_)
        | Command::Serve(_)
        | Command::Pipeline(_)
        | Command::Lineage(_)
        | Command::Export(_)
        | Command::Evaluate(_)
        | Command::Generate(_)
        | Command::Worker => Ok(Exit::Ok),
    }
}
