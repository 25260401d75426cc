//! `cargo xtask nvidia`: NVIDIA's compiler and headers, from Python's package index, into `target/nvidia`.
//!
//! No GPU, driver or toolkit is needed for them. Versions and hashes are in `tensor/cuda/nvidia.txt`; pip checks
//! them. Nothing is installed into the machine.

use crate::tools;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

const PINNED: &str = "tensor/cuda/nvidia.txt";

pub fn run() -> Result<ExitCode> {
    println!("{}", install()?.display());
    Ok(ExitCode::SUCCESS)
}

/// The folder with `nvidia/cu13/lib` and `include`, after installing what is not there or is of other versions.
pub fn install() -> Result<PathBuf> {
    let pinned = tools::root().join(PINNED);
    let wanted = std::fs::read_to_string(&pinned).with_context(|| format!("read {PINNED}"))?;
    let dir = tools::release_dir()?.with_file_name("nvidia");
    let is_there = |dir: &Path| std::fs::read_to_string(dir.join("installed.txt")).is_ok_and(|text| text == wanted);
    if is_there(&dir) {
        return Ok(dir);
    }
    let Some(python) = tools::which("python3") else { bail!("no python3 on PATH, whose pip would fetch it") };
    println!("installing NVIDIA's compiler into {}", dir.display());
    let partial = dir.with_file_name(format!("nvidia.{}", std::process::id()));
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    // Without a network it is soon over: the tests then say what they lack.
    pip.args(["--retries", "1", "--timeout", "30", "--only-binary", ":all:", "--no-compile", "--target"])
        .arg(&partial)
        .arg("-r")
        .arg(&pinned);
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    let installed = tools::run(pip.stdin(Stdio::null()));
    let done = installed.and_then(|()| settle(&partial, &dir, &wanted));
    if done.is_err() && partial.exists() {
        std::fs::remove_dir_all(&partial).with_context(|| format!("remove {}", partial.display()))?;
    }
    // Another run may have been quicker.
    match done {
        Err(error) if !is_there(&dir) => Err(error),
        _ => Ok(dir),
    }
}

/// Whole or not at all: the note of what is there is written last, the folder is renamed.
fn settle(partial: &Path, dir: &Path, wanted: &str) -> Result<()> {
    let lib = partial.join("nvidia/cu13/lib");
    // Half of 230 MB: what is linked statically, and a second build of the compiler.
    for entry in std::fs::read_dir(&lib).with_context(|| format!("read {}", lib.display()))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.contains(".alt.") || name.ends_with(".a") {
            std::fs::remove_file(entry.path()).with_context(|| format!("remove {name}"))?;
        }
    }
    std::fs::write(partial.join("installed.txt"), wanted).context("note what is installed")?;
    if dir.exists() {
        std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    std::fs::rename(partial, dir).with_context(|| format!("rename to {}", dir.display()))
}
