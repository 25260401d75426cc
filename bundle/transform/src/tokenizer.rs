//! Hugging Face's tokenizer.json, for byte-level BPE: the kind that GPT-2, Llama 3 and Qwen use.
//!
//! The reader takes what it can do exactly as the original does, and refuses a file that asks for more by
//! naming what it is. Special tokens are recognised in a text, but none are added. (The `tokenizers` crate
//! would bring 45 further crates for kinds that nobody trains a first model with.)

use regex::Regex;
use serde_json::Value as Json;
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

#[derive(Debug)]
pub struct Tokenizer {
    /// The token of each single byte.
    bytes: [u32; 256],
    merges: Merges,
    /// Pieces that are a token as they are, for files that say so.
    whole: Option<HashMap<Vec<u8>, u32>>,
    /// Whether a space goes before a text that has none.
    prefix_space: bool,
    split: Vec<Split>,
    /// Special tokens, and the pattern that finds the next of them.
    added: HashMap<String, u32>,
    next_added: Option<Regex>,
    needs_normal_form: bool,
    vocab: usize,
    /// What each token is in a text; empty where there is no such token.
    pieces: Vec<Box<[u8]>>,
}

/// (left, right) -> (rank, joined): the lowest rank is joined first.
type Merges = HashMap<(u32, u32), (u32, u32)>;

/// One way to cut a text into pieces that BPE does not cross.
#[derive(Debug)]
struct Split {
    /// All alternatives but those for white space, at the start of what is left.
    head: Regex,
    /// Whether the pattern ends in `\s+(?!\S)|\s+`, which the regex crate cannot say: white space, without
    /// the last character if a word follows.
    space: bool,
}

/// GPT-2's pattern, which `ByteLevel` means unless it says `use_regex: false`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

impl Tokenizer {
    /// Reads a tokenizer.json; an error says what in it cannot be done.
    pub fn parse(bytes: &[u8]) -> Result<Tokenizer, String> {
        let json: Json = serde_json::from_slice(bytes).map_err(|error| format!("no JSON: {error}"))?;
        let model = &json["model"];
        check_model(model)?;
        let vocab = read_vocab(&model["vocab"])?;
        let letters = byte_letters();
        let mut tokens = [0; 256];
        for (byte, letter) in letters.iter().enumerate() {
            let token = vocab.get(letter.to_string().as_str());
            tokens[byte] = *token.ok_or_else(|| {
                format!("model.vocab has no token for byte {byte} ({letter:?}); only byte-level BPE is read")
            })?;
        }
        let merges = read_merges(&model["merges"], &vocab)?;
        let whole = (model["ignore_merges"] == Json::Bool(true)).then(|| whole_pieces(&vocab, &letters));
        let (split, prefix_space) = read_pre_tokenizer(&json["pre_tokenizer"])?;
        let added = read_added(&json["added_tokens"])?;
        let largest = vocab.values().chain(added.values()).copied().max().unwrap_or(0);
        let pieces = pieces(&vocab, &added, &letters, largest as usize + 1);
        Ok(Tokenizer {
            pieces,
            bytes: tokens,
            merges,
            whole,
            prefix_space,
            split,
            next_added: any_of(added.keys())?,
            added,
            needs_normal_form: needs_normal_form(&json["normalizer"])?,
            vocab: largest as usize + 1,
        })
    }

    /// One more than the largest token.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// The bytes that a token stands for. They need not be whole characters. Empty for a number that is no token.
    pub fn piece(&self, token: i32) -> &[u8] {
        usize::try_from(token).ok().and_then(|token| self.pieces.get(token)).map_or(&[], |piece| piece)
    }

