//! `cargo xtask gpu-bundle`: all that is to be run once where there is a GPU, as a folder that needs nothing but a driver.
//!
//! The kernels' machine code is made here, by NVIDIA's compiler, and lies once beside the programs (`ELASTIC_CUBINS`):
//! `bench/gpu/run.sh` needs no compiler, toolkit or Python. What the parts do is their programs' business.

use crate::{nvidia, tools};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// So that it can be carried to a machine by any means.
const BYTES_MAX: u64 = 64 << 20;

/// The oldest glibc that its programs may need: Ubuntu 22.04's is 2.35, RHEL 9's 2.34.
const GLIBC_MAX: (u32, u32) = (2, 34);

const SELFTEST: &str = "elastic-selftest";

/// What the programs are built of, and their names. One build: asked for apart, libraries would be compiled twice.
const PACKAGES: [&str; 4] = ["elastic", "elastic-cuda", "elastic-nccl", "elastic-models"];
const PROGRAMS: [(&str, &str); 6] = [
    ("--bin", "elastic"),
    ("--bin", SELFTEST),
    ("--bin", "elastic-nccl-selftest"),
    ("--example", "step"),
    ("--test", "ops"),
    ("--test", "networks"),
];

/// Files of the repository, and where they are in the bundle.
const FILES: [(&str, &str); 8] = [
    ("bench/gpu/run.sh", "run.sh"),
    ("bench/gpu/processes.sh", "processes.sh"),
    ("bench/step/compare.py", "bench/compare.py"),
    ("bench/step/gpu.py", "bench/gpu.py"),
    ("bench/step/peer.py", "bench/peer.py"),
    ("bench/step/side.py", "bench/side.py"),
    ("examples/digits/job.toml", "digits/job.toml"),
    ("examples/digits/digits.csv.gz", "digits/digits.csv.gz"),
];

pub fn run() -> Result<ExitCode> {
    let bundle = tools::release_dir()?.with_file_name("gpu-bundle");
    if bundle.exists() {
        std::fs::remove_dir_all(&bundle).with_context(|| format!("remove {}", bundle.display()))?;
    }
    for dir in ["bench", "cubins", "digits"] {
        std::fs::create_dir_all(bundle.join(dir)).with_context(|| format!("create {dir} in the bundle"))?;
    }
    let libraries = nvidia::install_compiler()?.join("nvidia/cu13/lib");
    let programs = build()?;
    let mut compile = Command::new(&programs[SELFTEST]);
    compile.arg("compile").arg(bundle.join("cubins")).env("ELASTIC_CUDA_LIBS", format!("{}:-", libraries.display()));
    tools::run(&mut compile)?;
    for (_, name) in PROGRAMS {
        add_program(&programs[name], &bundle.join(name))?;
    }
    for (from, to) in FILES {
        // Keeps the mode: scripts stay programs.
        std::fs::copy(tools::root().join(from), bundle.join(to)).with_context(|| format!("copy {from}"))?;
    }
    std::fs::write(bundle.join("version.txt"), version()).context("write version.txt")?;

    let bytes = size(&bundle)?;
    if bytes > BYTES_MAX {
        bail!("the bundle has {bytes} bytes, more than {BYTES_MAX}: it must carry less");
    }
    println!(
        "{}: {:.1} MiB; carry it to a machine with a GPU and start run.sh",
        bundle.display(),
        bytes as f64 / 1048576.0
    );
    Ok(ExitCode::SUCCESS)
}

/// Builds all programs; gives their files by name.
fn build() -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = tools::cargo();
    cargo.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
    cargo.args(PACKAGES.iter().flat_map(|package| ["-p", package]));
    cargo.args(PROGRAMS.iter().flat_map(|(kind, name)| [kind, name]));
    // Machine code lies beside the programs, once.
    cargo.env_remove("ELASTIC_EMBED_CUBINS").stderr(Stdio::inherit());
    let said = cargo.output().context("start cargo build")?;
    if !said.status.success() {
        bail!("{cargo:?} ended with {}", said.status);
    }
    let programs: BTreeMap<String, PathBuf> =
        String::from_utf8_lossy(&said.stdout).lines().filter_map(program_of).collect();
    if let Some((_, missing)) = PROGRAMS.iter().find(|(_, name)| !programs.contains_key(*name)) {
        bail!("cargo built no {missing}");
    }
    Ok(programs)
}

/// Name and file of the program that a line of cargo's messages tells of.
fn program_of(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let (name, file) = (message["target"]["name"].as_str()?, message["executable"].as_str()?);
    Some((name.to_string(), file.into()))
}

fn add_program(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    if tools::which("strip").is_some() {
        tools::run(Command::new("strip").arg(to))?;
    }
    let bytes = std::fs::read(to).with_context(|| format!("read {}", to.display()))?;
    let (major, minor) = glibc_of(&bytes);
    if (major, minor) > GLIBC_MAX {
        bail!("{} needs glibc {major}.{minor}, newer than {}.{}", to.display(), GLIBC_MAX.0, GLIBC_MAX.1);
    }
    Ok(())
}

/// The newest version of glibc that a program names.
fn glibc_of(program: &[u8]) -> (u32, u32) {
    const NAME: &[u8] = b"GLIBC_2.";
    let places = program.windows(NAME.len()).enumerate().filter(|(_, bytes)| *bytes == NAME);
    let minors = places.map(|(at, _)| {
        let digits = program[at + NAME.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        digits.fold(0u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0')))
    });
    (2, minors.max().unwrap_or(0))
}

/// What was built when, for whoever finds a figure later.
fn version() -> String {
    let say = |program: &str, args: &[&str]| {
        let said = Command::new(program).args(args).current_dir(tools::root()).output().ok()?;
        said.status.success().then(|| String::from_utf8_lossy(&said.stdout).trim().to_string())
    };
    let or_unknown = |found: Option<String>| found.unwrap_or_else(|| "unknown".into());
    let commit = or_unknown(say("git", &["describe", "--always", "--dirty", "--abbrev=12"]));
    let when = or_unknown(say("date", &["-u", "+%Y-%m-%d %H:%M"]));
    format!("elastic {commit}, bundled {when} UTC, {}\n", or_unknown(say("rustc", &["--version"])))
}

fn size(dir: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        let about = entry.metadata().with_context(|| format!("read {}", entry.path().display()))?;
        bytes += if about.is_dir() { size(&entry.path())? } else { about.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_glibc_that_a_program_names_is_found() {
        assert_eq!(glibc_of(b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_2.17\0"), (2, 34));
        assert_eq!(glibc_of(b"GLIBC_2.x"), (2, 0));
        assert_eq!(glibc_of(b""), (2, 0));
    }

    #[test]
    fn programs_are_read_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","target":{"name":"ops"},"executable":"/t/deps/ops-1"}"#;
        assert_eq!(program_of(line), Some(("ops".into(), "/t/deps/ops-1".into())));
        let library = r#"{"reason":"compiler-artifact","target":{"name":"ops"},"executable":null}"#;
        assert_eq!((program_of(library), program_of("   Compiling ops")), (None, None));
    }

    #[test]
    fn what_the_bundle_carries_is_there() {
        for (file, _) in FILES {
            assert!(tools::root().join(file).is_file(), "{file}");
        }
    }
}
