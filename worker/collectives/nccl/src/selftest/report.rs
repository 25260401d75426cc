//! What the self-test says, each thing as it is done: lines for a person, or JSON, one object a line.

use serde_json::{Value, json};
use std::io::{self, Write};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Text,
    Json,
}

/// A thing that was done, and what there is to say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    pub ms: u64,
    pub words: String,
}

pub struct Report<'a> {
    out: &'a mut dyn Write,
    format: Format,
    passed: u32,
    failed: u32,
}

impl Report<'_> {
    pub fn new(out: &mut dyn Write, format: Format) -> Report<'_> {
        Report { out, format, passed: 0, failed: 0 }
    }

    pub fn failed(&self) -> u32 {
        self.failed
    }

    fn say(&mut self, text: &str, object: Value) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.out, "{text}")?,
            Format::Json => writeln!(self.out, "{object}")?,
        }
        self.out.flush()
    }

    /// Something that was found.
    pub fn found(&mut self, what: &str, words: &str) -> io::Result<()> {
        self.say(&format!("{what}: {words}"), json!({ "found": what, "words": words }))
    }

    pub fn nothing_to_test(&mut self, why: &str) -> io::Result<()> {
        self.say(&format!("nothing to test here: {why}"), json!({ "verdict": "nothing to test", "words": why }))
    }

    pub fn world(&mut self, ranks: u16) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.out, "{ranks} {} on one GPU", if ranks == 1 { "rank" } else { "ranks" }),
            Format::Json => Ok(()),
        }
    }

    pub fn thing(&mut self, ranks: u16, thing: &str, outcome: &Result<Said, String>) -> io::Result<()> {
        let (word, ms, words) = match outcome {
            Ok(Said { ms, words }) => ("ok", Some(*ms), words),
            Err(words) => ("FAILED", None, words),
        };
        *(if outcome.is_ok() { &mut self.passed } else { &mut self.failed }) += 1;
        let object = json!({ "ranks": ranks, "thing": thing, "passed": outcome.is_ok(), "ms": ms, "words": words });
        let time = ms.map_or(String::new(), |ms| format!("{ms} ms"));
        let text = format!("  {thing:<52} {word:<6} {time:>8}  {words}");
        self.say(text.trim_end(), object)
    }

    /// What was not done, for something before it failed.
    pub fn not_done(&mut self, ranks: u16) -> io::Result<()> {
        self.say("  the rest was not done", json!({ "ranks": ranks, "thing": "the rest", "passed": false, "ms": null }))
    }

    pub fn end(&mut self) -> io::Result<()> {
        let (passed, failed) = (self.passed, self.failed);
        let verdict = if failed == 0 { "passed" } else { "failed" };
        let text = match failed {
            0 => format!("self-test passed: {passed} things"),
            _ => format!("self-test FAILED: {failed} of the above, {passed} passed"),
        };
        self.say(&text, json!({ "verdict": verdict, "passed": passed, "failed": failed }))
    }
}