    /// The most bytes that one token stands for.
    pub fn longest(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len()).max().unwrap_or(1).max(1)
    }

    /// A special token by its text, such as `<|endoftext|>`.
    pub fn special(&self, text: &str) -> Option<i32> {
        self.added.get(text).map(|token| *token as i32)
    }

    pub fn encode(&self, text: &str) -> Result<Vec<i32>, String> {
        // Below U+0300 there is nothing that a canonical form would change.
        if let Some((at, c)) = text.char_indices().find(|(_, c)| self.needs_normal_form && *c >= '\u{300}') {
            return Err(format!(
                "byte {at}: {c:?} may change in the normal form (NFC) that the tokenizer asks for; bring the text into that form, and remove `normalizer` from the tokenizer"
            ));
        }
        let mut out = Vec::with_capacity(text.len() / 3);
        let mut cache = HashMap::new();
        let mut done = 0;
        for special in self.next_added.iter().flat_map(|pattern| pattern.find_iter(text)) {
            self.encode_plain(&text[done..special.start()], &mut cache, &mut out);
            out.push(self.added[special.as_str()] as i32);
            done = special.end();
        }
        self.encode_plain(&text[done..], &mut cache, &mut out);
        Ok(out)
    }

    fn encode_plain<'t>(&self, text: &'t str, cache: &mut HashMap<&'t str, Vec<u32>>, out: &mut Vec<i32>) {
        if !self.prefix_space || text.is_empty() || text.starts_with(' ') {
            return self.encode_pieces(text, cache, out);
        }
        // The first piece alone is not a part of the text itself.
        let spaced = format!(" {text}");
        let first = self.cut(&spaced)[0].len();
        out.extend(self.join(&spaced.as_bytes()[..first]).into_iter().map(|token| token as i32));
        self.encode_pieces(&text[first - 1..], cache, out);
    }

    fn encode_pieces<'t>(&self, text: &'t str, cache: &mut HashMap<&'t str, Vec<u32>>, out: &mut Vec<i32>) {
        for piece in self.cut(text) {
            let tokens = cache.entry(piece).or_insert_with(|| self.join(piece.as_bytes()));
            out.extend(tokens.iter().map(|token| *token as i32));
        }
    }

    /// The pieces of `text`, in order and complete.
    fn cut<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for split in &self.split {
            pieces = pieces.into_iter().flat_map(|piece| split.cut(piece)).collect();
        }
        pieces.retain(|piece| !piece.is_empty());
        pieces
    }

    /// BPE: joins the neighbours of the lowest rank, leftmost first, until no rank is left.
    fn join(&self, piece: &[u8]) -> Vec<u32> {
        if let Some(token) = self.whole.as_ref().and_then(|whole| whole.get(piece)) {
            return vec![*token];
        }
        let mut line = Line::new(piece.iter().map(|byte| self.bytes[usize::from(*byte)]).collect());
        let mut queue = BinaryHeap::new();
        let rank = |line: &Line, at: usize| {
            let pair = (line.tokens[at], line.tokens[line.next(at)?]);
            self.merges.get(&pair).map(|(rank, joined)| Reverse((*rank, at, *joined, pair)))
        };
        queue.extend((0..piece.len()).filter_map(|at| rank(&line, at)));
        while let Some(Reverse((_, at, joined, pair))) = queue.pop() {
            // A neighbour may have been joined since: then this is not the pair that was ranked.
            if !line.is_pair(at, pair) {
                continue;
            }
            line.join(at, joined);
            queue.extend(line.previous(at).and_then(|before| rank(&line, before)));
            queue.extend(rank(&line, at));
        }
        line.left()
    }
}

/// Tokens from which some are taken out: the place of a token stays what it was.
struct Line {
    tokens: Vec<u32>,
    nexts: Vec<usize>,
    previous: Vec<usize>,
    is_gone: Vec<bool>,
}

impl Line {
    fn new(tokens: Vec<u32>) -> Line {
        let places = 0..tokens.len();
        let (nexts, previous) =
            (places.clone().map(|at| at + 1).collect(), places.map(|at| at.wrapping_sub(1)).collect());
        let is_gone = vec![false; tokens.len()];
        Line { tokens, nexts, previous, is_gone }
    }

    fn next(&self, at: usize) -> Option<usize> {
        Some(self.nexts[at]).filter(|next| *next < self.tokens.len())
    }

    fn previous(&self, at: usize) -> Option<usize> {
        Some(self.previous[at]).filter(|before| *before < self.tokens.len())
    }

    fn is_pair(&self, at: usize, pair: (u32, u32)) -> bool {
        !self.is_gone[at] && self.tokens[at] == pair.0 && self.next(at).is_some_and(|next| self.tokens[next] == pair.1)
    }

    fn join(&mut self, at: usize, joined: u32) {
        let taken = self.nexts[at];
        self.tokens[at] = joined;
        self.is_gone[taken] = true;
        self.nexts[at] = self.nexts[taken];
        if let Some(after) = self.next(at) {
            self.previous[after] = at;
        }
    }

    fn left(self) -> Vec<u32> {
        self.tokens.into_iter().zip(self.is_gone).filter(|(_, gone)| !gone).map(|(token, _)| token).collect()
    }
}

impl Split {
    fn new(pattern: &str) -> Result<Split, String> {
        let (head, space) = match pattern.strip_suffix(r"|\s+(?!\S)|\s+") {
            Some(head) => (head, true),
            None => (pattern, false),
        };
        let head = Regex::new(&format!("^(?:{head})")).map_err(|_| {
            format!("pre_tokenizer: the pattern {pattern:?} cannot be read; known are those of GPT-2, Llama 3 and Qwen")
        })?;
        Ok(Split { head, space })
    }

