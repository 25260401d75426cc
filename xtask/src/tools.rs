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
    match which("kubectl").map_or_else(install_kubectl, |_| Ok(())) {
        Ok(()) => {}
        Err(error) => println!("kubectl is not installed ({error:#}); tests of the manifests will be skipped"),
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
    install("etcd", &["etcd-server"], HOW)
}

fn install_kubectl() -> Result<()> {
    const HOW: &str = "install it with `apt-get install kubernetes-client`, or put `kubectl` 1.27 or later on PATH";
    // Kubernetes' and Google's own packages have the first name, Debian's the second.
    install("kubectl", &["kubectl", "kubernetes-client"], HOW)
}

/// Installs a program from the first of the system's packages that can be had.
fn install(program: &str, packages: &[&str], how: &'static str) -> Result<()> {
    if which("apt-get").is_none() {
        bail!("no apt-get here: {how}");
    }
    if !is_root() {
        bail!("only root may install packages: {how}");
    }
    println!("installing {program} from the system's packages");
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    let any = || packages.iter().any(|p| run(&mut apt(&["install", "-y", "--no-install-recommends", p])).is_ok());
    // The lists of a fresh container are empty; of a machine in use they are usually good enough.
    if !any() {
        run(&mut apt(&["update"])).context(how)?;
        if !any() {
            bail!("no package has it: {how}");
        }
    }
    println!("installed {program}");
    which(program).map(|_| ()).with_context(|| format!("the package is installed, yet there is no `{program}` on PATH"))
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
