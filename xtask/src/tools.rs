//! What a chore needs from the machine: finding programs, installing the few that tests start, paths of the build.

use crate::nvidia;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The root of the repository, whatever folder the chore was started in.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository").to_path_buf()
}

/// The cargo that started us.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Where release programs are put.
pub fn release_dir() -> Result<PathBuf> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    let target = metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(Path::new(target).join("release"))
}

/// The path of a program, if there is one on PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a command to its end, with its output shown.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// Installs what tests need of others, where that is possible; says how where it is not.
///
/// What is missing is no failure: the tests that need it say so themselves and are counted as skipped.
pub fn install_missing() {
    match which("etcd").map_or_else(install_etcd, |_| Ok(())) {
        Ok(()) => {}
        Err(error) => println!("etcd is not installed ({error:#}); tests that need a real etcd will be skipped"),
    }
    match nvidia::install_compiler() {
        Ok(_) => {}
        Err(error) => println!("no CUDA compiler ({error:#}); tests that compile kernels will be skipped"),
    }
    match nvidia::install_nccl() {
        Ok(_) => {}
        Err(error) => println!("no NCCL ({error:#}); tests of NVIDIA's own library will be skipped"),
    }
    // Says itself what is wrong.
    match run(Command::new(root().join("tests/s3-server")).stdin(Stdio::null())) {
        Ok(()) => {}
        Err(error) => println!("no S3 server ({error:#}); tests that need a real store will be skipped"),
    }
}

fn install_etcd() -> Result<()> {
    const HOW: &str = "install it with `apt-get install etcd-server`, or put `etcd` 3.4 or later on PATH";
    if which("apt-get").is_none() {
        bail!("no apt-get here: {HOW}");
    }
    if !is_root() {
        bail!("only root may install packages: {HOW}");
    }
    println!("installing etcd-server from the system's packages");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    };
    let install = ["install", "-y", "--no-install-recommends", "etcd-server"];
    // The lists of a fresh container are empty; of a machine in use they are usually good enough.
    if run(apt(&install).stderr(Stdio::null())).is_err() {
        run(&mut apt(&["update"])).context(HOW)?;
        run(&mut apt(&install)).context(HOW)?;
    }
    println!("installed etcd-server");
    which("etcd").map(|_| ()).context("the package is installed, yet there is no `etcd` on PATH")
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