    fn cut<'t>(&self, text: &'t str) -> Vec<&'t str> {
        let mut pieces = Vec::new();
        // What no alternative matches is a piece of its own.
        let (mut stray, mut at) = (0, 0);
        while at < text.len() {
            let length = self.length(&text[at..]);
            if length == 0 {
                at += text[at..].chars().next().map_or(1, char::len_utf8);
                continue;
            }
            pieces.extend([&text[stray..at], &text[at..at + length]]);
            at += length;
            stray = at;
        }
        pieces.push(&text[stray..]);
        pieces
    }

    /// Bytes of the piece that `rest` begins with; 0: nothing matches here.
    fn length(&self, rest: &str) -> usize {
        if let Some(found) = self.head.find(rest).filter(|found| !found.is_empty()) {
            return found.end();
        }
        let space = rest.len() - rest.trim_start().len();
        let last = rest[..space].chars().next_back().map_or(0, char::len_utf8);
        match self.space {
            true if space < rest.len() && space > last => space - last,
            true => space,
            false => 0,
        }
    }
}

fn check_model(model: &Json) -> Result<(), String> {
    let kind = model["type"].as_str().unwrap_or("BPE");
    if kind != "BPE" || model["vocab"].is_null() {
        return Err(format!("model.type is {kind:?}; only byte-level BPE is read"));
    }
    let is_off = |value: &Json| matches!(value, Json::Null | Json::Bool(false)) || value == "" || value == 0.0;
    for key in ["byte_fallback", "continuing_subword_prefix", "end_of_word_suffix", "dropout"] {
        if !is_off(&model[key]) {
            return Err(format!("model.{key} is {}; only byte-level BPE without it is read", model[key]));
        }
    }
    Ok(())
}

type Vocab<'a> = HashMap<&'a str, u32>;

/// Tokens above this would not fit a target.
const TOKEN_MAX: u64 = 1 << 24;

fn token(value: &Json) -> Option<u32> {
    value.as_u64().filter(|id| *id < TOKEN_MAX).map(|id| id as u32)
}

fn read_vocab(vocab: &Json) -> Result<Vocab<'_>, String> {
    let entries = vocab.as_object().ok_or("model.vocab is no table")?;
    let entry = |(word, id): (&'_ String, &Json)| {
        token(id).ok_or_else(|| format!("model.vocab: {word:?} is {id}, which is no token number"))
    };
    entries.iter().map(|(word, id)| Ok((word.as_str(), entry((word, id))?))).collect()
}

fn read_merges(merges: &Json, vocab: &Vocab) -> Result<Merges, String> {
    let list = merges.as_array().ok_or("model.merges is no list")?;
    let mut out = HashMap::with_capacity(list.len());
    for (rank, merge) in (0u32..).zip(list) {
        let wrong =
            || format!("model.merges, entry {rank} (from 0): {merge} does not join two tokens of the vocabulary");
        let (left, right) = match merge {
            Json::String(text) => text.split_once(' ').ok_or_else(wrong)?,
            pair => (pair[0].as_str().ok_or_else(wrong)?, pair[1].as_str().ok_or_else(wrong)?),
        };
        let id = |word: &str| vocab.get(word).copied().ok_or_else(wrong);
        let joined = id(&format!("{left}{right}"))?;
        out.entry((id(left)?, id(right)?)).or_insert((rank, joined));
    }
    Ok(out)
}

fn whole_pieces(vocab: &Vocab, letters: &[char; 256]) -> HashMap<Vec<u8>, u32> {
    let bytes = bytes_of(letters);
    vocab.iter().filter_map(|(word, id)| Some((bytes(word)?, *id))).collect()
}

/// From a word of the vocabulary to the bytes that its letters stand for.
fn bytes_of(letters: &[char; 256]) -> impl Fn(&str) -> Option<Vec<u8>> {
    let byte_of: HashMap<char, u8> = letters.iter().zip(0u8..=255).map(|(letter, byte)| (*letter, byte)).collect();
    move |word| word.chars().map(|letter| byte_of.get(&letter).copied()).collect()
}

/// Special tokens are their own text, and so is a word with letters that stand for no byte.
fn pieces(vocab: &Vocab, added: &HashMap<String, u32>, letters: &[char; 256], count: usize) -> Vec<Box<[u8]>> {
    let bytes = bytes_of(letters);
    let mut pieces = vec![Box::default(); count];
    for (word, id) in vocab {
        pieces[*id as usize] = bytes(word).unwrap_or_else(|| word.as_bytes().to_vec()).into();
    }
    for (word, id) in added {
        pieces[*id as usize] = word.as_bytes().into();
    }
    pieces
}

