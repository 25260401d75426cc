//! One section of a job file or a pipeline file, read key by key against the table of keys (`keys`).
//!
//! A getter gives `None` for what is absent or wrong; what is wrong was noted then, so callers need not ask
//! which it was.

use super::document::{Entry, Table, Value, shortened};
use super::keys::{Bound, Default, Key, Kind, When, Words};
use super::mistake::{Mistake, Place};
use crate::ids::Digest;
use crate::pipeline::Column;

pub(crate) struct Section<'a> {
    words: &'static Words,
    pub name: &'static str,
    table: Option<&'a Table>,
    /// Where to point for what is missing.
    place: Place,
    base_dir: &'a str,
    /// The chosen `kind`, `optimizer` and so on, that decide which keys belong here. A choice that could not
    /// be read is not in it: then all keys that it could bring are let pass.
    choices: Vec<(&'static str, Option<String>)>,
    asked: Vec<&'static str>,
    pub mistakes: Vec<Mistake>,
    /// Kept apart: what is missing may be there, but misspelt or on a line that is no TOML.
    missing: Vec<Mistake>,
}

impl Words {
    /// The section `name` of `root`; empty: the keys above the sections.
    pub(crate) fn open<'a>(
        &'static self,
        root: &'a Table,
        name: &'static str,
        file: &Place,
        base_dir: &'a str,
    ) -> Section<'a> {
        let mut section = Section::new(self, name, None, file.clone(), base_dir);
        if name.is_empty() {
            section.table = Some(root);
        } else if let Some(entry) = root.get(name) {
            section.place = entry.place.clone();
            match &entry.value {
                Value::Table(table) => section.table = Some(table),
                other => {
                    let message = format!("is {}; it is a section: [{name}] on a line of its own", other.describe());
                    let field = name.to_string();
                    section.mistakes.push(Mistake { place: entry.place.clone(), field, message, suggestion: None });
                }
            }
        }
        section
    }
}

