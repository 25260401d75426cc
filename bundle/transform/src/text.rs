//! A text as tokens and back: its bytes, or what a tokenizer makes of it.

use crate::Tokenizer;

/// How text becomes tokens.
#[derive(Debug)]
pub enum Text {
    Bytes,
    Tokens(Box<Tokenizer>),
}

impl Text {
    /// Of the bytes of a tokenizer.json, or of none.
    pub fn of(tokenizer: Option<&[u8]>) -> Result<Text, String> {
        Ok(match tokenizer {
            None => Text::Bytes,
            Some(json) => Text::Tokens(Box::new(Tokenizer::parse(json)?)),
        })
    }

    /// How many different tokens there are.
    pub fn vocab(&self) -> usize {
        match self {
            Text::Bytes => 256,
            Text::Tokens(tokenizer) => tokenizer.vocab(),
        }
    }

    /// An error is about the text.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<i32>, String> {
        let Text::Tokens(tokenizer) = self else { return Ok(text.iter().map(|byte| i32::from(*byte)).collect()) };
        let text = std::str::from_utf8(text).map_err(|error| {
            let at = error.valid_up_to();
            format!("byte {at}: no UTF-8, which a tokenizer needs; convert the file, or leave out data.tokenizer to learn its bytes")
        })?;
        tokenizer.encode(text)
    }

    /// The bytes that tokens stand for. A cut through a character leaves a part of it.
    pub fn decode(&self, tokens: &[i32]) -> Vec<u8> {
        match self {
            Text::Bytes => tokens.iter().filter_map(|token| u8::try_from(*token).ok()).collect(),
            Text::Tokens(tokenizer) => tokens.iter().flat_map(|token| tokenizer.piece(*token)).copied().collect(),
        }
    }

    /// The most bytes that one token stands for.
    pub fn longest(&self) -> usize {
        match self {
            Text::Bytes => 1,
            Text::Tokens(tokenizer) => tokenizer.longest(),
        }
    }

    /// The token that ends a text, where the tokenizer has one of the usual names.
    pub fn end(&self) -> Option<i32> {
        let Text::Tokens(tokenizer) = self else { return None };
        ["<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>"].iter().find_map(|name| tokenizer.special(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        let text = "a\u{e9}\u{1f600}\0".as_bytes();
        let tokens = Text::Bytes.encode(text).unwrap();
        assert_eq!(tokens.len(), text.len());
        assert_eq!(Text::Bytes.decode(&tokens), text);
        assert_eq!(Text::Bytes.decode(&[-1, 256, 65]), b"A");
        assert_eq!(Text::Bytes.longest(), 1);
    }
}
