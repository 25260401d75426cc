//! The run's curves for TensorBoard: an event file of the same rows as `events.jsonl`, and the job's spec as text.
//!
//! The bytes are a function of spec and rows alone. Therefore every membership writes the same file, and a file
//! that is the beginning of what is to be said is only added to, at its place: TensorBoard, which keeps a file
//! open, sees the curves grow, and a late or repeated writer puts the same bytes where they are already. A file
//! that says something else is replaced, by rename. Wall times are all 0: rows have none, and a wall time is not
//! a part of what a run computes.

mod event;
mod records;

use crate::aside;
use crate::rows::{Row, mean};
use elastic_spec::Epoch;
use elastic_spec::layout::Tail;
use event::{Event, Value};
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// TensorBoard reads files that have "tfevents" in their names.
const NAME: &str = "events.out.tfevents.0.elastic";

/// A run's event file, and what stands at its beginning.
pub struct Board {
    folder: PathBuf,
    head: Vec<u8>,
}

impl Board {
    /// `spec_json`: the job's spec, shown as text.
    pub fn new(run_dir: &Path, spec_json: &str) -> Board {
        let mut head = records::record(&Event::version().bytes());
        head.extend(records::record(&Event::of(0, vec![Value::text("job", &fenced(spec_json))]).bytes()));
        Board { folder: run_dir.join("tensorboard"), head }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.join(NAME)
    }

    /// Makes the file say all `rows`. One that says them and more is left as it is.
    pub fn write(&self, rows: &[Row], epoch: Epoch) -> io::Result<()> {
        let there = match File::open(self.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            file => Some(file?),
        };
        match there.map(|file| self.agreed(file, rows)).transpose()? {
            Some(Agreed::Whole) => Ok(()),
            Some(Agreed::UpTo(bytes)) => self.add(rows, bytes),
            Some(Agreed::Otherwise) | None => self.replace(rows, epoch),
        }
    }

    /// The records of the file, in order.
    fn records<'a>(&'a self, rows: &'a [Row]) -> impl Iterator<Item = Vec<u8>> + 'a {
        let steps = rows.iter().enumerate().map(|(i, row)| of_row(i as i64 + 1, row));
        std::iter::once(self.head.clone()).chain(steps)
    }

    fn agreed(&self, file: File, rows: &[Row]) -> io::Result<Agreed> {
        let mut file = BufReader::new(file);
        let mut bytes = 0;
        let mut found = Vec::new();
        for record in self.records(rows) {
            found.clear();
            file.by_ref().take(record.len() as u64).read_to_end(&mut found)?;
            if !record.starts_with(&found) {
                return Ok(Agreed::Otherwise);
            }
            if found.len() < record.len() {
                return Ok(Agreed::UpTo(bytes));
            }
            bytes += record.len() as u64;
        }
        Ok(Agreed::Whole)
    }

    /// `from` is where a record begins: what a killed writer left of one is written again.
    fn add(&self, rows: &[Row], from: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path())?;
        let mut at = 0;
        let mut rest = Vec::new();
        for record in self.records(rows) {
            if at >= from {
                rest.extend_from_slice(&record);
            }
            at += record.len() as u64;
        }
        file.write_all_at(&rest, from)?;
        file.sync_all()
    }

    fn replace(&self, rows: &[Row], epoch: Epoch) -> io::Result<()> {
        // Without "tfevents" in the name aside, so that nobody reads it before it is whole.
        aside::replace(&self.path(), &format!("new-{epoch}"), |file| {
            self.records(rows).try_for_each(|record| file.write_all(&record))
        })
    }
}

/// How a file compares with what it should say.
enum Agreed {
    /// It says all of it, if not more.
    Whole,
    /// So many bytes of whole records, and nothing that contradicts.
    UpTo(u64),
    Otherwise,
}

/// The train event of a step, and behind it, once it is known, that of the validation after it.
fn of_row(step: i64, row: &Row) -> Vec<u8> {
    let train = vec![
        Value::scalar("train/loss", mean(row.train)),
        Value::scalar("train/accuracy", accuracy(row.train)),
        Value::scalar("train/lr", row.lr),
        Value::scalar("train/grad_norm", row.grad_norm),
    ];
    let mut bytes = records::record(&Event::of(step, train).bytes());
    if row.validation.count > 0 {
        let validation = vec![
            Value::scalar("validation/loss", mean(row.validation)),
            Value::scalar("validation/accuracy", accuracy(row.validation)),
        ];
        bytes.extend(records::record(&Event::of(step, validation).bytes()));
    }
    bytes
}

fn accuracy(tail: Tail) -> f64 {
    tail.correct as f64 / tail.count as f64
}

/// TensorBoard shows text as Markdown. A spec that is no JSON is shown as it is.
fn fenced(spec_json: &str) -> String {
    let value: Option<serde_json::Value> = serde_json::from_str(spec_json).ok();
    let pretty = value.and_then(|value| serde_json::to_string_pretty(&value).ok());
    format!("```json\n{}\n```", pretty.as_deref().unwrap_or(spec_json))
}

#[cfg(test)]
mod tests;
