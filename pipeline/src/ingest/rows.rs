//! Rows as they come: split, their labels numbered, and written down.

use super::Problem;
use elastic_spec::pipeline::Ingest;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// One row, as a reader found it.
#[derive(Debug, Default)]
pub struct Row {
    /// For messages: `line 7`.
    pub place: String,
    pub features: Vec<f32>,
    pub label: String,
    /// None: the row is known by what is in it.
    pub id: Option<String>,
    /// Values of the slices' columns.
    pub slices: Vec<String>,
}

/// What ingest made.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Dataset {
    pub train_rows: u64,
    pub evaluation_rows: u64,
    /// Numbers of one row; 0 of a text.
    pub features: u64,
    /// 0 of a text.
    pub classes: u32,
    pub slices: Vec<Slice>,
}

/// The rows of evaluation that have one value in one column.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slice {
    /// `column=value`.
    pub name: String,
    pub file: String,
    pub rows: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Made {
    pub dataset: Dataset,
    /// In the folder; `train.…` and `evaluation.…` first.
    pub files: Vec<String>,
}

/// Values of all slices together; evaluation runs once for each.
const SLICES_MAX: usize = 64;
const CLASSES_MAX: usize = 65536;

pub struct Rows<'a> {
    spec: &'a Ingest,
    width: Option<usize>,
    features: Vec<f32>,
    /// Of each row its label, its side and its slices, by number.
    labels: Vec<u32>,
    kept: Vec<bool>,
    slices: Vec<Vec<u32>>,
    label_numbers: BTreeMap<String, u32>,
    /// Where a label was seen first.
    label_places: Vec<String>,
    slice_numbers: BTreeMap<String, u32>,
}

