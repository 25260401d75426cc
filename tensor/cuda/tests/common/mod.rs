//! What the tests of this crate share: libraries made with the machine's C compiler, and the pinned ones of NVIDIA's.

// Each test program uses a part of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// This crate's, also where another crate's tests take this file in.
pub fn folder() -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let folders = above.flat_map(|dir| [dir.to_path_buf(), dir.join("tensor/cuda")]);
    let mut holding = folders.filter(|dir| dir.join("tests/fake/libcuda.c").exists());
    holding.next().expect("the fakes lie in this crate")
}

/// Folders for libraries that a test makes.
pub fn temp() -> TempDir {
    tempfile::tempdir().expect("the system has room for a folder")
}

/// Makes a library in a folder from a file of `tests/fake`. Each call makes a file of its own, and so a state of its own.
pub fn make(source: &str, to: &Path, flags: &[&str]) -> PathBuf {
    let source = folder().join("tests/fake").join(source);
    let mut cc = Command::new("cc");
    // Lazily bound, it is what it is asked for; unused arguments are the signature's.
    cc.args(["-shared", "-fPIC", "-O1", "-pthread", "-w", "-o"]).arg(to).arg(&source).args(flags);
    let made = cc.output().expect("Rust's linker is here, and so is `cc`");
    assert!(made.status.success(), "{source:?}: {}", String::from_utf8_lossy(&made.stderr));
    to.to_path_buf()
}

/// A driver without a GPU, alone in a folder.
pub fn driver_in(dir: &Path) -> PathBuf {
    make("libcuda.c", &dir.join("libcuda.so.1"), &[])
}

/// A compiler that knows no CUDA, and its builtins.
pub fn nvrtc_in(dir: &Path, flags: &[&str]) -> PathBuf {
    make("libnvrtc.c", &dir.join("libnvrtc-builtins.so.13.0"), &["-DBUILTINS"]);
    make("libnvrtc.c", &dir.join("libnvrtc.so.13"), flags)
}

/// Where `cargo xtask` installs NVIDIA's pinned packages, if it has: `nvidia/cu13/{lib,include}` below it.
pub fn nvidia() -> Result<PathBuf, String> {
    let dir = match std::env::var_os("ELASTIC_NVIDIA_DIR") {
        Some(dir) => PathBuf::from(dir),
        // CARGO_TARGET_TMPDIR is `tmp` in the target directory.
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("nvidia"),
    };
    match dir.join("nvidia/cu13/lib/libnvrtc.so.13").exists() {
        true => Ok(dir.join("nvidia/cu13")),
        false => Err(format!("no CUDA compiler in {}: `cargo xtask nvidia` installs it", dir.display())),
    }
}

/// A driver and a compiler, alone in a folder, that run kernels on the processor.
pub fn emulator_in(dir: &Path) {
    driver_in(dir);
    let emulator = folder().join("tests/fake/emulator.h");
    let text = std::fs::read(&emulator).expect("the emulator's source is here");
    // The version is part of the cache's key: another emulator is another compiler.
    let version = text.iter().fold(5381u32, |sum, byte| sum.wrapping_mul(33) ^ u32::from(*byte)) % 1_000_000;
    let named = format!("-DEMULATOR=\"{}\"", emulator.display());
    nvrtc_in(dir, &["-DEMULATES", &named, &format!("-DMINOR={version}")]);
}

/// Where what the emulating compiler makes is kept from one run of the tests to the next.
pub fn emulated_cubins() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated-cubins")
}