impl<'a> Section<'a> {
    fn new(
        words: &'static Words,
        name: &'static str,
        table: Option<&'a Table>,
        place: Place,
        base_dir: &'a str,
    ) -> Section<'a> {
        let (choices, asked) = (Vec::new(), Vec::new());
        Section { words, name, table, place, base_dir, choices, asked, mistakes: Vec::new(), missing: Vec::new() }
    }

    pub fn has(&self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    fn entry(&self, name: &str) -> Option<&'a Entry> {
        self.table.and_then(|table| table.get(name))
    }

    fn field(&self, name: &str) -> String {
        if self.name.is_empty() { name.to_string() } else { format!("{}.{name}", self.name) }
    }

    /// A mistake (or warning) at key `name`, or at the section's head where the key is not given.
    pub fn at(&self, name: &str, message: impl Into<String>) -> Mistake {
        let place = self.entry(name).map_or(&self.place, |entry| &entry.place);
        Mistake { place: place.clone(), field: self.field(name), message: message.into(), suggestion: None }
    }

    pub fn wrong(&mut self, name: &str, message: impl Into<String>) {
        self.mistakes.push(self.at(name, message));
    }

    pub fn missing(&mut self, name: &str, message: impl Into<String>) {
        // Of a section that is no table, only that is told.
        if self.mistakes.iter().all(|mistake| mistake.field != self.name) {
            self.missing.push(self.at(name, message));
        }
    }

    /// The row of the table for `name` under the choices made so far.
    fn key(&mut self, name: &'static str) -> &'static Key {
        self.asked.push(name);
        self.words
            .keys
            .iter()
            .find(|key| key.section == self.name && key.name == name && self.applies(key.when))
            .expect("every key that is asked for stands in the table")
    }

    fn applies(&self, when: When) -> bool {
        match when {
            When::Always => true,
            When::Is(selector, values) => self.choices.iter().any(|(name, chosen)| {
                *name == selector && chosen.as_deref().is_some_and(|chosen| values.contains(&chosen))
            }),
        }
    }

    /// The value of `name` as given, or its default; `None` where there is neither. Notes what is missing.
    fn value(&mut self, name: &'static str) -> Option<(&'static Key, Entry)> {
        let key = self.key(name);
        if let Some(entry) = self.entry(name) {
            return Some((key, entry.clone()));
        }
        match key.default {
            Default::Is(text) => {
                let value = super::document::literal(text).expect("defaults in the table are TOML values");
                Some((key, Entry { place: self.place.clone(), value }))
            }
            Default::Required => {
                self.missing(name, format!("is missing; allowed: {}", key.kind.allowed()));
                None
            }
            Default::Absent(_) | Default::Rule(_) => None,
        }
    }

    fn refuse<T>(&mut self, key: &Key, value: &Value) -> Option<T> {
        self.wrong(key.name, format!("is {}; allowed: {}", value.describe(), key.kind.allowed()));
        None
    }

    pub fn text(&mut self, name: &'static str) -> Option<String> {
        let (key, entry) = self.value(name)?;
        match entry.value {
            Value::Text(text) if !text.is_empty() && !text.contains('\0') => Some(text),
            Value::Text(text) if text.is_empty() => {
                self.wrong(name, "is an empty text");
                None
            }
            other => self.refuse(key, &other),
        }
    }

    /// A path, made absolute.
    pub fn path(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        match resolve_path(self.base_dir, &text) {
            Ok(path) => Some(path),
            Err(message) => {
                self.wrong(name, message);
                None
            }
        }
    }

    /// A path, or a prefix in a bucket: `s3://bucket/prefix`.
    pub fn place(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        let checked = match text.strip_prefix("s3://") {
            Some(rest) => check_bucket(rest).map(|()| text.trim_end_matches('/').to_string()),
            None => resolve_path(self.base_dir, &text)
                .map_err(|message| message.replace("allowed: a path,", "allowed: s3://bucket/prefix, a path,")),
        };
        match checked {
            Ok(place) => Some(place),
            Err(message) => {
                self.wrong(name, message);
                None
            }
        }
    }

    pub fn truth(&mut self, name: &'static str) -> Option<bool> {
        let (key, entry) = self.value(name)?;
        match entry.value {
            Value::Bool(truth) => Some(truth),
            other => self.refuse(key, &other),
        }
    }

    /// One of the words that the table allows. Which keys belong to the section may depend on it.
    pub fn choice(&mut self, name: &'static str) -> Option<&'static str> {
        let (key, entry) = match self.value(name) {
            Some(found) => found,
            None => {
                self.choices.push((name, None));
                return None;
            }
        };
        let Kind::OneOf(words) = key.kind else { unreachable!("{} is a choice in the table", key.path()) };
        let chosen = match &entry.value {
            Value::Text(text) => words.iter().find(|word| **word == text.as_str()).copied(),
            _ => None,
        };
        if chosen.is_none() {
            let mut mistake = self.at(name, format!("is {}; allowed: {}", entry.value.describe(), key.kind.allowed()));
            if let Value::Text(text) = &entry.value {
                mistake.suggestion = nearest(text, words.iter().copied()).map(str::to_string);
            }
            self.mistakes.push(mistake);
        }
        self.choices.push((name, chosen.map(str::to_string)));
        chosen
    }

    pub fn int<T: TryFrom<u64>>(&mut self, name: &'static str) -> Option<T> {
        let (key, entry) = self.value(name)?;
        let Kind::Int { min, max } = key.kind else { unreachable!("{} is an integer in the table", key.path()) };
        match within(&entry.value, min, max).and_then(|number| T::try_from(number).ok()) {
            Some(number) => Some(number),
            None => self.refuse(key, &entry.value),
        }
    }

    /// A column: the one integer that may be negative.
    pub fn column(&mut self, name: &'static str) -> Option<i32> {
        let (key, entry) = self.value(name)?;
        match entry.value {
            Value::Int(number) if i32::try_from(number).is_ok() => i32::try_from(number).ok(),
            other => self.refuse(key, &other),
        }
    }

    /// A column, by its number or its name.
    pub fn any_column(&mut self, name: &'static str) -> Option<Column> {
        let (key, entry) = self.value(name)?;
        as_column(&entry.value).or_else(|| self.refuse(key, &entry.value))
    }

    pub fn any_columns(&mut self, name: &'static str) -> Option<Vec<Column>> {
        let (key, entry) = self.value(name)?;
        let Kind::AnyColumns { count_max } = key.kind else { unreachable!("{} is a list in the table", key.path()) };
        let Value::Array(items) = &entry.value else { return self.refuse(key, &entry.value) };
        let columns: Vec<Column> = items.iter().filter_map(|item| as_column(&item.value)).collect();
        if columns.len() != items.len() || columns.len() > count_max {
            return self.refuse(key, &entry.value);
        }
        Some(columns)
    }

    /// A folder, made absolute, or the address of a bucket as it is.
    pub fn address(&mut self, name: &'static str) -> Option<String> {
        let text = self.text(name)?;
        if text.starts_with("s3://") { Some(text) } else { self.path(name) }
    }

    pub fn ints(&mut self, name: &'static str) -> Option<Vec<u32>> {
        let (key, entry) = self.value(name)?;
        let Kind::Ints { count_min, count_max, min, max } = key.kind else {
            unreachable!("{} is a list in the table", key.path())
        };
        let Value::Array(items) = &entry.value else { return self.refuse(key, &entry.value) };
        if !(count_min..=count_max).contains(&items.len()) {
            self.wrong(name, format!("has {} entries; allowed: {}", items.len(), key.kind.allowed()));
            return None;
        }
        let mut numbers = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match within(&item.value, min, max).and_then(|number| u32::try_from(number).ok()) {
                Some(number) => numbers.push(number),
                None => {
                    let message =
                        format!("entry {index} is {}; allowed: {}", item.value.describe(), key.kind.allowed());
                    let place = item.place.clone();
                    self.mistakes.push(Mistake { place, field: self.field(name), message, suggestion: None });
                }
            }
        }
        (numbers.len() == items.len()).then_some(numbers)
    }

    /// A list of texts.
    pub fn texts(&mut self, name: &'static str) -> Option<Vec<String>> {
        let (key, entry) = self.value(name)?;
        let Kind::Texts { count_max } = key.kind else { unreachable!("{} is a list in the table", key.path()) };
        let Value::Array(items) = &entry.value else { return self.refuse(key, &entry.value) };
        if items.len() > count_max {
            self.wrong(name, format!("has {} entries; allowed: {}", items.len(), key.kind.allowed()));
            return None;
        }
        let mut texts = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match &item.value {
                Value::Text(text) if !text.is_empty() => texts.push(text.clone()),
                other => {
                    let message = format!("entry {index} is {}; allowed: texts that are not empty", other.describe());
                    let place = item.place.clone();
                    self.mistakes.push(Mistake { place, field: self.field(name), message, suggestion: None });
                }
            }
        }
        (texts.len() == items.len()).then_some(texts)
    }

    /// A list of words, of which some may be empty: a command line.
    pub fn words(&mut self, name: &'static str) -> Option<Vec<String>> {
        let (key, entry) = self.value(name)?;
        let Kind::Words { count_max } = key.kind else { unreachable!("{} is a list in the table", key.path()) };
        let Value::Array(items) = &entry.value else { return self.refuse(key, &entry.value) };
        let word = |item: &Entry| match &item.value {
            Value::Text(text) if !text.contains('\0') => Some(text.clone()),
            _ => None,
        };
        match items.iter().map(word).collect::<Option<Vec<String>>>() {
            Some(words) if words.len() <= count_max => Some(words),
            _ => {
                self.wrong(name, format!("is not {}", key.kind.allowed()));
                None
            }
        }
    }

    pub fn float(&mut self, name: &'static str) -> Option<f64> {
        self.real(name, |text| text.parse::<f64>().ok(), |number| *number)
    }

    /// Rounded once, from the text.
    pub fn float32(&mut self, name: &'static str) -> Option<f32> {
        self.real(name, |text| text.parse::<f32>().ok(), |number| f64::from(*number))
    }

    fn real<T>(&mut self, name: &'static str, read: fn(&str) -> Option<T>, wide: fn(&T) -> f64) -> Option<T> {
        let (key, entry) = self.value(name)?;
        let Kind::Float { low, high } = key.kind else { unreachable!("{} is a number in the table", key.path()) };
        let number = match &entry.value {
            Value::Float(text) => read(text),
            Value::Int(number) => read(&number.to_string()),
            _ => None,
        };
        let fits = |number: &T| is_above(wide(number), low) && is_below(wide(number), high);
        match number.filter(fits) {
            Some(number) => Some(number),
            None => self.refuse(key, &entry.value),
        }
    }

    pub fn digest(&mut self, name: &'static str) -> Option<Digest> {
        let (key, entry) = self.value(name)?;
        match &entry.value {
            Value::Text(text) if Digest::parse(text).is_some() => Digest::parse(text),
            other => self.refuse(key, other),
        }
    }

    /// A table that is handed on as it is.
    pub fn json(&mut self, name: &'static str) -> Option<serde_json::Value> {
        let (key, entry) = self.value(name)?;
        let Value::Table(_) = &entry.value else { return self.refuse(key, &entry.value) };
        let mut mistakes = Vec::new();
        let json = to_json(&entry, &self.field(name), &mut mistakes);
        self.mistakes.append(&mut mistakes);
        json
    }

    /// The tables of a list, each a section by itself that is to be taken up ([`take_up`](Section::take_up)) once read.
    pub fn tables(&mut self, name: &'static str) -> Option<Vec<Section<'a>>> {
        let key = self.key(name);
        let Kind::Tables { count_max, section } = key.kind else { unreachable!("{} is a list of tables", key.path()) };
        let Some(entry) = self.entry(name) else { return Some(Vec::new()) };
        let Value::Array(items) = &entry.value else { return self.refuse(key, &entry.value) };
        if items.len() > count_max {
            self.wrong(name, format!("has {} entries; allowed: {}", items.len(), key.kind.allowed()));
            return None;
        }
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match &item.value {
                Value::Table(table) => {
                    sections.push(Section::new(self.words, section, Some(table), item.place.clone(), self.base_dir));
                }
                other => {
                    let message = format!("entry {index} is {}; allowed: {}", other.describe(), key.kind.allowed());
                    let place = item.place.clone();
                    self.mistakes.push(Mistake { place, field: self.field(name), message, suggestion: None });
                }
            }
        }
        (sections.len() == items.len()).then_some(sections)
    }

    /// Closes a section of this section's list.
    pub fn take_up(&mut self, inner: Section) {
        let (wrong, missing) = inner.close();
        self.mistakes.extend(wrong);
        self.missing.extend(missing);
    }

    /// What is wrong, each key that nobody asked for included; then what is missing.
    pub fn close(mut self) -> (Vec<Mistake>, Vec<Mistake>) {
        for (name, entry) in self.table.into_iter().flatten() {
            let is_section = self.name.is_empty() && self.words.sections.iter().any(|(section, _)| section == name);
            if is_section || self.asked.contains(&name.as_str()) {
                continue;
            }
            if let Some(mistake) = self.stray(name, entry) {
                self.mistakes.push(mistake);
            }
        }
        (self.mistakes, self.missing)
    }

    fn stray(&self, name: &str, entry: &Entry) -> Option<Mistake> {
        let field = self.field(&shortened(name));
        let mistake = |message: String, suggestion: Option<String>| {
            Some(Mistake { place: entry.place.clone(), field: field.clone(), message, suggestion })
        };
        let here: Vec<&Key> =
            self.words.keys.iter().filter(|key| key.section == self.name && key.name == name).collect();
        if let Some(key) = here.first() {
            let When::Is(selector, _) = key.when else { return None };
            let chosen = self.choices.iter().find(|(name, _)| *name == selector).and_then(|(_, chosen)| chosen.clone());
            // Nothing can be said about keys of a kind that could not be read.
            let chosen = chosen?;
            let of: Vec<String> = here
                .iter()
                .flat_map(|key| if let When::Is(_, values) = key.when { values } else { &[] })
                .map(|value| format!("\"{value}\""))
                .collect();
            let message = format!("is a key of {selector} = {}, and {selector} is \"{chosen}\"", of.join(" or "));
            return mistake(message, None);
        }
        if matches!(entry.value, Value::Table(_)) && self.name.is_empty() {
            let sections: Vec<String> = self.words.sections.iter().map(|(section, _)| format!("[{section}]")).collect();
            let suggestion =
                nearest(name, self.words.sections.iter().map(|(section, _)| *section)).map(|near| format!("[{near}]"));
            return mistake(format!("is no section; there are {}", sections.join(", ")), suggestion);
        }
        let own = self
            .words
            .keys
            .iter()
            .filter(|key| key.section == self.name && self.could_apply(key.when))
            .map(|key| key.name);
        if let Some(near) = nearest(name, own) {
            return mistake("is no key of this section".to_string(), Some(self.field(near)));
        }
        // The right word in the wrong section, or a near miss of one.
        let elsewhere = self.words.keys.iter().find(|key| key.name == name).map(Key::path);
        let elsewhere = elsewhere.or_else(|| {
            let near = nearest(name, self.words.keys.iter().map(|key| key.name))?;
            self.words.keys.iter().find(|key| key.name == near).map(Key::path)
        });
        let what = if self.name.is_empty() { "is no key; keys stand in sections" } else { "is no key of this section" };
        mistake(what.to_string(), elsewhere)
    }

    fn could_apply(&self, when: When) -> bool {
        let When::Is(selector, _) = when else { return true };
        let unread = self.choices.iter().all(|(name, chosen)| *name != selector || chosen.is_none());
        unread || self.applies(when)
    }
}