impl<'a> Rows<'a> {
    pub fn new(spec: &'a Ingest) -> Rows<'a> {
        Rows {
            spec,
            width: None,
            features: Vec::new(),
            labels: Vec::new(),
            kept: Vec::new(),
            slices: Vec::new(),
            label_numbers: BTreeMap::new(),
            label_places: Vec::new(),
            slice_numbers: BTreeMap::new(),
        }
    }

    pub fn add(&mut self, row: Row) -> Result<(), String> {
        let Row { place, features, label, id, slices } = row;
        let width = *self.width.get_or_insert(features.len());
        if features.len() != width {
            let found = features.len();
            return Err(format!("{place} has {found} numbers, the first row has {width}; all rows must have as many"));
        }
        if features.is_empty() {
            return Err(format!("{place} has no number that a model could read; name columns with ingest.columns"));
        }
        if let Some(at) = features.iter().position(|number| !number.is_finite()) {
            return Err(format!("{place}: number {at} (from 0) is not finite"));
        }
        let label = canonical(&label);
        if label.is_empty() || label.contains(['\n', '\r']) {
            return Err(format!("{place}: the label is {label:?}; a label is one line that is not empty"));
        }
        let id = id.unwrap_or_else(|| content_of(&features, &label, &slices));
        self.kept.push(falls_to_evaluation(self.spec.seed, id.as_bytes(), self.spec.evaluation));
        self.features.extend(features);
        let next = self.label_numbers.len() as u32;
        let number = *self.label_numbers.entry(label).or_insert(next);
        if number == next {
            self.label_places.push(place);
        }
        if self.label_numbers.len() > CLASSES_MAX {
            return Err(format!(
                "has more than {CLASSES_MAX} different labels; is ingest.label the column of the class?"
            ));
        }
        self.labels.push(number);
        let mut numbers = Vec::with_capacity(slices.len());
        for (column, value) in self.spec.slices.iter().zip(slices) {
            let next = self.slice_numbers.len() as u32;
            numbers.push(*self.slice_numbers.entry(format!("{column}={value}")).or_insert(next));
        }
        if self.slice_numbers.len() > SLICES_MAX {
            return Err(format!(
                "the columns of ingest.slices have more than {SLICES_MAX} values; take columns with few"
            ));
        }
        self.slices.push(numbers);
        Ok(())
    }

    pub(super) fn write(self, out: &Path) -> Result<Made, Problem> {
        let content = |problem: String| Problem::Content(problem);
        let found: Vec<(&str, &str)> = {
            let mut found: Vec<(&String, &u32)> = self.label_numbers.iter().collect();
            found.sort_by_key(|(_, number)| **number);
            found
                .iter()
                .map(|(label, number)| (label.as_str(), self.label_places[**number as usize].as_str()))
                .collect()
        };
        let names = classes(&found, &self.spec.labels).map_err(content)?;
        let class_of: BTreeMap<&str, usize> = names.iter().enumerate().map(|(i, name)| (name.as_str(), i)).collect();
        let class_of: Vec<usize> = found.iter().map(|(label, _)| class_of[label]).collect();
        let evaluation_rows = self.kept.iter().filter(|kept| **kept).count() as u64;
        let train_rows = self.kept.len() as u64 - evaluation_rows;
        check_sides(train_rows, evaluation_rows, self.spec.evaluation).map_err(content)?;

        let mut files = vec!["train.csv".to_string(), "evaluation.csv".into(), "labels.txt".into()];
        self.write_side(out, &files[0], &class_of, |row| !self.kept[row])?;
        self.write_side(out, &files[1], &class_of, |row| self.kept[row])?;
        let mut labels = names.join("\n");
        labels.push('\n');
        put(&out.join(&files[2]), labels.as_bytes())?;
        let mut slices = Vec::new();
        for (name, number) in &self.slice_numbers {
            let file = format!("slice-{}.csv", slices.len());
            let is_in = |row: usize| self.kept[row] && self.slices[row].contains(number);
            let rows = (0..self.kept.len()).filter(|row| is_in(*row)).count() as u64;
            if rows > 0 {
                self.write_side(out, &file, &class_of, is_in)?;
                files.push(file.clone());
                slices.push(Slice { name: name.clone(), file, rows });
            }
        }
        let features = self.width.unwrap_or(0) as u64;
        let dataset = Dataset { train_rows, evaluation_rows, features, classes: names.len() as u32, slices };
        Ok(Made { dataset, files })
    }

    fn write_side(
        &self,
        out: &Path,
        file: &str,
        class_of: &[usize],
        is_in: impl Fn(usize) -> bool,
    ) -> Result<(), Problem> {
        let path = out.join(file);
        let width = self.width.unwrap_or(1);
        let write = || -> std::io::Result<()> {
            let mut file = BufWriter::new(File::create(&path)?);
            for (row, features) in self.features.chunks_exact(width).enumerate().filter(|(row, _)| is_in(*row)) {
                for number in features {
                    write!(file, "{number},")?;
                }
                writeln!(file, "{}", class_of[self.labels[row] as usize])?;
            }
            file.into_inner().map_err(|error| error.into_error())?.sync_all()
        };
        write().map_err(|error| Problem::Write(path.clone(), error))
    }
}

pub fn check_sides(train: u64, evaluation: u64, share: f64) -> Result<(), String> {
    match (train + evaluation, train, evaluation) {
        (0, ..) => Err("has no rows".into()),
        (rows, _, 0) => Err(format!(
            "none of its {rows} rows falls to evaluation (ingest.evaluation = {share}); raise the share, or take more rows"
        )),
        (rows, 0, _) => Err(format!(
            "all of its {rows} rows fall to evaluation (ingest.evaluation = {share}); lower the share, or take more rows"
        )),
        _ => Ok(()),
    }
}

pub fn put(path: &Path, bytes: &[u8]) -> Result<(), Problem> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| Problem::Write(path.into(), error))
}

/// `3`, `3.0` and ` 3` are one label.
fn canonical(label: &str) -> String {
    let label = label.trim();
    match label.parse::<f64>() {
        Ok(number) if number.fract() == 0.0 && number.abs() < 9e15 => format!("{}", number as i64),
        _ => label.to_string(),
    }
}

