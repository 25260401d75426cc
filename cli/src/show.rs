//! Numbers, times and tables in words for people.

use crate::exit::Exit;
use anyhow::{Context, Result};
use elastic_spec::api::JobStatus;
pub use elastic_spec::json::{accuracy, mean_loss};
use std::io::Write;

/// Prints to stdout. A reader that has seen enough (`… | head`) ends the program quietly.
pub fn out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(Exit::Ok.code().into()),
        written => written.context("print"),
    }
}

/// Rows under their heads, columns as wide as needed.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: String = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        format!("{}\n", padded.trim_end())
    };
    let mut text = line(&mut heads.iter().copied());
    rows.iter().for_each(|row| text += &line(&mut row.iter().map(String::as_str)));
    text
}

/// Four digits that count, whatever the size.
pub fn loss(value: f64) -> String {
    match value {
        v if !v.is_finite() => "not a number".into(),
        v if v != 0.0 && v.abs() < 0.001 => format!("{v:.2e}"),
        v => format!("{v:.4}"),
    }
}

pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// 950, 12.3k, 4.56M.
pub fn count(value: f64) -> String {
    match value {
        v if v < 9_999.5 => format!("{v:.0}"),
        v if v < 999_950.0 => format!("{:.1}k", v / 1e3),
        v => format!("{:.2}M", v / 1e6),
    }
}

pub fn bytes(value: u64) -> String {
    match value as f64 {
        v if v < 1024.0 => format!("{v:.0} B"),
        v if v < 1024.0 * 1024.0 => format!("{:.1} KiB", v / 1024.0),
        v if v < 1024.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", v / 1048576.0),
        v => format!("{:.2} GiB", v / 1073741824.0),
    }
}

/// "0.4 s", "12 s", "3 min 20 s", "2 h 5 min".
pub fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0..10 => format!("{:.1} s", ms as f64 / 1e3),
        10..120 => format!("{s} s"),
        120..7200 => format!("{} min {} s", s / 60, s % 60),
        7200..172_800 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} days", s / 86_400),
    }
}

pub fn plural(count: u64, word: &str) -> String {
    if count == 1 { format!("1 {word}") } else { format!("{count} {word}s") }
}

/// Time that has passed since a moment that another machine's clock may have named.
pub fn ago(unix_ms: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis();
    format!("{} ago", span((now as u64).saturating_sub(unix_ms)))
}

/// A path, with its node where that is not any.
pub fn lies_at(status: &JobStatus, path: &str) -> String {
    match (&status.run_dir_differs, &status.published_on) {
        (Some(_), Some(node)) => format!("on {node}: {path}"),
        _ => path.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["a".into(), "1".into()], vec!["long".into(), "2".into()]];
        assert_eq!(table(&["JOB", "N"], &rows), "JOB   N\na     1\nlong  2\n");
    }

    #[test]
    fn times_and_sizes_are_short() {
        assert_eq!(
            [span(400), span(61_000), span(200_000), span(7_500_000)],
            ["0.4 s", "61 s", "3 min 20 s", "2 h 5 min"]
        );
        assert_eq!([bytes(7), bytes(1536), bytes(3 << 20)], ["7 B", "1.5 KiB", "3.0 MiB"]);
        assert_eq!([count(950.0), count(12_300.0), count(4.56e6)], ["950", "12.3k", "4.56M"]);
        assert_eq!([loss(0.12345), loss(0.00012), loss(f64::NAN)], ["0.1235", "1.20e-4", "not a number"]);
    }
}
