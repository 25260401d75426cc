//! JSON as requests have it: read in one pass without a tree, so that a list of numbers costs little more than its text.
//!
//! Strict as RFC 8259, with a bound on depth and with the place of every mistake. The numbers NaN, Infinity and
//! -Infinity are let in where the protocol has them ([`Scanner::lenient`]).

mod number;
mod write;

pub use write::{write_float, write_float_or_token, write_int, write_text};

use crate::limits::JSON_DEPTH_MAX;
use crate::refusal::{Refusal, quote};
use std::borrow::Cow;
use std::fmt::Display;

pub struct Scanner<'a> {
    text: &'a [u8],
    at: usize,
    depth: usize,
    lenient: bool,
}

pub type Read<T> = Result<T, Refusal>;

/// What a value begins as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Object,
    List,
    Text,
    Number,
    Bool,
    Null,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::Object => "an object",
            Kind::List => "a list",
            Kind::Text => "a string",
            Kind::Number => "a number",
            Kind::Bool => "true or false",
            Kind::Null => "null",
        }
    }
}

impl<'a> Scanner<'a> {
    pub fn new(text: &'a [u8]) -> Scanner<'a> {
        Scanner { text, at: 0, depth: 0, lenient: false }
    }

    pub fn lenient(text: &'a [u8]) -> Scanner<'a> {
        Scanner { text, at: 0, depth: 0, lenient: true }
    }

    /// A mistake at the present place.
    pub fn mistake(&self, what: impl Display) -> Refusal {
        let before = &self.text[..self.at.min(self.text.len())];
        let line = before.iter().filter(|b| **b == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|b| **b != b'\n').count() + 1;
        Refusal::Invalid(format!("malformed JSON at line {line}, column {column}: {what}"))
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn here(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// What comes next, spoken of in a mistake.
    fn found(&self) -> String {
        match self.text.get(self.at..) {
            None | Some([]) => "the end of the text".into(),
            Some(rest) => {
                let piece = String::from_utf8_lossy(&rest[..rest.len().min(12)]).into_owned();
                format!("\"{}\"", quote(&piece))
            }
        }
    }

    /// The kind of the next value, which is not read.
    pub fn kind(&mut self) -> Read<Kind> {
        self.space();
        match self.here() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::List),
            Some(b'"') => Ok(Kind::Text),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b'N' | b'I') if self.lenient => Ok(Kind::Number),
            _ => Err(self.mistake(format!("expected a value, found {}", self.found()))),
        }
    }

    fn expect(&mut self, kind: Kind, what: impl Display) -> Read<()> {
        match self.kind()? {
            found if found == kind => Ok(()),
            found => Err(Refusal::Invalid(format!("{what} must be {}, not {}", kind.word(), found.word()))),
        }
    }

    /// Each key once; `read` must read its value. `what` names the object in mistakes.
    pub fn object(&mut self, what: impl Display, mut read: impl FnMut(&mut Self, &str) -> Read<()>) -> Read<()> {
        self.expect(Kind::Object, what)?;
        self.enter()?;
        let mut keys: Vec<Cow<'a, str>> = Vec::new();
        while self.item(b'}', keys.is_empty())? {
            self.space();
            if self.here() != Some(b'"') {
                return Err(self.mistake(format!("expected a key in double quotes, found {}", self.found())));
            }
            let key = self.text_value("a key")?;
            // Linear: requests have few keys. Lists of tensors are bounded, other large objects are skipped.
            if keys.len() < KEYS_COMPARED && keys.contains(&key) {
                return Err(self.mistake(format!("the key '{}' stands twice", quote(&key))));
            }
            self.space();
            if self.here() != Some(b':') {
                return Err(self.mistake(format!("expected ':', found {}", self.found())));
            }
            self.at += 1;
            read(self, &key)?;
            keys.push(key);
        }
        Ok(())
    }

    /// `read` must read one value.
    pub fn list(&mut self, what: impl Display, mut read: impl FnMut(&mut Self, usize) -> Read<()>) -> Read<()> {
        self.expect(Kind::List, what)?;
        self.enter()?;
        let mut count = 0;
        while self.item(b']', count == 0)? {
            read(self, count)?;
            count += 1;
        }
        Ok(())
    }

    fn enter(&mut self) -> Read<()> {
        self.depth += 1;
        if self.depth > JSON_DEPTH_MAX {
            return Err(self.mistake(format!("more than {JSON_DEPTH_MAX} lists and objects in each other")));
        }
        self.at += 1;
        Ok(())
    }

    /// Goes to the next item of a list or object; false at its end, which is read.
    fn item(&mut self, end: u8, first: bool) -> Read<bool> {
        self.space();
        match self.here() {
            Some(found) if found == end => {
                self.at += 1;
                self.depth -= 1;
                Ok(false)
            }
            Some(b',') if !first => {
                self.at += 1;
                self.space();
                match self.here() {
                    Some(b']' | b'}') | None => {
                        Err(self.mistake(format!("expected a value after ',', found {}", self.found())))
                    }
                    Some(_) => Ok(true),
                }
            }
            Some(_) if first => Ok(true),
            _ => Err(self.mistake(format!("expected ',' or '{}', found {}", char::from(end), self.found()))),
        }
    }

    /// A string.
    pub fn text_value(&mut self, what: impl Display) -> Read<Cow<'a, str>> {
        self.expect(Kind::Text, what)?;
        let start = self.at + 1;
        let mut at = start;
        loop {
            match self.text.get(at) {
                None => {
                    self.at = at;
                    return Err(self.mistake("a string has no end"));
                }
                Some(b'"') => break,
                Some(b'\\') => return self.escaped(start, at),
                Some(b) if *b < 0x20 => {
                    self.at = at;
                    return Err(self.mistake("a control character in a string"));
                }
                Some(_) => at += 1,
            }
        }
        let text = std::str::from_utf8(&self.text[start..at]).map_err(|_| self.mistake("a string is not UTF-8"))?;
        self.at = at + 1;
        Ok(Cow::Borrowed(text))
    }