fn content_of(features: &[f32], label: &str, slices: &[String]) -> String {
    let mut text: String = features.iter().map(|number| format!("{number},")).collect();
    text += label;
    slices.iter().for_each(|value| text += &format!("\n{value}"));
    text
}

/// Whether a row is kept for evaluation: its hash lies in the first `share` of all hashes. This may never change.
pub fn falls_to_evaluation(seed: u64, id: &[u8], share: f64) -> bool {
    let mut hash = Sha256::new();
    hash.update(b"elastic-split-1\0");
    hash.update(seed.to_le_bytes());
    hash.update(id);
    let first: [u8; 8] = hash.finalize()[..8].try_into().expect("a digest has 32 bytes");
    (u64::from_be_bytes(first) as f64) < share * 2f64.powi(64)
}

/// The names of the classes by number. `found`: labels, each with the place where it was seen first.
fn classes(found: &[(&str, &str)], given: &[String]) -> Result<Vec<String>, String> {
    if !given.is_empty() {
        let given_canonical: Vec<String> = given.iter().map(|label| canonical(label)).collect();
        return match found.iter().find(|(label, _)| !given_canonical.iter().any(|given| given == label)) {
            Some((label, place)) => Err(format!("{place}: the label {label:?} is none of ingest.labels; add it there")),
            None => Ok(given_canonical),
        };
    }
    let numbers: Option<Vec<u32>> = found.iter().map(|(label, _)| label.parse().ok()).collect();
    let names: Vec<String> = match numbers {
        Some(numbers) => {
            let most = numbers.iter().copied().max().unwrap_or(0);
            if most as usize >= CLASSES_MAX {
                let place = found.iter().find(|(label, _)| label.parse() == Ok(most)).map_or("", |(_, place)| place);
                return Err(format!("{place}: the class {most} is above {}, the most there may be", CLASSES_MAX - 1));
            }
            (0..=most).map(|number| number.to_string()).collect()
        }
        None => {
            let mut names: Vec<String> = found.iter().map(|(label, _)| label.to_string()).collect();
            names.sort();
            names
        }
    };
    match names.len() {
        0 => Err("has no rows".into()),
        1 => Err(format!("all rows have the label {:?}; a model tells at least two classes apart", names[0])),
        _ => Ok(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_side_of_a_row_is_fixed_for_ever() {
        let sides: Vec<bool> = (0..12).map(|i| falls_to_evaluation(0, format!("{i}").as_bytes(), 0.3)).collect();
        let kept: Vec<usize> = (0..12).filter(|i| sides[*i]).collect();
        assert_eq!(kept, KNOWN);
        let share = (0..10_000).filter(|i| falls_to_evaluation(7, format!("{i}").as_bytes(), 0.2)).count();
        assert!((1_850..2_150).contains(&share), "{share}");
    }

    /// Computed by another program: the first 8 bytes of SHA-256 over "elastic-split-1", NUL, the seed and the id.
    const KNOWN: &[usize] = &[3, 4, 5];

    #[test]
    fn labels_become_numbers() {
        let at = |labels: &[&'static str]| labels.iter().map(|label| (*label, "line 1")).collect::<Vec<_>>();
        assert_eq!(classes(&at(&["2", "0"]), &[]).unwrap(), ["0", "1", "2"]);
        assert_eq!(classes(&at(&["dog", "cat"]), &[]).unwrap(), ["cat", "dog"]);
        let given = ["dog".to_string(), "cat".into()];
        assert_eq!(classes(&at(&["cat"]), &given).unwrap(), ["dog", "cat"]);
        let told = classes(&at(&["cow"]), &given).unwrap_err();
        assert!(told.contains("line 1: the label \"cow\" is none of ingest.labels"), "{told}");
        assert!(classes(&at(&["0"]), &[]).unwrap_err().contains("at least two classes"));
        assert!(classes(&at(&["70000"]), &[]).unwrap_err().contains("above 65535"));
        assert_eq!([canonical(" 3.0"), canonical("3"), canonical("x")], ["3", "3", "x"]);
    }
}
