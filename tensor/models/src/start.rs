//! `model.init`: the numbers that a network begins with, from a file of our own names or a folder of Hugging Face.
//!
//! A folder is a GPT-2: `config.json` beside `model.safetensors`, or beside an index and its parts. Its names are
//! ours with or without `transformer.` before them; its linear layers are stored (in, out) and ours are (out, in);
//! its output layer is the token table.

use elastic_spec::job::names::select;
use elastic_spec::job::{ModelKind, ModelSpec, Norm, Positions, folder};
use elastic_tensor::StateLayout;
use elastic_tensor::init::{Axes, Intake, floats};
use safetensors::SafeTensors;
use serde_json::Value;

/// Reads files: the whole of `model.init` where that is a file, or one of its folder.
pub struct Files<'a> {
    pub is_folder: bool,
    /// Of a name in the folder; of "" the file itself.
    pub read: &'a dyn Fn(&str) -> Result<Vec<u8>, String>,
    pub has: &'a dyn Fn(&str) -> bool,
}

/// Replaces the parameters in `state` by those of the files that `model.init` names, except those of
/// `model.init_except`. All that does not fit is told at once, each with what to do about it.
pub fn start_from(model: &ModelSpec, layout: &StateLayout, files: &Files<'_>, state: &mut [f32]) -> Result<(), String> {
    let names: Vec<&str> = layout.params.iter().map(|info| info.name.as_str()).collect();
    let except = select("model.init_except", &model.init_except, &names)?;
    let anew: Vec<&str> = names.iter().zip(&except).filter(|(_, anew)| **anew).map(|(name, _)| *name).collect();
    let mut intake = Intake::new(layout, except, state);
    if !files.is_folder {
        intake.file(&(files.read)("")?, as_named)?;
        return intake.finish();
    }
    if !matches!(model.kind, ModelKind::Gpt { .. }) {
        return Err("is a folder; only of a gpt a folder is read, of other models a safetensors file".into());
    }
    if let ModelKind::Gpt { norm: Norm::Rms, .. } | ModelKind::Gpt { positions: Positions::Rotary, .. } = model.kind {
        return Err("is a folder of a GPT-2, which has norm = \"layer\" and positions = \"learned\"".into());
    }
    check_config(&(files.read)(folder::CONFIG)?, &model.kind, layout, &anew)?;
    let parts = match (files.has)(folder::WHOLE) {
        true => vec![folder::WHOLE.to_string()],
        false if (files.has)(folder::INDEX) => folder::parts(&(files.read)(folder::INDEX)?)?,
        false => return Err(format!("has neither {} nor {}", folder::WHOLE, folder::INDEX)),
    };
    let mut head = None;
    for part in parts {
        let bytes = (files.read)(&part)?;
        intake.file(&bytes, of_hugging_face).map_err(|why| format!("{part}: {why}"))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| format!("{part}: read safetensors: {e}"))?;
        if let Ok(tensor) = file.tensor(HEAD) {
            head = Some(floats(&tensor).map_err(|why| format!("tensor `{HEAD}` {why}"))?);
        }
    }
    // A tied output layer may be stored as well; then it says the same.
    if let (Some(head), Some(table)) = (head, intake.filled("wte.weight"))
        && !head.iter().map(|x| x.to_bits()).eq(table.iter().map(|x| x.to_bits()))
    {
        intake.note(format!(
            "tensor `{HEAD}` is not `wte.weight` again; this gpt's output layer is its token table, so the file does not fit"
        ));
    }
    intake.finish()
}

const HEAD: &str = "lm_head.weight";

/// A file's names are ours; PyTorch's batch norm also counts its batches, which nothing here reads.
fn as_named(name: &str) -> Option<(String, Axes)> {
    (!name.ends_with(".num_batches_tracked")).then(|| (name.to_string(), Axes::AsStored))
}

/// What a tensor of Hugging Face's GPT-2 is called here. `None`: masks, which are no weights, and the output layer.
fn of_hugging_face(name: &str) -> Option<(String, Axes)> {
    let ours = name.strip_prefix("transformer.").unwrap_or(name);
    if ours == HEAD || ours.ends_with(".attn.bias") || ours.ends_with(".attn.masked_bias") {
        return None;
    }
    let is_linear = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| ours.ends_with(end));
    Some((ours.to_string(), if is_linear { Axes::Swapped } else { Axes::AsStored }))
}

/// The folder's model is the job's: each number that differs, and what to set. A table that begins `anew` may have
/// another size.
fn check_config(bytes: &[u8], kind: &ModelKind, layout: &StateLayout, anew: &[&str]) -> Result<(), String> {
    let config: Value = serde_json::from_slice(bytes).map_err(|e| format!("{}: {e}", folder::CONFIG))?;
    if !config.is_object() {
        return Err(format!("{}: is no JSON object", folder::CONFIG));
    }
    let ModelKind::Gpt { layers, heads, width, context, .. } = kind else { unreachable!("only a gpt has a folder") };
    let table = layout.params.iter().find(|info| info.name == "wte.weight").expect("a gpt has a token table");
    let mut wrong = Vec::new();
    let given = |name: &str| config.get(name).filter(|value| !value.is_null());
    // What config.json leaves out has the default of GPT-2's configuration, the small model's sizes.
    let sizes = [
        ("n_layer", 12, *layers as usize, "model.layers"),
        ("n_head", 12, *heads as usize, "model.heads"),
        ("n_embd", 768, *width as usize, "model.width"),
        ("n_positions", 1024, *context as usize, "model.context"),
    ];
    for (theirs, default, here, ours) in sizes {
        let there = given(theirs).cloned().unwrap_or(Value::from(default));
        let is_free = theirs == "n_positions" && anew.contains(&"wpe.weight");
        if there.as_u64() != Some(here as u64) && !is_free {
            wrong.push(format!("{theirs} is {there}, but {ours} is {here}; set {ours} = {there}"));
        }
    }
    let (vocab, tokens) = (given("vocab_size").cloned().unwrap_or(Value::from(50257)), table.shape[0]);
    if vocab.as_u64() != Some(tokens as u64) && !anew.contains(&"wte.weight") {
        wrong.push(format!(
            "vocab_size is {vocab}, but the data has {tokens} tokens; take the tokenizer of the model: data.tokenizer"
        ));
    }
    // (name, what this gpt computes, what is as good as it)
    let kinds: [(&str, Value, &[Value]); 7] = [
        ("model_type", Value::from("gpt2"), &[]),
        ("activation_function", Value::from("gelu_new"), &[Value::from("gelu_pytorch_tanh")]),
        ("layer_norm_epsilon", Value::from(1e-5), &[]),
        ("n_inner", Value::from(4 * *width), &[]),
        ("tie_word_embeddings", Value::from(true), &[]),
        ("scale_attn_weights", Value::from(true), &[]),
        ("scale_attn_by_inverse_layer_idx", Value::from(false), &[]),
    ];
    for (name, computes, as_good) in kinds {
        // What is left out is as here, but for the type, without which the rest means nothing.
        let there = given(name).or((name == "model_type").then_some(&Value::Null));
        if let Some(there) = there.filter(|there| **there != computes && !as_good.contains(there)) {
            wrong.push(format!("{name} is {there}, but a gpt here has {computes}; this model cannot be taken over"));
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(format!("{}: {}", folder::CONFIG, wrong.join("; "))),
    }
}
