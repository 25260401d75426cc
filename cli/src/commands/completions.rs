//! `elastic completions SHELL`.

use crate::args;
use crate::exit::{Exit, Outcome};
use clap::CommandFactory;

pub fn run(args: args::Completions) -> Outcome {
    clap_complete::generate(args.shell, &mut args::Cli::command(), "elastic", &mut std::io::stdout());
    Ok(Exit::Ok)
}
