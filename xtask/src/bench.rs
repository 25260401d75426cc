//! `cargo xtask bench <name>`: starts what is in `bench/`. Figures go to docs/performance by hand, with the
//! machine and the date, because a figure without them is worth nothing.

use crate::tools;
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};

pub fn run(name: &str, args: &[&str]) -> Result<ExitCode> {
    let script = tools::root().join("bench").join(name).join("run");
    if !script.is_file() {
        let known: Vec<_> = std::fs::read_dir(tools::root().join("bench"))?
            .flatten()
            .filter(|entry| entry.path().join("run").is_file())
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        bail!("there is no bench named {name}; there are: {}", known.join(", "));
    }
    tools::run(tools::cargo().args(["build", "--release", "--package", "elastic"]))?;
    let program = tools::release_dir()?.join("elastic");
    tools::run(Command::new(script).args(args).env("ELASTIC_BIN", program).current_dir(tools::root()))?;
    Ok(ExitCode::SUCCESS)
}
