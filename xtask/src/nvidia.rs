//! `cargo xtask nvidia`: NVIDIA's compiler, headers and NCCL, from Python's package index, into folders of `target`.
//!
//! No GPU, driver or toolkit is needed for them. Versions and hashes are in files beside the crates that use them; pip
//! checks them. Nothing is installed into the machine.

use crate::tools;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// What is installed together.
struct Set {
    name: &'static str,
    /// Versions and hashes, as pip reads them.
    pinned: &'static str,
    /// In the target directory.
    folder: &'static str,
    libraries: &'static str,
}

const COMPILER: Set =
    Set { name: "compiler", pinned: "tensor/cuda/nvidia.txt", folder: "nvidia", libraries: "nvidia/cu13/lib" };
const NCCL: Set = Set {
    name: "NCCL",
    pinned: "worker/collectives/nccl/nvidia.txt",
    folder: "nvidia-nccl",
    libraries: "nvidia/nccl/lib",
};

pub fn run() -> Result<ExitCode> {
    println!("{}", install_compiler()?.display());
    println!("{}", install_nccl()?.display());
    Ok(ExitCode::SUCCESS)
}

/// The folder with `nvidia/cu13/lib` and `include`, after installing what is not there or is of other versions.
pub fn install_compiler() -> Result<PathBuf> {
    install(&COMPILER)
}

/// The folder with `nvidia/nccl/lib` and `include`.
pub fn install_nccl() -> Result<PathBuf> {
    install(&NCCL)
}

fn install(set: &Set) -> Result<PathBuf> {
    let pinned = tools::root().join(set.pinned);
    let wanted = std::fs::read_to_string(&pinned).with_context(|| format!("read {}", set.pinned))?;
    let dir = tools::release_dir()?.with_file_name(set.folder);
    let is_there = |dir: &Path| std::fs::read_to_string(dir.join("installed.txt")).is_ok_and(|text| text == wanted);
    if is_there(&dir) {
        return Ok(dir);
    }
    let Some(python) = tools::which("python3") else { bail!("no python3 on PATH, whose pip would fetch it") };
    println!("installing NVIDIA's {} into {}", set.name, dir.display());
    let partial = dir.with_file_name(format!("{}.{}", set.folder, std::process::id()));
    let mut pip = Command::new(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes"]);
    // Without a network it is soon over: the tests then say what they lack.
    pip.args(["--retries", "1", "--timeout", "30", "--only-binary", ":all:", "--no-compile", "--target"])
        .arg(&partial)
        .arg("-r")
        .arg(&pinned);
    pip.env("PIP_ROOT_USER_ACTION", "ignore");
    let installed = tools::run(pip.stdin(Stdio::null()));
    let done = installed.and_then(|()| settle(set, &partial, &dir, &wanted));
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
fn settle(set: &Set, partial: &Path, dir: &Path, wanted: &str) -> Result<()> {
    let lib = partial.join(set.libraries);
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
