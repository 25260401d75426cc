//! A text, whose rows are paragraphs: what stands between empty lines.

use super::Problem;
use super::rows::{Dataset, Made, check_sides, falls_to_evaluation, put};
use elastic_spec::pipeline::Ingest;
use std::path::Path;

pub(super) fn split(bytes: &[u8], spec: &Ingest, out: &Path) -> Result<Made, Problem> {
    let (mut train, mut evaluation) = (Vec::new(), Vec::new());
    let (mut train_rows, mut evaluation_rows) = (0, 0);
    for paragraph in paragraphs(bytes) {
        let (side, rows) = match falls_to_evaluation(spec.seed, &paragraph, spec.evaluation) {
            true => (&mut evaluation, &mut evaluation_rows),
            false => (&mut train, &mut train_rows),
        };
        *rows += 1;
        side.extend_from_slice(&paragraph);
        side.push(b'\n');
    }
    check_sides(train_rows, evaluation_rows, spec.evaluation).map_err(|problem| {
        Problem::Content(format!("{problem}; rows of a text are its paragraphs, with an empty line between"))
    })?;
    let files = vec!["train.txt".to_string(), "evaluation.txt".into()];
    put(&out.join(&files[0]), &train)?;
    put(&out.join(&files[1]), &evaluation)?;
    let dataset = Dataset { train_rows, evaluation_rows, features: 0, classes: 0, slices: Vec::new() };
    Ok(Made { dataset, files })
}

/// Each with its line ends.
fn paragraphs(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let mut paragraph = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match line.iter().all(u8::is_ascii_whitespace) {
            false => {
                paragraph.extend_from_slice(line);
                paragraph.push(b'\n');
            }
            true if !paragraph.is_empty() => all.push(std::mem::take(&mut paragraph)),
            true => {}
        }
    }
    if !paragraph.is_empty() {
        all.push(paragraph);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paragraphs_stand_between_empty_lines() {
        let found = paragraphs(b"\n\na\r\nb\n \n\nc");
        assert_eq!(found, [b"a\nb\n".to_vec(), b"c\n".to_vec()]);
        assert!(paragraphs(b"\n \n").is_empty());
    }
}
