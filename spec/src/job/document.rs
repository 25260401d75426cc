//! The text of a job file as a tree of values that know their place, with `--set` flags laid over it.
//!
//! Knows TOML and nothing of what the keys mean (`section`, `resolve`).

use super::mistake::{Mistake, Place};
use super::parse::ParseContext;
use crate::limits::JOB_FILE_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use toml::de::{DeTable, DeValue};

pub(crate) type Table = BTreeMap<String, Entry>;

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub place: Place,
    pub value: Value,
}

/// Numbers stay text until it is known what they are to be: nothing is rounded or wrapped on the way.
#[derive(Clone, Debug)]
pub(crate) enum Value {
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

/// What a text says, and what is wrong with it as TOML.
pub(crate) struct Document {
    pub root: Table,
    pub mistakes: Vec<Mistake>,
    /// The lines of which the tree may hold what nobody wrote.
    pub broken: BTreeSet<Option<u32>>,
}

pub(crate) fn read(text: &str, context: &ParseContext) -> Document {
    let mut document = Document { root: Table::new(), mistakes: Vec::new(), broken: BTreeSet::new() };
    if text.len() > JOB_FILE_BYTES_MAX {
        let message = format!("the file has {} bytes; at most {JOB_FILE_BYTES_MAX} are read", text.len());
        let place = Place::File(context.file.clone());
        document.mistakes.push(Mistake { place, field: String::new(), message, suggestion: None });
        return document;
    }
    let lines = Lines::new(text, &context.file);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut lists = Vec::new();
    note_lists(root.get_ref(), &mut lists);
    for error in &errors {
        let span = error.span().unwrap_or(text.len()..text.len());
        let mistake = match lists.iter().find(|list| list.start < span.start && span.start <= list.end) {
            // Everything behind an unclosed bracket looks wrong. One mistake is told, where the list begins.
            Some(list) => {
                let (first, last) = (lines.number(list.start), lines.number(list.end.min(text.len())));
                document.broken.extend((first..=last).map(Some));
                syntax_mistake("the list or table that begins here is not closed, or has a mistake in it", list, &lines)
            }
            None => syntax_mistake(error.message(), &span, &lines),
        };
        if document.broken.insert(mistake.line()) || !document.mistakes.iter().any(|m| m.line() == mistake.line()) {
            document.mistakes.push(mistake);
        }
    }
    document.root = table(root.get_ref(), &|at| lines.place(at));
    for flag in &context.overrides {
        if let Err(mistake) = lay_over(&mut document.root, flag) {
            document.mistakes.push(mistake);
        }
    }
    document
}

/// The outermost lists and tables in braces.
fn note_lists(table: &DeTable<'_>, lists: &mut Vec<Range<usize>>) {
    for (key, item) in table.iter() {
        match item.get_ref() {
            DeValue::Array(_) => lists.push(item.span()),
            DeValue::Table(_) if item.span().start > key.span().end => lists.push(item.span()),
            DeValue::Table(inner) => note_lists(inner, lists),
            _ => {}
        }
    }
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

/// A TOML value on its own.
pub(crate) fn literal(text: &str) -> Option<Value> {
    let parsed = DeValue::parse(text).ok()?;
    Some(value(parsed.get_ref(), &|_| Place::Flag(text.to_string())))
}

/// Text from the file as it may stand in a message: one line, not too long.
pub(crate) fn shortened(text: &str) -> String {
    let clean: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() { clean + "…" } else { clean }
}

fn syntax_mistake(what: &str, span: &Range<usize>, lines: &Lines) -> Mistake {
    let source = lines.text.get(span.clone()).unwrap_or_default();
    let what = match what {
        "duplicate key" => format!("`{}` stands here for the second time", shortened(source)),
        _ if what.starts_with("string values must be quoted") && source.trim().is_empty() => {
            "a value is missing".to_string()
        }
        _ => what.replace('\n', ", ").replace(", expected nothing", ""),
    };
    let message = format!("not valid TOML: {what}");
    Mistake { place: lines.place(span.start), field: String::new(), message, suggestion: None }
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
        Ok(parsed) => value(parsed.get_ref(), &flag_place),
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
}

impl<'a> Lines<'a> {
    fn new(text: &'a str, file: &'a str) -> Lines<'a> {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Lines { text, file, starts }
    }

    /// Counted from 1. The very end belongs to the last line that has something on it.
    fn number(&self, at: usize) -> u32 {
        let at = at.min(self.text.trim_end().len());
        self.starts.partition_point(|start| *start <= at).max(1) as u32
    }

    fn place(&self, at: usize) -> Place {
        let line = self.number(at);
        let start = self.starts[line as usize - 1];
        let before = self.text.as_bytes().get(start..at).unwrap_or_default();
        let column = before.iter().filter(|byte| !(0x80..0xc0).contains(*byte)).count() + 1;
        Place::Line { file: self.file.to_string(), line, column: column as u32 }
    }
}
