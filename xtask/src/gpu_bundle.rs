//! `cargo xtask gpu-bundle`: all that is to be run once where there is a GPU, as a folder that needs nothing but a driver.
//!
//! The kernels' machine code is made here, by NVIDIA's compiler, and put into the program: `run.sh` needs no compiler,
//! toolkit or Python. What the self-test does is `elastic_cuda::selftest`'s business.

use crate::{nvidia, tools};
use anyhow::{Context, Result, bail};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// So that it can be carried to a machine by any means.
const BYTES_MAX: u64 = 64 << 20;

const PROGRAM: &str = "elastic-selftest";

const RUN: &str = r#"#!/bin/sh
# Runs the self-test on this machine's GPU. All that it says is kept in selftest.log beside this file.
# Exit codes: 0 all passed, 1 something failed, 3 there is no GPU to test.
cd "$(dirname "$0")" || exit 2
{
  date -u
  uname -srm
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  ./elastic-selftest
  echo "self-test: exit code $?"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck; do
      compute-sanitizer --tool "$tool" --error-exitcode 1 ./elastic-selftest >"$tool.log" 2>&1
      code=$?
      echo "compute-sanitizer $tool: exit code $code"
      [ "$code" = 0 ] || tail -n 40 "$tool.log"
    done
  else
    echo "compute-sanitizer is not on PATH: memcheck, racecheck and initcheck were not run"
  fi
} 2>&1 | tee selftest.log
codes=$(sed -n 's/.*exit code \([0-9]*\)$/\1/p' selftest.log)
for code in $codes; do
  [ "$code" = 0 ] || exit "$code"
done
"#;

pub fn run() -> Result<ExitCode> {
    let release = tools::release_dir()?;
    let (bundle, cubins) = (release.with_file_name("gpu-bundle"), release.with_file_name("gpu-bundle-cubins"));
    for dir in [&bundle, &cubins] {
        if dir.exists() {
            std::fs::remove_dir_all(dir).with_context(|| format!("remove {}", dir.display()))?;
        }
        std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let libraries = nvidia::install_compiler()?.join("nvidia/cu13/lib");

    tools::run(&mut build())?;
    let mut compile = Command::new(release.join(PROGRAM));
    tools::run(compile.arg("compile").arg(&cubins).env("ELASTIC_CUDA_LIBS", format!("{}:-", libraries.display())))?;
    tools::run(build().env("ELASTIC_EMBED_CUBINS", &cubins))?;

    let program = bundle.join(PROGRAM);
    std::fs::copy(release.join(PROGRAM), &program).context("copy the program")?;
    if tools::which("strip").is_some() {
        tools::run(Command::new("strip").arg(&program))?;
    }
    let script = bundle.join("run.sh");
    std::fs::write(&script, RUN).context("write run.sh")?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).context("make run.sh a program")?;

    let bytes = size(&bundle)?;
    if bytes > BYTES_MAX {
        bail!("the bundle has {bytes} bytes, more than {BYTES_MAX}: it must embed less");
    }
    println!(
        "{}: {:.1} MiB; carry it to a machine with a GPU and start run.sh",
        bundle.display(),
        bytes as f64 / 1048576.0
    );
    Ok(ExitCode::SUCCESS)
}

fn build() -> Command {
    let mut cargo = tools::cargo();
    cargo.args(["build", "--release", "-p", "elastic-cuda", "--bin", PROGRAM]).env_remove("ELASTIC_EMBED_CUBINS");
    cargo
}

fn size(dir: &Path) -> Result<u64> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let sizes = entries.map(|entry| Ok(entry?.metadata()?.len()));
    sizes.sum::<std::io::Result<u64>>().with_context(|| format!("read {}", dir.display()))
}
