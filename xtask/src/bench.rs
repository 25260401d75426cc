//! `cargo xtask bench <name>`: starts what is in `bench/`. Figures go to docs/performance by hand, with the
//! machine and the date, because a figure without them is worth nothing.

use crate::tools;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, ExitCode};

/// All of them; `cargo xtask test --full` runs each once.
pub const NAMES: [&str; 2] = ["stall", "torchrun"];

pub fn run(name: &str, args: &[&str]) -> Result<ExitCode> {
    if !NAMES.contains(&name) {
        bail!("there is no bench named {name}; there are: {}", NAMES.join(", "));
    }
    tools::run(tools::cargo().args(["build", "--release", "--package", "elastic"]))?;
    start(name, args, &tools::release_dir()?.join("elastic"))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a bench on the program that is there.
pub fn start(name: &str, args: &[&str], program: &Path) -> Result<()> {
    let script = tools::root().join("bench").join(name).join("run");
    tools::run(Command::new(script).args(args).env("ELASTIC_BIN", program).current_dir(tools::root()))
}
