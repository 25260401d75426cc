//! How a test says that it could not run here. Tests of crates that cannot see this one print the same line
//! themselves (docs/testing.md); `cargo xtask test` counts both.

use std::io::Write;

/// Call this and return: `skip("a_real_etcd_keeps_the_leader", "no etcd on PATH")`.
///
/// A skip is for what the machine lacks, never for what is broken.
pub fn skip(test: &str, reason: &str) {
    let line = format!("{test}: {}\n", reason.replace('\n', " "));
    print!("skipped: {line}");
    let Some(path) = std::env::var_os("ELASTIC_SKIP_FILE") else { return };
    let file = std::fs::OpenOptions::new().append(true).create(true).open(&path);
    // One write of one short line: lines of tests that run side by side do not mix.
    if let Err(error) = file.and_then(|mut file| file.write_all(line.as_bytes())) {
        panic!("{}: {error}", std::path::Path::new(&path).display());
    }
}
