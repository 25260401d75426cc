//! `cargo xtask lint`: clippy with warnings denied, and the format check. The arrows between crates and other
//! rules that no lint knows are in `tests/tidy`, which is part of `cargo xtask test`.

use crate::tools;
use anyhow::Result;
use std::process::ExitCode;

pub fn run() -> Result<ExitCode> {
    tools::run(tools::cargo().args(["fmt", "--all", "--", "--check"]))?;
    // The release profile, like everything here: dependencies are checked once.
    tools::run(tools::cargo().args([
        "clippy",
        "--release",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    println!("clippy and format: clean");
    Ok(ExitCode::SUCCESS)
}
