//! Where the program's own log goes: stderr for what stays up, a file beside a progress bar.
//!
//! ELASTIC_LOG says how much: `debug`, `elastic_agent=debug`, …

use anyhow::{Context, Result};
use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use tracing_subscriber::EnvFilter;

fn filter(usual: &str) -> EnvFilter {
    EnvFilter::try_from_env("ELASTIC_LOG").unwrap_or_else(|_| EnvFilter::new(usual))
}

pub fn to_stderr(usual: &str) {
    let log = tracing_subscriber::fmt().with_env_filter(filter(usual)).with_writer(std::io::stderr);
    // The second log of a process, as in tests, is the first one.
    let _ = log.try_init();
}

pub fn to_file(path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("write the log {}", path.display()))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter("info")).with_ansi(false).with_writer(Mutex::new(file));
    let _ = log.try_init();
    Ok(())
}