fn read_pre_tokenizer(json: &Json) -> Result<(Vec<Split>, bool), String> {
    let steps = match json["type"].as_str() {
        Some("Sequence") => json["pretokenizers"].as_array().map(Vec::as_slice).unwrap_or_default(),
        _ => std::slice::from_ref(json),
    };
    let (mut splits, mut prefix_space, mut byte_level) = (Vec::new(), false, false);
    for step in steps {
        match step["type"].as_str() {
            Some("ByteLevel") => {
                byte_level = true;
                prefix_space |= step["add_prefix_space"] == Json::Bool(true);
                if step["use_regex"] != Json::Bool(false) {
                    splits.push(Split::new(GPT2)?);
                }
            }
            Some("Split") if step["behavior"] == "Isolated" && step["invert"] != Json::Bool(true) => {
                let pattern =
                    step["pattern"]["Regex"].as_str().ok_or("pre_tokenizer: a Split without a Regex is not read")?;
                splits.push(Split::new(pattern)?);
            }
            other => {
                return Err(format!(
                    "pre_tokenizer: {} is not read; known are ByteLevel and Split with Isolated",
                    other.unwrap_or("none")
                ));
            }
        }
    }
    if !byte_level {
        return Err("pre_tokenizer: there is no ByteLevel; only byte-level BPE is read".to_string());
    }
    if prefix_space && splits.len() > 1 {
        return Err("pre_tokenizer: add_prefix_space with several steps is not read".to_string());
    }
    Ok((splits, prefix_space))
}

/// Finds the first of `words`, and the longest where several begin.
fn any_of<'w>(words: impl Iterator<Item = &'w String>) -> Result<Option<Regex>, String> {
    let mut words: Vec<String> = words.map(|word| regex::escape(word)).collect();
    words.sort_by_key(|word| Reverse(word.len()));
    match words.is_empty() {
        true => Ok(None),
        false => Regex::new(&words.join("|")).map(Some).map_err(|error| format!("added_tokens: {error}")),
    }
}

fn read_added(added: &Json) -> Result<HashMap<String, u32>, String> {
    let mut out = HashMap::new();
    for entry in added.as_array().map(Vec::as_slice).unwrap_or_default() {
        let (Some(word), Some(id)) = (entry["content"].as_str(), token(&entry["id"])) else {
            return Err(format!("added_tokens: {entry} has no content or no token number"));
        };
        if let Some(key) = ["single_word", "lstrip", "rstrip"].iter().find(|key| entry[**key] == Json::Bool(true)) {
            return Err(format!("added_tokens: {word:?} asks for {key}, which is not read; set it to false"));
        }
        if !word.is_empty() {
            out.insert(word.to_string(), id);
        }
    }
    Ok(out)
}

fn needs_normal_form(normalizer: &Json) -> Result<bool, String> {
    match normalizer["type"].as_str() {
        None => Ok(false),
        Some("NFC") => Ok(true),
        Some("Sequence") => {
            let steps = normalizer["normalizers"].as_array().map(Vec::as_slice).unwrap_or_default();
            steps.iter().try_fold(false, |needs, step| Ok(needs | needs_normal_form(step)?))
        }
        Some(other) => Err(format!("normalizer: {other} is not read; known is NFC")),
    }
}

