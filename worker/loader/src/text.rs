//! A text as tokens: its bytes, or what a tokenizer makes of it.

use crate::tokenizer::Tokenizer;

/// Tokens, and how many different ones there are.
pub(crate) struct Tokens {
    pub tokens: Vec<i32>,
    pub vocab: usize,
}

pub(crate) fn bytes(text: &[u8]) -> Tokens {
    Tokens { tokens: text.iter().map(|byte| i32::from(*byte)).collect(), vocab: 256 }
}

/// An error here is about the text, not about the tokenizer.
pub(crate) fn tokenized(text: &[u8], tokenizer: &Tokenizer) -> Result<Tokens, String> {
    let text = std::str::from_utf8(text).map_err(|error| {
        let at = error.valid_up_to();
        format!("byte {at}: no UTF-8, which a tokenizer needs; convert the file, or leave out data.tokenizer to learn its bytes")
    })?;
    Ok(Tokens { tokens: tokenizer.encode(text)?, vocab: tokenizer.vocab() })
}
