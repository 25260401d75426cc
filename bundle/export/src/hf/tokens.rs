//! How text becomes tokens, as transformers' tokenizers read it.

use super::pretty;
use anyhow::{Context, Result};
use elastic_bundle::Model;
use elastic_transform::{Transform, byte_letters};
use serde_json::{Map, Value, json};

/// None for a model whose tokens were made from a seed: they have no text.
pub fn files(model: &Model, context: u32, end: Option<i32>) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let tokenizer = match (&model.description.transform, &model.tokenizer) {
        (Transform::Scale { .. }, _) => return Ok(Vec::new()),
        (Transform::Bytes, _) => pretty(&of_bytes()),
        (Transform::Tokenizer, tokenizer) => tokenizer.clone().context("the model has no tokenizer.json")?,
    };
    let end = end.map(|end| word(&tokenizer, end)).transpose()?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "clean_up_tokenization_spaces": false,
        "bos_token": end,
        "eos_token": end,
        "pad_token": end,
    });
    Ok(vec![("tokenizer.json", tokenizer), ("tokenizer_config.json", pretty(&config))])
}

/// The text of a special token.
fn word(tokenizer: &[u8], token: i32) -> Result<String> {
    let json: Value = serde_json::from_slice(tokenizer).context("read tokenizer.json")?;
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let mut found = added.filter(|entry| entry["id"] == token).filter_map(|entry| entry["content"].as_str());
    found.next().map(str::to_string).with_context(|| format!("tokenizer.json has no special token {token}"))
}

/// A tokenizer whose tokens are the bytes of the text: byte-level BPE that joins nothing.
fn of_bytes() -> Value {
    let vocab: Map<String, Value> =
        byte_letters().iter().enumerate().map(|(byte, letter)| (letter.to_string(), byte.into())).collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": level,
        "post_processor": null,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": [],
        },
    })
}