fn as_column(value: &Value) -> Option<Column> {
    match value {
        Value::Int(number) => i32::try_from(*number).ok().map(Column::Number),
        Value::Text(text) if !text.is_empty() => Some(Column::Name(text.clone())),
        _ => None,
    }
}

fn within(value: &Value, min: u64, max: u64) -> Option<u64> {
    let Value::Int(number) = value else { return None };
    u64::try_from(*number).ok().filter(|number| (min..=max).contains(number))
}

fn is_above(number: f64, bound: Bound) -> bool {
    match bound {
        Bound::With(bound) => number >= bound,
        Bound::Without(bound) => number > bound,
    }
}

fn is_below(number: f64, bound: Bound) -> bool {
    match bound {
        Bound::With(bound) => number <= bound,
        Bound::Without(bound) => number < bound,
    }
}

/// The word that `text` is a misspelling of, if one is near.
fn nearest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    if text.len() > 40 {
        return None;
    }
    let text = text.to_ascii_lowercase();
    // `batch` means `global_batch`, and `validate` means `validate_every`.
    let mut best: Option<(f64, &str)> = None;
    for word in words {
        let inside = text.len() >= 3 && (word.starts_with(&text) || word.ends_with(&text));
        let likeness = strsim::jaro_winkler(&text, word);
        let score = if inside { likeness.max(0.9) } else { likeness };
        let edits = strsim::damerau_levenshtein(&text, word);
        let near = inside || edits <= 1 + word.len() / 5;
        if near && best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, word));
        }
    }
    best.map(|(_, word)| word)
}

