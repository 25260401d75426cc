//! The commands of README.md, as they stand there, in a copy of what a clone has.

use crate::cluster::{Guarded, elastic, free_port, repo, wait_for};
use elastic_tests::skip::skip;
use serde_json::Value;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The lines of the code fences under a heading.
fn commands(heading: &str) -> Vec<String> {
    let text = std::fs::read_to_string(repo().join("README.md")).expect("README.md");
    let (_, rest) = text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no heading {heading}"));
    let section = rest.split("\n## ").next().unwrap_or_default();
    let fences = section.split("```").skip(1).step_by(2);
    fences.flat_map(str::lines).filter(|line| !line.trim().is_empty()).map(str::to_string).collect()
}

/// What git knows, and no more: what a person's own runs left must not be needed. None: this is no clone.
fn clone_to(dir: &Path) -> Option<usize> {
    let listed =
        Command::new("git").args(["ls-files", "-z"]).current_dir(repo()).stderr(Stdio::null()).output().ok()?;
    let names = String::from_utf8(listed.stdout).ok().filter(|_| listed.status.success())?;
    let mut copied = 0;
    for name in names.split_terminator('\0') {
        let to = dir.join(name);
        std::fs::create_dir_all(to.parent().expect("a file lies in a folder")).expect("a folder");
        // One that was removed and is not committed is not there.
        copied += usize::from(std::fs::copy(repo().join(name), to).is_ok());
    }
    (copied > 0).then_some(copied)
}

/// A `cargo` that runs the program that is built already, and only if it is asked for as the README does.
fn cargo_of(dir: &Path) -> String {
    let bin = dir.join("shim");
    std::fs::create_dir_all(&bin).expect("a folder");
    let script = format!(
        "#!/bin/sh\n[ \"$1 $2 $3 $4 $5\" = 'run --release --bin elastic --' ] || exit 99\nshift 5\nexec '{}' \"$@\"\n",
        elastic().display()
    );
    let path = bin.join("cargo");
    std::fs::write(&path, script).expect("a script");
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("it may be run");
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default())
}

#[test]
fn the_three_commands_of_the_readme_submit_serve_and_get_the_right_digit() {
    let test = "the_three_commands_of_the_readme_submit_serve_and_get_the_right_digit";
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip(test, "no curl on PATH");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let Some(_) = clone_to(dir.path()) else { return skip(test, "no git, or no clone") };
    let lines = commands("Three commands to a served answer");
    let [submit, serve, ask] = &lines[..] else { panic!("they are three: {lines:?}") };
    // Port 8000 of this machine may be somebody's.
    let port = free_port();
    let [serve, ask] = [serve, ask].map(|line| {
        assert!(line.contains("127.0.0.1:8000"), "{line}");
        line.replace("127.0.0.1:8000", &format!("127.0.0.1:{port}"))
    });
    let path = cargo_of(dir.path());
    let shell = |line: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", line]).current_dir(dir.path()).env("PATH", &path).env("XDG_CONFIG_HOME", dir.path());
        shell.env_remove("ELASTIC_COORDINATOR").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell
    };
    let out = shell(submit).output().expect("bash starts");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    // `exec`, so that what is killed at the end is the server itself.
    let mut server = shell(&format!("exec {serve}"));
    let mut server = Guarded(server.stderr(Stdio::null()).spawn().expect("bash starts"));
    wait_for("the server", 30, || {
        assert!(server.0.try_wait().expect("its state").is_none(), "the server has ended");
        TcpStream::connect(("127.0.0.1", port)).ok()
    });
    let out = shell(&ask).output().expect("bash starts");
    let answer = String::from_utf8_lossy(&out.stdout).into_owned();
    let read: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(read["predictions"][0]["class"], 7, "{answer}");
}