    /// The rest of a string from its first backslash on.
    fn escaped(&mut self, start: usize, from: usize) -> Read<Cow<'a, str>> {
        let mut bytes = self.text[start..from].to_vec();
        self.at = from;
        loop {
            let Some(byte) = self.here() else { return Err(self.mistake("a string has no end")) };
            match byte {
                b'"' => break,
                b'\\' => {
                    self.at += 1;
                    let c = self.escape()?;
                    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                }
                b if b < 0x20 => return Err(self.mistake("a control character in a string")),
                b => {
                    bytes.push(b);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        String::from_utf8(bytes).map(Cow::Owned).map_err(|_| self.mistake("a string is not UTF-8"))
    }

    /// Behind the backslash.
    fn escape(&mut self) -> Read<char> {
        let Some(byte) = self.here() else { return Err(self.mistake("a string has no end")) };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let high = self.hex4()?;
                let code = match high {
                    0xd800..=0xdbff if self.text.get(self.at..self.at + 2) == Some(b"\\u") => {
                        self.at += 2;
                        let low = self.hex4()?;
                        match low {
                            0xdc00..=0xdfff => 0x10000 + ((high - 0xd800) << 10) + (low - 0xdc00),
                            _ => return Err(self.mistake("half of a surrogate pair")),
                        }
                    }
                    _ => high,
                };
                char::from_u32(code).ok_or_else(|| self.mistake("half of a surrogate pair"))?
            }
            _ => return Err(self.mistake("an unknown escape in a string")),
        })
    }

    fn hex4(&mut self) -> Read<u32> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let digits = digits.ok_or_else(|| self.mistake("\\u needs four hexadecimal digits"))?;
        self.at += 4;
        Ok(digits.iter().fold(0, |code, d| code * 16 + char::from(*d).to_digit(16).expect("checked above")))
    }

    pub fn bool_value(&mut self, what: impl Display) -> Read<bool> {
        self.expect(Kind::Bool, what)?;
        match self.here() {
            Some(b't') => self.word(b"true").map(|_| true),
            _ => self.word(b"false").map(|_| false),
        }
    }

    fn word(&mut self, word: &'static [u8]) -> Read<()> {
        match self.text.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            true => {
                self.at += word.len();
                Ok(())
            }
            false => Err(self.mistake(format!("expected a value, found {}", self.found()))),
        }
    }

    pub fn null(&mut self) -> Read<()> {
        self.kind()?;
        self.word(b"null")
    }

    /// Reads a value of any kind, checks that it is well formed, and gives its text.
    pub fn skip(&mut self) -> Read<&'a [u8]> {
        self.space();
        let start = self.at;
        match self.kind()? {
            Kind::Object => self.object("a value", |s, _| s.skip().map(drop))?,
            Kind::List => self.list("a value", |s, _| s.skip().map(drop))?,
            Kind::Text => self.text_value("a value").map(drop)?,
            Kind::Number => self.number().map(drop)?,
            Kind::Bool => self.bool_value("a value").map(drop)?,
            Kind::Null => self.null()?,
        }
        Ok(&self.text[start..self.at])
    }

    /// Bytes that are not read yet.
    pub fn left(&self) -> usize {
        self.text.len().saturating_sub(self.at)
    }

    /// Where the scanner is, to come back to by [`Scanner::seek`].
    pub fn place(&mut self) -> usize {
        self.space();
        self.at
    }

    pub fn seek(&mut self, place: usize) {
        self.at = place;
    }

    /// Nothing but space may follow.
    pub fn end(&mut self) -> Read<()> {
        self.space();
        match self.at == self.text.len() {
            true => Ok(()),
            false => Err(self.mistake(format!("expected the end of the text, found {}", self.found()))),
        }
    }

    /// Lists in lists, all of one length at each depth: the shape, and `leaf` called for each value that is no list.
    pub fn tensor(&mut self, what: &str, mut leaf: impl FnMut(&mut Self) -> Read<()>) -> Read<Vec<usize>> {
        let mut shape = Shape { lengths: Vec::new(), leaves_at: None };
        self.level(0, what, &mut shape, &mut leaf)?;
        Ok(shape.lengths.into_iter().map(|length| length.unwrap_or(0)).collect())
    }

    fn level(
        &mut self,
        depth: usize,
        what: &str,
        shape: &mut Shape,
        leaf: &mut impl FnMut(&mut Self) -> Read<()>,
    ) -> Read<()> {
        self.space();
        if self.here() != Some(b'[') {
            if *shape.leaves_at.get_or_insert(depth) != depth || shape.lengths.len() > depth {
                return Err(Refusal::Invalid(format!("{what} has lists and numbers side by side")));
            }
            return leaf(self);
        }
        if shape.leaves_at.is_some_and(|leaves| leaves <= depth) {
            return Err(Refusal::Invalid(format!("{what} has lists and numbers side by side")));
        }
        if shape.lengths.len() == depth {
            shape.lengths.push(None);
        }
        self.enter()?;
        let mut count = 0;
        while self.item(b']', count == 0)? {
            self.level(depth + 1, what, shape, leaf)?;
            count += 1;
        }
        match shape.lengths[depth].get_or_insert(count) {
            length if *length == count => Ok(()),
            length => Err(Refusal::Invalid(format!(
                "{what} is ragged: lists of {length} and of {count} values side by side at depth {}",
                depth + 1
            ))),
        }
    }
}

struct Shape {
    lengths: Vec<Option<usize>>,
    leaves_at: Option<usize>,
}

/// Keys of one object that are compared with each other.
const KEYS_COMPARED: usize = 64;

#[cfg(test)]
mod tests;
