//! Puts the sources of all kernels into the library, and machine code where a build is given some.
//!
//! The list is that of the files in `kernels/`. `ELASTIC_EMBED_CUBINS` names a folder of cubins, as
//! `elastic-selftest compile` writes it; without it none are embedded, and kernels are compiled when they are needed.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    let kernels = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where it is")).join("kernels");
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-env-changed=ELASTIC_EMBED_CUBINS");
    let mut text = String::new();
    table(&mut text, "KERNELS", "&str", "include_str!", &files(&kernels, "cu"));
    table(&mut text, "HEADERS", "&str", "include_str!", &files(&kernels, "cuh"));
    let cubins = std::env::var_os("ELASTIC_EMBED_CUBINS").map(PathBuf::from);
    if let Some(folder) = &cubins {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    table(&mut text, "CUBINS", "&[u8]", "include_bytes!", &cubins.map_or(Vec::new(), |folder| files(&folder, "cubin")));
    let out = Path::new(&std::env::var_os("OUT_DIR").expect("cargo says where to write")).join("embedded.rs");
    std::fs::write(&out, text).unwrap_or_else(|error| panic!("write {}: {error}", out.display()));
}

/// The files with an ending, by name.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("read {}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|found| found == ending));
    files.sort();
    files
}

fn table(text: &mut String, name: &str, kind: &str, include: &str, files: &[PathBuf]) {
    writeln!(text, "static {name}: &[(&str, {kind})] = &[").expect("a string takes any text");
    for file in files {
        let name = file.file_name().expect("a file has a name").to_string_lossy();
        writeln!(text, "    ({name:?}, {include}({file:?})),").expect("a string takes any text");
    }
    writeln!(text, "];").expect("a string takes any text");
}
