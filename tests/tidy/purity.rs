//! Pure code is a function of its arguments: no clock, file, socket, thread, environment, and no order that a hash
//! decides. That is what lets the simulator replay a whole cluster from a seed.

use crate::{nothing, repo};

/// Where pure code lives.
const PURE: &[&str] = &["spec/src/", "coordinator/control/src/", "worker/member/src/", "worker/agent/src/converge"];

/// What it may not name, and what to do instead.
const FOREIGN: &[(&str, &str)] = &[
    ("std::time", "time is an argument, in ms"),
    ("Instant::now", "time is an argument, in ms"),
    ("SystemTime", "time is an argument, in ms"),
    ("std::net", "sockets are the shell's"),
    ("std::fs", "files are the shell's"),
    ("std::env::", "the environment is read once, at the edge"),
    ("std::thread", "threads are the shell's"),
    ("std::process", "processes are the shell's"),
    ("std::io", "reading and writing is the shell's"),
    ("std::sync", "a state machine has one owner"),
    ("tokio", "async lives at the edges"),
    ("tonic", "wire types stop at proto"),
    ("prost", "wire types stop at proto"),
    ("async fn", "async lives at the edges"),
    ("HashMap", "use BTreeMap: its order is the same in every run"),
    ("HashSet", "use BTreeSet: its order is the same in every run"),
    ("RandomState", "seeds are arguments"),
];

/// (path, word, reason)
const EXCEPTIONS: &[(&str, &str, &str)] = &[];

#[test]
fn pure_code_is_a_function_of_its_arguments() {
    let mut found = Vec::new();
    let mut used = Vec::new();
    for file in repo::rust().iter().filter(|f| PURE.iter().any(|p| f.path.starts_with(p)) && !f.is_test_code()) {
        for (number, line) in file.code_lines() {
            for (word, cure) in FOREIGN.iter().filter(|(word, _)| line.contains(word)) {
                if EXCEPTIONS.iter().any(|row| row.0 == file.path && row.1 == *word) {
                    used.push((file.path.clone(), *word));
                } else {
                    found.push(format!("{}:{number}: {word} ({cure})", file.path));
                }
            }
        }
    }
    for (path, word, _) in EXCEPTIONS.iter().filter(|row| !used.iter().any(|u| u.0 == row.0 && u.1 == row.1)) {
        found.push(format!("{path} no longer needs its exception for {word}"));
    }
    nothing(found, "move it into the shell around the pure code");
}
