//! What is wrong with a job file, said so that a person can mend it: the place, the field, what is wrong,
//! what is allowed, and the word that was probably meant.

use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub place: Place,
    /// `train.lr`, `[model]`, or empty where the text is no TOML.
    pub field: String,
    /// What is wrong and what is allowed.
    pub message: String,
    /// What was probably meant.
    pub suggestion: Option<String>,
}

/// Where a mistake was made. The order is the order in which mistakes are told.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file as a whole: something is missing.
    File(String),
    /// Counted from 1; columns in characters.
    Line { file: String, line: u32, column: u32 },
    /// In a `--set key=value`.
    Flag(String),
}

impl Mistake {
    pub fn line(&self) -> Option<u32> {
        match self.place {
            Place::Line { line, .. } => Some(line),
            Place::File(_) | Place::Flag(_) => None,
        }
    }

    pub fn column(&self) -> Option<u32> {
        match self.place {
            Place::Line { column, .. } => Some(column),
            Place::File(_) | Place::Flag(_) => None,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::File(file) => f.write_str(file),
            Place::Line { file, line, .. } => write!(f, "{file}:{line}"),
            Place::Flag(flag) => write!(f, "--set {flag}"),
        }
    }
}

/// `job.toml:12: train.lr: -1 is not above 0 …; did you mean …?`
impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; did you mean `{suggestion}`?"),
            None => Ok(()),
        }
    }
}
