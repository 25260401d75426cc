//! The tutorials, word for word: what they tell to type is run in one shell, and what they show is what it prints.

use crate::cluster::{elastic, repo};
use elastic_tests::skip::skip;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A page, taken apart.
pub struct Tutorial {
    /// All lines to type, in their order.
    pub script: String,
    /// Lines that it shows, as pieces between `…`.
    pub shown: Vec<Vec<String>>,
}

pub fn read(name: &str) -> Tutorial {
    let path = repo().join("docs/tutorials").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut script, mut shown, mut within) = (String::new(), Vec::new(), None);
    for line in text.lines() {
        match (line.strip_prefix("```"), within) {
            (Some(kind), None) => within = Some(kind),
            (Some(_), Some(_)) => within = None,
            (None, Some("sh")) => script += &format!("{line}\n"),
            (None, Some("output")) if !line.trim().is_empty() => {
                shown.push(line.trim().split('…').map(str::to_string).collect());
            }
            _ => {}
        }
    }
    assert!(!script.is_empty() && !shown.is_empty(), "{name} has nothing to type or shows nothing");
    Tutorial { script, shown }
}

/// The pieces stand in the line in this order; the first begins it, and the last ends it.
fn agrees(line: &str, pieces: &[String]) -> bool {
    let line = line.trim();
    let (first, last) = (&pieces[0], &pieces[pieces.len() - 1]);
    let Some(rest) = line.strip_prefix(first.as_str()) else { return false };
    if pieces.len() == 1 {
        return rest.is_empty();
    }
    let Some(rest) = rest.strip_suffix(last.as_str()) else { return false };
    let mut middle = pieces[1..pieces.len() - 1].iter();
    middle.try_fold(rest, |rest, piece| rest.split_once(piece.as_str()).map(|(_, rest)| rest)).is_some()
}

fn free_port() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("127.0.0.1:{}", listener.local_addr().expect("its address").port())
}

/// Runs a page in a folder that has the repository's examples in it.
fn follow(name: &str, env: &[(&str, &str)]) {
    follow_in(name, read(name), env, &["bash"]);
}

/// The same in the shell that `words` start.
pub fn follow_in(name: &str, tutorial: Tutorial, env: &[(&str, &str)], words: &[&str]) {
    let home = tempfile::tempdir().expect("a temporary directory");
    ["examples", "deploy"].iter().for_each(|folder| copy(&repo().join(folder), &home.path().join(folder)));
    // Other tests run beside it: a port of its own for each that the page names.
    let ports = ["127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:7070"];
    let script = ports.iter().fold(tutorial.script, |script, port| script.replace(port, &free_port()));
    let path = format!(
        "{}:{}",
        elastic().parent().expect("elastic lies in a folder").display(),
        std::env::var("PATH").expect("PATH")
    );
    let all = format!("set -eu\ntrap 'kill $(jobs -p) 2> /dev/null; wait' EXIT\n{script}");
    let mut shell = Command::new(words[0]);
    // A page may start servers: its group ends as a whole, whatever happens.
    shell.args(&words[1..]).arg("-c").arg(all).current_dir(home.path()).env("PATH", path).process_group(0);
    shell.env("XDG_CONFIG_HOME", home.path()).env_remove("ELASTIC_COORDINATOR").envs(env.iter().copied());
    let log = home.path().join("said.txt");
    let file = std::fs::File::create(&log).expect("a file");
    shell.stdin(Stdio::null()).stdout(file.try_clone().expect("a second handle")).stderr(file);
    let mut child = Group(shell.spawn().expect("bash starts"));
    let status =
        crate::cluster::wait_for(&format!("the end of {name}"), 180, || child.0.try_wait().expect("its state"));
    let said = std::fs::read_to_string(&log).expect("what it said");
    assert!(status.success(), "{name} ended with {status}:\n{said}");
    let mut lines = said.lines();
    for pieces in &tutorial.shown {
        let found = lines.any(|line| agrees(line, pieces));
        assert!(
            found,
            "{name} shows a line that was not printed in this order: {}\nprinted:\n{said}",
            pieces.join("…")
        );
    }
}

/// All that a page has started ends with its test.
struct Group(std::process::Child);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.0.id())]).stderr(Stdio::null()).status();
        let _ = self.0.wait();
    }
}

pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder").flatten() {
        let (path, to): (PathBuf, PathBuf) = (entry.path(), to.join(entry.file_name()));
        match path.is_dir() {
            true => copy(&path, &to),
            false => drop(std::fs::copy(&path, &to).expect("a copy")),
        }
    }
}

#[test]
fn the_tutorial_on_digits_works_as_it_is_written() {
    follow("digits.md", &[]);
}

#[test]
fn the_tutorial_on_text_works_as_it_is_written() {
    follow("text.md", &[]);
}

#[test]
fn the_tutorial_on_a_pytorch_script_works_as_it_is_written() {
    const NAME: &str = "the_tutorial_on_a_pytorch_script_works_as_it_is_written";
    if std::env::var_os("ELASTIC_FULL").is_none() {
        return skip(NAME, "it takes a minute: run with --full");
    }
    match crate::torch::python() {
        Ok(python) => follow("pytorch.md", &[("PYTHON_EXEC", &python)]),
        Err(why) => skip(NAME, &why),
    }
}

#[test]
fn what_a_page_shows_is_compared_with_what_was_printed() {
    let pieces = |shown: &str| shown.split('…').map(str::to_string).collect::<Vec<_>>();
    assert!(agrees("  accuracy 97.49 %  (350 of 359)", &pieces("accuracy 97.… %  (… of 359)")));
    assert!(!agrees("  accuracy 98.49 %  (350 of 359)", &pieces("accuracy 97.… %  (… of 359)")));
    assert!(agrees("done at step 30", &pieces("done at step 30")));
    assert!(!agrees("done at step 300", &pieces("done at step 30")));
}
