//! From a raw file to rows: read, split by a hash of each row, written down as the loader reads it.
//!
//! Which side a row falls on depends on the row alone, so that more rows move none. What is written is a function of the
//! file's content and of the pipeline file: the same input gives the same bytes.

mod csv;
mod idx;
mod jsonl;
mod parquet;
mod rows;
mod text;
mod unpacked;

pub use rows::{Dataset, Made, Slice};

use elastic_spec::pipeline::{Ingest, Source};
use rows::Rows;
use std::path::{Path, PathBuf};

/// Raised whenever the same file would be made into other rows.
pub const TRANSFORM_VERSION: u32 = 1;

/// What is wrong with an input: the file, the place in it, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("{}: {source}; the file must be there and readable", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{}: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
}

/// Reads the source and writes `train.csv` or `train.txt`, `evaluation.…`, a file for each slice, and `labels.txt` into
/// `out`, which is there and empty.
pub fn ingest(spec: &Ingest, out: &Path) -> Result<Made, IngestError> {
    let path = spec.source.files()[0].1;
    let malformed = |path: &str| {
        let path = PathBuf::from(path);
        move |problem| IngestError::Malformed { path, problem }
    };
    let mut rows = Rows::new(spec);
    match &spec.source {
        Source::Text { path } => {
            let bytes = unpacked::read(Path::new(path))?;
            return text::split(&bytes, spec, out).map_err(|problem| problem.at(path));
        }
        Source::Csv { path, header, columns } => {
            let bytes = unpacked::read(Path::new(path))?;
            csv::read(&bytes, *header, columns, &spec.slices, &mut |row| rows.add(row)).map_err(malformed(path))?;
        }
        Source::Jsonl { path, columns } => {
            let bytes = unpacked::read(Path::new(path))?;
            jsonl::read(&bytes, columns, &spec.slices, &mut |row| rows.add(row)).map_err(malformed(path))?;
        }
        Source::Parquet { path, columns } => {
            let open = |source| IngestError::Unreadable { path: path.into(), source };
            let file = std::fs::File::open(path).map_err(open)?;
            parquet::read(file, columns, &spec.slices, &mut |row| rows.add(row)).map_err(malformed(path))?;
        }
        Source::Idx { path, labels_path } => {
            let (samples, classes) = (unpacked::read(Path::new(path))?, unpacked::read(Path::new(labels_path))?);
            let samples = idx::array(&samples).map_err(malformed(path))?;
            let classes = idx::array(&classes).map_err(malformed(labels_path))?;
            idx::read(&samples, &classes, &mut |row| rows.add(row)).map_err(malformed(labels_path))?;
        }
    }
    rows.write(out).map_err(|problem| problem.at(path))
}

/// What went wrong behind the reading.
#[derive(Debug)]
enum Problem {
    Content(String),
    Write(PathBuf, std::io::Error),
}

impl Problem {
    fn at(self, path: &str) -> IngestError {
        match self {
            Problem::Content(problem) => IngestError::Malformed { path: path.into(), problem },
            Problem::Write(path, source) => IngestError::Write { path, source },
        }
    }
}
