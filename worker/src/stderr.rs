//! Standard error, which may end before this process: the agent that reads it can be killed.
//!
//! A broken pipe must not become a panic (`eprintln!` and the logger make it one), so what cannot be said
//! is dropped.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Says a line, if anybody listens.
pub fn say(line: Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// For the logger.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
