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
mod models;
mod page;
mod progress;
mod reach;
mod result;
mod run;
mod serve;
mod show;
mod signals;
mod token;
mod workspace;

use args::{Cli, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.dies_with.is_some_and(|parent| !die_with(parent)) {
        return exit::Exit::Interrupted.into();
    }
    match cli.command {
        Command::Worker => elastic_worker::main(),
        command => commands::run(command).map(ExitCode::from).unwrap_or_else(|failure| {
            eprintln!("error: {:#}", failure.error);
            failure.exit.into()
        }),
    }
}

/// From here on the kernel ends this process when its parent ends, however that comes about. False: it has ended already.
fn die_with(parent: u32) -> bool {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    let told = set_parent_process_death_signal(Some(Signal::TERM));
    let is_alive = getppid().is_some_and(|now| now.as_raw_nonzero().get() as u32 == parent);
    told.is_ok() && is_alive
}