/// GPT-2's letters for bytes: printable ones stand for themselves, the others for 256 and up.
pub fn byte_letters() -> [char; 256] {
    let mut next = 256;
    std::array::from_fn(|byte| {
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let code = if printable { byte as u32 } else { next };
        next += u32::from(!printable);
        char::from_u32(code).expect("all of these are letters")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GPT2_JSON: &str = include_str!("../tests/tokenizers/gpt2.json");

    /// `expected`: lines of texts and what Hugging Face's tokenizers make of them (`make.py` beside).
    fn check(json: &str, expected: &str) {
        let tokenizer = Tokenizer::parse(json.as_bytes()).unwrap();
        let mut checked = 0;
        for line in expected.lines() {
            let line: Json = serde_json::from_str(line).unwrap();
            let text = line["text"].as_str().unwrap();
            let ids: Vec<i32> = line["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
            assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab()));
            let back: Vec<u8> = ids.iter().flat_map(|id| tokenizer.piece(*id)).copied().collect();
            // Where a space goes before, the text itself has it too often.
            let bare = |text: &str| if tokenizer.prefix_space { text.replace(' ', "") } else { text.to_string() };
            assert_eq!(bare(&String::from_utf8_lossy(&back)), bare(text), "the pieces of {ids:?}");
            checked += 1;
        }
        assert!(checked > 15, "{checked} texts");
    }

    #[test]
    fn the_pattern_of_gpt2_gives_the_tokens_of_the_original() {
        check(GPT2_JSON, include_str!("../tests/tokenizers/gpt2.expected"));
    }

    #[test]
    fn a_prefix_space_gives_the_tokens_of_the_original() {
        check(
            include_str!("../tests/tokenizers/prefix-space.json"),
            include_str!("../tests/tokenizers/prefix-space.expected"),
        );
    }

    #[test]
    fn the_pattern_of_llama3_gives_the_tokens_of_the_original() {
        check(include_str!("../tests/tokenizers/llama3.json"), include_str!("../tests/tokenizers/llama3.expected"));
    }

    #[test]
    fn a_normal_form_is_taken_where_it_changes_nothing() {
        let json = include_str!("../tests/tokenizers/nfc.json");
        check(json, include_str!("../tests/tokenizers/nfc.expected"));
        let refused = Tokenizer::parse(json.as_bytes()).unwrap().encode("cafe\u{301}").unwrap_err();
        assert!(refused.starts_with("byte 4: '\\u{301}' may change in the normal form"), "{refused}");
    }

    #[test]
    fn what_cannot_be_done_exactly_is_refused_by_its_name() {
        let refused = |from: &str, to: &str| {
            assert!(GPT2_JSON.contains(from), "{from} is in the fixture");
            Tokenizer::parse(GPT2_JSON.replacen(from, to, 1).as_bytes()).expect_err("cannot be done")
        };
        assert!(refused("\"type\":\"BPE\"", "\"type\":\"Unigram\"").contains("model.type is \"Unigram\""));
        assert!(refused("\"byte_fallback\":false", "\"byte_fallback\":true").contains("model.byte_fallback is true"));
        assert!(
            refused("\"type\":\"ByteLevel\"", "\"type\":\"Metaspace\"")
                .contains("pre_tokenizer: Metaspace is not read")
        );
        assert!(
            refused("\"normalizer\":null", "\"normalizer\":{\"type\":\"Lowercase\"}").contains("normalizer: Lowercase")
        );
        assert!(refused("\"lstrip\":false", "\"lstrip\":true").contains("asks for lstrip"));
        assert!(refused("{", "").contains("no JSON"));
        assert!(Tokenizer::parse(b"{}").unwrap_err().contains("only byte-level BPE is read"));
        assert!(Tokenizer::parse(b"[3]").unwrap_err().contains("only byte-level BPE is read"));
    }

    #[test]
    fn a_long_text_without_a_space_is_joined_in_no_time() {
        let tokenizer = Tokenizer::parse(GPT2_JSON.as_bytes()).unwrap();
        let text = "seventeen".repeat(100_000);
        let tokens = tokenizer.encode(&text).unwrap();
        assert!(tokens.len() < text.len() / 2);
    }

    proptest! {
        #[test]
        fn tokens_spell_the_text_again(text in ".{0,60}") {
            let tokenizer = Tokenizer::parse(GPT2_JSON.as_bytes()).unwrap();
            let json: Json = serde_json::from_str(GPT2_JSON).unwrap();
            let vocab = read_vocab(&json["model"]["vocab"]).unwrap();
            let letters = byte_letters();
            let spelled: String = tokenizer.encode(&text).unwrap().into_iter().map(|token| {
                *vocab.iter().find(|(_, id)| **id == token as u32).expect("a token of the vocabulary").0
            }).collect();
            let bytes: Vec<u8> = spelled.chars().map(|c| letters.iter().position(|letter| *letter == c).unwrap() as u8).collect();
            prop_assert_eq!(&String::from_utf8(bytes).unwrap(), &text);
            prop_assert!(tokenizer.encode(&text).unwrap().len() >= text.len().div_ceil(tokenizer.longest()));
        }

        #[test]
        fn no_file_makes_the_reader_panic(at in any::<prop::sample::Index>(), cut in any::<prop::sample::Index>(), piece in "[\\[\\]{}\",:a-z0-9-]{0,5}") {
            let mut text = GPT2_JSON.to_string();
            let from = (0..=at.index(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            let to = (from..=from + cut.index(30)).rev().find(|at| text.is_char_boundary(*at)).unwrap();
            text.replace_range(from..to.min(text.len()), &piece);
            let _ = Tokenizer::parse(text.as_bytes());
        }
    }
}
