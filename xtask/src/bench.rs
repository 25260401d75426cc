//! `cargo xtask bench <name>`: starts what is in `bench/`. Figures go to docs/performance by hand, with the
//! machine and the date, because a figure without them is worth nothing.

use crate::tools;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::{Command, ExitCode};

/// All of them; `cargo xtask test --full` runs each once.
pub const NAMES: [&str; 6] = ["stall", "torchrun", "run", "step", "serve", "serve-text"];

pub fn run(name: &str, args: &[&str]) -> Result<ExitCode> {
    if !NAMES.contains(&name) {
        bail!("there is no bench named {name}; there are: {}", NAMES.join(", "));
    }
    let needs: &[&str] = match name {
        "step" => &["--package", "elastic-models", "--example", "step"],
        "serve" => &["--package", "elastic", "--package", "elastic-load"],
        _ => &["--package", "elastic"],
    };
    tools::run(tools::cargo().args(["build", "--release"]).args(needs))?;
    start(name, args, &tools::release_dir()?.join("elastic"))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs a bench on the programs that are there: `program`, and the examples and programs beside it (`cargo test` builds them too).
pub fn start(name: &str, args: &[&str], program: &Path) -> Result<()> {
    let script = tools::root().join("bench").join(name).join("run");
    let step = program.with_file_name("examples").join("step");
    let load = program.with_file_name("elastic-load");
    let mut command = Command::new(script);
    command.args(args).env("ELASTIC_BIN", program).env("ELASTIC_STEP_BIN", step).env("ELASTIC_LOAD_BIN", load);
    command.current_dir(tools::root());
    tools::run(&mut command)
}
