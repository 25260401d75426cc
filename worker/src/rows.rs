//! The run's event log: one row for each training step, the same for every membership.
//!
//! Rows are part of the replicated state: they travel to joiners and lie in checkpoints, so whichever
//! worker publishes writes the same `events.jsonl`. A validation stands in the row of the step after
//! which it was taken, so the file has exactly one line a step. Nothing here knows a clock or a rank.

use crate::aside;
use crate::bucket::Bucket;
use elastic_spec::Epoch;
use elastic_spec::layout::Tail;
use std::io::{self, Write};
use std::path::Path;

/// What is known of one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Row {
    pub train: Tail,
    pub lr: f64,
    /// NaN: something was not finite, and the step moved nothing.
    pub grad_norm: f64,
    /// A count of 0: none was taken after this step.
    pub validation: Tail,
}

impl Row {
    pub const BYTES: usize = 64;

    pub fn to_bytes(self) -> [u8; Row::BYTES] {
        let mut out = [0; Row::BYTES];
        out[..24].copy_from_slice(&self.train.to_bytes());
        out[24..32].copy_from_slice(&self.lr.to_bits().to_le_bytes());
        out[32..40].copy_from_slice(&self.grad_norm.to_bits().to_le_bytes());
        out[40..].copy_from_slice(&self.validation.to_bytes());
        out
    }

    pub fn from_bytes(bytes: &[u8; Row::BYTES]) -> Row {
        let tail = |at: usize| Tail::from_bytes(bytes[at..at + 24].try_into().expect("24 bytes"));
        let float = |at: usize| f64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Row { train: tail(0), lr: float(24), grad_norm: float(32), validation: tail(40) }
    }

    /// Whether the step moved nothing (`train.non_finite = "skip"`).
    pub fn was_skipped(&self) -> bool {
        self.grad_norm.is_nan()
    }

    /// The row of `step` (1 is the first) as one line of JSON.
    fn line(&self, step: usize) -> String {
        let mut line = format!(
            "{{\"step\":{step},\"loss\":{},\"samples\":{},\"correct\":{},\"lr\":{},\"grad_norm\":{}",
            number(mean(self.train)),
            self.train.count,
            self.train.correct,
            number(self.lr),
            number(self.grad_norm),
        );
        if self.was_skipped() {
            line += ",\"skipped\":true";
        }
        if self.validation.count > 0 {
            let accuracy = self.validation.correct as f64 / self.validation.count as f64;
            line += &format!(
                ",\"validation\":{{\"loss\":{},\"accuracy\":{},\"samples\":{}}}",
                number(mean(self.validation)),
                number(accuracy),
                self.validation.count,
            );
        }
        line + "}\n"
    }
}

/// The mean loss of a tail.
pub fn mean(tail: Tail) -> f64 {
    tail.loss / tail.count as f64
}

/// JSON has no NaN and no infinity: a run that diverged says null.
fn number(x: f64) -> String {
    if x.is_finite() { serde_json::to_string(&x).expect("a finite number") } else { "null".into() }
}

/// Makes `path` hold one line for each row, by rename. A file that says all this and more (a run that
/// was taken up again at an earlier checkpoint, or a late writer) is left as it is.
pub fn write(path: &Path, rows: &[Row], epoch: Epoch) -> io::Result<()> {
    let lines = lines(rows);
    if std::fs::read_to_string(path).is_ok_and(|there| says_more(&there, &lines)) {
        return Ok(());
    }
    // A view has one writer.
    aside::replace(path, &format!("events-{epoch}"), |file| {
        lines.iter().try_for_each(|line| file.write_all(line.as_bytes()))
    })
}

/// The same beside the checkpoints in a bucket.
pub fn write_to(bucket: &Bucket, rows: &[Row]) -> Result<(), elastic_objects::Error> {
    let lines = lines(rows);
    bucket.write_events(&lines.concat(), |there| says_more(there, &lines))
}

fn lines(rows: &[Row]) -> Vec<String> {
    rows.iter().enumerate().map(|(i, row)| row.line(i + 1)).collect()
}

/// The newest row may lack its validation still, so it is not compared.
fn says_more(there: &str, lines: &[String]) -> bool {
    let settled = &lines[..lines.len().saturating_sub(1)];
    let mut there = there.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    settled.iter().all(|line| there.next() == Some(line)) && there.count() > 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> Vec<Row> {
        let train = Tail { loss: 3.0, count: 2, correct: 1 };
        (0..count).map(|i| Row { train, lr: 0.1, grad_norm: i as f64, ..Row::default() }).collect()
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).unwrap().lines().count()
    }

    #[test]
    fn a_row_reads_back_as_written() {
        let validation = Tail { loss: 0.5, count: 7, correct: 6 };
        let row = Row { validation, ..rows(3)[2] };
        assert_eq!(Row::from_bytes(&row.to_bytes()), row);
    }

    #[test]
    fn the_file_has_one_line_a_step_and_never_fewer_than_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/events.jsonl");
        for (write_rows, then) in [(2, 2), (5, 5), (3, 5), (6, 6)] {
            write(&path, &rows(write_rows), Epoch::default()).unwrap();
            assert_eq!(lines(&path), then);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("{\"step\":1,\"loss\":1.5,\"samples\":2,\"correct\":1,\"lr\":0.1,\"grad_norm\":0.0}\n")
        );
    }

    #[test]
    fn another_history_or_a_torn_line_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n").unwrap();
        write(&path, &rows(2), Epoch::default()).unwrap();
        assert_eq!(lines(&path), 2);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step").unwrap();
        write(&path, &rows(2), Epoch::default()).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("}\n"));
    }

    #[test]
    fn a_step_that_moved_nothing_says_so() {
        let row = Row { train: Tail { loss: 1.0, count: 1, correct: 0 }, grad_norm: f64::NAN, ..Row::default() };
        let value: serde_json::Value = serde_json::from_str(&row.line(1)).unwrap();
        assert_eq!((&value["skipped"], &value["grad_norm"]), (&true.into(), &serde_json::Value::Null));
        assert!(!rows(1)[0].line(1).contains("skipped"));
        assert!(Row::from_bytes(&row.to_bytes()).was_skipped());
    }

    #[test]
    fn a_diverged_run_is_still_json() {
        let row = Row { train: Tail { loss: f64::NAN, count: 1, correct: 0 }, ..Row::default() };
        let value: serde_json::Value = serde_json::from_str(&row.line(1)).unwrap();
        assert!(value["loss"].is_null());
    }
}
