//! The text of a job file as a tree of values that know their place, with `--set` flags laid over it.
//!
//! Knows TOML and nothing of what the keys mean (`section`, `resolve`).

use super::mistake::{Mistake, Place};
use super::parse::ParseContext;
use crate::limits::JOB_FILE_BYTES_MAX;
use std::collections::BTreeMap;
use toml::de::{DeTable, DeValue};

pub(super) type Table = BTreeMap<String, Entry>;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub place: Place,
    pub value: Value,
}

/// Numbers stay text until it is known what they are to be: nothing is rounded or wrapped on the way.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Int(i128),
    /// An integer that even 128 bits do not hold.
    HugeInt(String),
    Float(String),
    Bool(bool),
    Date(String),
    Array(Vec<Entry>),
    Table(Table),
}

/// The tree, and what is wrong with the text as TOML. Lines that are no TOML are left out of the tree.
pub(super) fn read(text: &str, context: &ParseContext) -> (Table, Vec<Mistake>) {
    if text.len() > JOB_FILE_BYTES_MAX {
        let message = format!("the file has {} bytes; at most {JOB_FILE_BYTES_MAX} are read", text.len());
        let place = Place::File(context.file.clone());
        return (Table::new(), vec![Mistake { place, field: String::new(), message, suggestion: None }]);
    }
    let lines = Lines::new(text, &context.file);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut mistakes: Vec<Mistake> = errors.iter().map(|error| syntax_mistake(error, &lines)).collect();
    let mut root = table(root.get_ref(), &|at| lines.place(at));
    for flag in &context.overrides {
        if let Err(mistake) = lay_over(&mut root, flag) {
            mistakes.push(mistake);
        }
    }
    (root, mistakes)
}

impl Value {
    /// For "… is a text, not …".
    pub fn describe(&self) -> String {
        match self {
            Value::Text(text) => format!("the text \"{}\"", shortened(text)),
            Value::Int(number) => format!("the integer {number}"),
            Value::HugeInt(text) => format!("the integer {}", shortened(text)),
            Value::Float(text) => format!("the number {}", shortened(text)),
            Value::Bool(truth) => format!("{truth}"),
            Value::Date(text) => format!("the date {text}"),
            Value::Array(_) => "a list".to_string(),
            Value::Table(_) => "a table".to_string(),
        }
    }
}

/// Text from the file as it may stand in a message: one line, not too long.
pub(super) fn shortened(text: &str) -> String {
    let clean: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() { clean + "…" } else { clean }
}

fn syntax_mistake(error: &toml::de::Error, lines: &Lines) -> Mistake {
    let message = format!("no TOML: {}", error.message().replace('\n', ", "));
    let place = lines.place(error.span().map_or(lines.bytes, |span| span.start));
    Mistake { place, field: String::new(), message, suggestion: None }
}

fn table(table: &DeTable<'_>, place: &dyn Fn(usize) -> Place) -> Table {
    let entry = |(key, item): (&toml::Spanned<_>, &toml::Spanned<DeValue<'_>>)| {
        let key: &toml::Spanned<std::borrow::Cow<'_, str>> = key;
        (key.get_ref().to_string(), Entry { place: place(key.span().start), value: value(item.get_ref(), place) })
    };
    table.iter().map(entry).collect()
}

fn value(value: &DeValue<'_>, place: &dyn Fn(usize) -> Place) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Int(number),
            Err(_) => Value::HugeInt(number.as_str().to_string()),
        },
        DeValue::Float(number) => Value::Float(number.as_str().to_string()),
        DeValue::Boolean(truth) => Value::Bool(*truth),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => Value::Array(
            items
                .iter()
                .map(|item| Entry { place: place(item.span().start), value: self::value(item.get_ref(), place) })
                .collect(),
        ),
        DeValue::Table(inner) => Value::Table(table(inner, place)),
    }
}

/// Sets what `section.key=value` says. What is no TOML value is taken as a text, so that quotes are not
/// needed twice: `--set train.optimizer=sgd`.
fn lay_over(root: &mut Table, flag: &str) -> Result<(), Mistake> {
    let place = Place::Flag(flag.to_string());
    let wrong = |field: &str, message: String| Mistake {
        place: place.clone(),
        field: field.to_string(),
        message,
        suggestion: None,
    };
    let Some((path, text)) = flag.split_once('=') else {
        return Err(wrong("", "is not of the form section.key=value, such as train.lr=0.1".to_string()));
    };
    let (path, text) = (path.trim(), text.trim());
    let keys: Vec<&str> = path.split('.').collect();
    if keys.iter().any(|key| key.is_empty()) || keys.len() > OVERRIDE_DEPTH_MAX {
        return Err(wrong(path, "is no key; a key looks like train.lr".to_string()));
    }
    let flag_place = |_| place.clone();
    let value = match DeValue::parse(text) {
        Ok(parsed) => self::value(parsed.get_ref(), &flag_place),
        Err(_) => Value::Text(text.to_string()),
    };
    let (last, sections) = keys.split_last().expect("split gives at least one part");
    let mut table = root;
    for (depth, section) in sections.iter().enumerate() {
        let fresh = || Entry { place: place.clone(), value: Value::Table(Table::new()) };
        let entry = table.entry(section.to_string()).or_insert_with(fresh);
        match &mut entry.value {
            Value::Table(inner) => table = inner,
            other => {
                let (there, what) = (keys[..=depth].join("."), other.describe());
                return Err(wrong(path, format!("{there} is {what}, so nothing can be set inside it")));
            }
        }
    }
    // The length of a job is said in one of two ways: a flag in one replaces the other in the file.
    match path {
        "train.steps" => table.remove("epochs"),
        "train.epochs" => table.remove("steps"),
        _ => None,
    };
    table.insert(last.to_string(), Entry { place, value });
    Ok(())
}

/// Deepest key of a `--set`, so that no flag can build a tree that overflows a stack.
const OVERRIDE_DEPTH_MAX: usize = 16;

/// From a byte offset to line and column.
struct Lines<'a> {
    text: &'a str,
    file: &'a str,
    starts: Vec<usize>,
    bytes: usize,
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, file: &'a str) -> Lines<'a> {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, file, starts, bytes: text.len() }
    }

    fn place(&self, at: usize) -> Place {
        // A mistake at the very end is told at the last line that has something on it.
        let at = at.min(self.text.trim_end().len());
        let line = self.starts.partition_point(|start| *start <= at).max(1);
        let start = self.starts[line - 1];
        let before = self.text.as_bytes().get(start..at).unwrap_or_default();
        let column = before.iter().filter(|byte| !(0x80..0xc0).contains(*byte)).count() + 1;
        Place::Line { file: self.file.to_string(), line: line as u32, column: column as u32 }
    }
}