/// A path as it is stored: absolute if the base is, without a leading `./`.
pub(crate) fn resolve_path(base_dir: &str, text: &str) -> Result<String, String> {
    let mut text = text;
    while let Some(shorter) = text.strip_prefix("./") {
        text = shorter.trim_start_matches('/');
    }
    let text = match text.split_once("://") {
        Some(("file", rest)) if rest.starts_with('/') => rest,
        Some((scheme, _)) if scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') => {
            return Err(format!(
                "is a URL that begins with {}://; allowed: a path, or a file:/// URL, of a file that every worker can open",
                shortened(scheme)
            ));
        }
        _ => text,
    };
    if text.starts_with('/') {
        return Ok(text.to_string());
    }
    let rest = if text.is_empty() { "." } else { text };
    match (base_dir.trim_end_matches('/'), rest) {
        _ if base_dir.is_empty() => Ok(rest.to_string()),
        ("", ".") => Ok("/".to_string()),
        (base, ".") => Ok(base.to_string()),
        (base, rest) => Ok(format!("{base}/{rest}")),
    }
}

fn check_bucket(text: &str) -> Result<(), String> {
    let (bucket, prefix) = text.split_once('/').unwrap_or((text, ""));
    let of_bucket = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-';
    if !(3..=63).contains(&bucket.len()) || !bucket.bytes().all(of_bucket) {
        return Err(format!(
            "names the bucket \"{}\"; allowed: 3 to 63 of a-z, 0-9, \".\" and \"-\", as in s3://bucket/prefix",
            shortened(bucket)
        ));
    }
    let of_prefix = |c: char| c.is_ascii_alphanumeric() || "._-=@+".contains(c);
    let is_part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.chars().all(of_prefix);
    match prefix.trim_end_matches('/') {
        prefix if prefix.len() > 500 => Err(format!("has a prefix of {} bytes; allowed: 500", prefix.len())),
        prefix if prefix.is_empty() || prefix.split('/').all(is_part) => Ok(()),
        prefix => Err(format!(
            "has the prefix \"{}\"; allowed: parts of letters, digits and . _ - = @ +, separated by /",
            shortened(prefix)
        )),
    }
}

