//! `elastic`: the one program. Reads the command line, runs a command, prints its error, ends with its code.
//!
//! What may be said is in `args`, what is done in `commands`. Nothing is decided here.

mod args;
mod commands;
mod exit;

mod certs;
mod cluster;
mod follow;
mod inputs;
mod job_file;
mod json;
mod logging;
mod progress;
mod reach;
mod result;
mod run;
mod serve;
mod show;
mod signals;
mod token;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Worker => elastic_worker::main(),
        command => commands::run(command).map(ExitCode::from).unwrap_or_else(|failure| {
            eprintln!("error: {:#}", failure.error);
            failure.exit.into()
        }),
    }
}
