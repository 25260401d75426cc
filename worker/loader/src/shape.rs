//! What the data offers to a model, from as little of the inputs as says it.

use crate::{LoaderError, input, rows_csv, rows_npy};
use elastic_spec::batch::DataShape;
use elastic_spec::job::{DataSource, JobSpec, ModelKind};
use elastic_transform::Text;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The shape that [`open`](crate::open) will find. Reads the first line of a CSV, one array of two, and of a text only its
/// tokenizer; what is wrong further on is not seen.
pub fn shape(spec: &JobSpec, files: &dyn Fn(&str) -> PathBuf) -> Result<DataShape, LoaderError> {
    match &spec.data.source {
        DataSource::Csv { path, header, classes, .. } => {
            let path = files(path);
            let features = rows_csv::width(&head(&path)?, *header).map_err(malformed(&path))?;
            Ok(DataShape::Features { features, classes: *classes as usize })
        }
        DataSource::Npy { x, classes, .. } => {
            let path = files(x);
            let (path, bytes) = input::unpacked(input::one("x", path)?)?;
            let features = rows_npy::width(&bytes).map_err(malformed(&path))?;
            Ok(DataShape::Features { features, classes: *classes as usize })
        }
        DataSource::Text { tokenizer, .. } => {
            let vocab = match tokenizer {
                None => 256,
                Some(path) => {
                    let (path, json) = input::unpacked(input::one("tokenizer", files(path))?)?;
                    Text::of(Some(&json)).map_err(malformed(&path))?.vocab()
                }
            };
            let no_tokens = || LoaderError::Unusable("the model reads no tokens".to_string());
            Ok(DataShape::Tokens { vocab, context: spec.context().ok_or_else(no_tokens)? as usize })
        }
        DataSource::Synthetic { features, classes, .. } => Ok(match spec.model.kind {
            ModelKind::Gpt { context, .. } => DataShape::Tokens { vocab: *classes as usize, context: context as usize },
            _ => DataShape::Features { features: *features as usize, classes: *classes as usize },
        }),
    }
}

fn malformed(path: &Path) -> impl Fn(String) -> LoaderError {
    let path = path.to_path_buf();
    move |problem| LoaderError::Malformed { path: path.clone(), problem }
}

/// Longer first lines are not looked at.
const HEAD_BYTES: u64 = 16 << 20;

/// The begin of a file, unpacked.
fn head(path: &Path) -> Result<Vec<u8>, LoaderError> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::io::BufReader::new(std::fs::File::open(path)?);
        let is_packed = std::io::BufRead::fill_buf(&mut file)?.starts_with(&[0x1f, 0x8b]);
        let mut reader: Box<dyn Read> = match is_packed {
            true => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            false => Box::new(file),
        };
        let mut bytes = Vec::new();
        // The first record ends with the second line's end at the latest, mostly within the first piece.
        let mut piece = vec![0; 64 << 10];
        while (bytes.len() as u64) < HEAD_BYTES && bytes.iter().filter(|byte| **byte == b'\n').count() < LINES {
            match reader.read(&mut piece)? {
                0 => break,
                read => bytes.extend_from_slice(&piece[..read]),
            }
        }
        Ok(bytes)
    };
    read().map_err(|source| LoaderError::Unreadable { path: path.to_path_buf(), source })
}

/// A header, some empty lines and a sample.
const LINES: usize = 16;
