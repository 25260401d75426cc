//! Puts a model server under load and tells what it answered, how fast, and whether the answers were right.
//!
//!     elastic-load run PLAN.json       a line of JSON for each of the plan's runs
//!     elastic-load echo DIR WIDTH      writes a bundle whose logits are its input, bit for bit
//!
//! One thread that never sleeps: its own wake-ups are not in the figures. Every answer is compared, byte for byte, with
//! one of the same request that was read and checked number by number. Nothing here knows which server it is.

mod drive;
mod echo;
mod figures;
mod plan;
mod speak;

use anyhow::{Context, Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["run", path] => run(path),
        ["echo", dir, width] => echo::write(Path::new(dir), width.parse().context("WIDTH must be a number")?),
        _ => bail!("usage: elastic-load run PLAN.json | elastic-load echo DIR WIDTH"),
    }
}

fn run(path: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let plan: plan::Plan = serde_json::from_str(&text).with_context(|| format!("read {path}"))?;
    let mut drive = drive::Drive::new(&plan)?;
    for run in &plan.runs {
        let found = drive.run(run)?;
        println!("{}", serde_json::to_string(&found).context("write figures")?);
    }
    Ok(())
}