fn to_json(entry: &Entry, field: &str, mistakes: &mut Vec<Mistake>) -> Option<serde_json::Value> {
    use serde_json::Value as Json;
    let number = match &entry.value {
        Value::Text(text) => return Some(Json::String(text.clone())),
        Value::Bool(truth) => return Some(Json::Bool(*truth)),
        Value::Array(items) => {
            let items: Vec<Option<Json>> = items.iter().map(|item| to_json(item, field, mistakes)).collect();
            return items.into_iter().collect::<Option<Vec<Json>>>().map(Json::Array);
        }
        Value::Table(table) => {
            let mut object = serde_json::Map::new();
            for (name, inner) in table {
                let field = format!("{field}.{}", shortened(name));
                object.insert(name.clone(), to_json(inner, &field, mistakes).unwrap_or_default());
            }
            return Some(Json::Object(object));
        }
        Value::Int(number) => {
            i64::try_from(*number).map(Json::from).or_else(|_| u64::try_from(*number).map(Json::from)).ok()
        }
        Value::Float(text) => text.parse::<f64>().ok().and_then(serde_json::Number::from_f64).map(Json::Number),
        Value::HugeInt(_) | Value::Date(_) => None,
    };
    if number.is_none() {
        let message = format!(
            "is {}; allowed are texts, true, false, lists, tables and finite numbers of 64 bits",
            entry.value.describe()
        );
        mistakes.push(Mistake { place: entry.place.clone(), field: field.to_string(), message, suggestion: None });
    }
    number
}
