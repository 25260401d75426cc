//! What the tests of this crate share: the fake NCCL, made by the machine's C compiler, and NVIDIA's pinned one.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub fn temp() -> TempDir {
    tempfile::tempdir().expect("the system has room for a folder")
}

pub fn fake_source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake/libnccl.c")
}

/// Makes `libnccl.so.2` in a folder. Each is a library of its own, with a state of its own.
pub fn fake_in(dir: &Path, flags: &[&str]) -> PathBuf {
    compile(&fake_source(), dir, flags)
}

/// Any library in C as `libnccl.so.2`.
pub fn compile(source: &Path, dir: &Path, flags: &[&str]) -> PathBuf {
    let to = dir.join("libnccl.so.2");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-O1", "-pthread", "-Wall", "-o"]).arg(&to).arg(source).args(flags);
    let made = cc.output().expect("Rust's linker is here, and so is `cc`");
    assert!(made.status.success(), "{source:?}: {}", String::from_utf8_lossy(&made.stderr));
    to
}

/// NVIDIA's NCCL, where `cargo xtask nvidia` installs it: `lib` and `include` below it.
pub fn nccl() -> Result<PathBuf, String> {
    // CARGO_TARGET_TMPDIR is `tmp` in the target directory.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("nvidia-nccl").join("nvidia/nccl");
    match dir.join("lib/libnccl.so.2").exists() {
        true => Ok(dir),
        false => Err(format!("no NCCL in {}: `cargo xtask nvidia` installs it", dir.display())),
    }
}
