//! The rules of this repository that no compiler knows, as tests: which crate may know which, what pure code may
//! touch, where `unsafe` may stand, which words are not used, and that documents say what is there.
//!
//! A rule that is broken names the file, the line and the way out. Each exception is a row with its reason in the
//! table of the rule; an exception that is no longer needed fails too. Formatting and lints are `cargo xtask lint`.

mod arrows;
mod code;
mod docs;
mod purity;
mod repo;

use std::fmt::Write;

/// Fails with all that was found, one a line, and what to do about it.
fn nothing(found: Vec<String>, cure: &str) {
    if found.is_empty() {
        return;
    }
    let mut text = String::new();
    found.iter().for_each(|line| writeln!(text, "  {line}").expect("a string takes any text"));
    panic!("{} found:\n{text}{cure}", found.len());
}
