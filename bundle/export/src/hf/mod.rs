//! A folder that Hugging Face's transformers loads: a decoder, in the class there that computes the same.
//!
//! | norm | positions | class |
//! |---|---|---|
//! | layer | learned | `GPT2LMHeadModel` |
//! | layer | rotary | `Starcoder2ForCausalLM` |
//! | rms | rotary | `ArceeForCausalLM` |
//! | rms | learned | none |

mod card;
mod names;
mod tokens;

use anyhow::{Result, bail};
use elastic_bundle::{Model, Tensor, safetensors};
use elastic_spec::job::{ModelKind, Norm, Positions};
use serde_json::{Map, Value, json};

/// The class of transformers that a decoder becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Gpt2,
    Starcoder2,
    Arcee,
}

impl Class {
    fn of(norm: Norm, positions: Positions) -> Result<Class> {
        match (norm, positions) {
            (Norm::Layer, Positions::Learned) => Ok(Class::Gpt2),
            (Norm::Layer, Positions::Rotary) => Ok(Class::Starcoder2),
            (Norm::Rms, Positions::Rotary) => Ok(Class::Arcee),
            (Norm::Rms, Positions::Learned) => bail!(
                "a gpt with norm = \"rms\" and positions = \"learned\" has no class in transformers; export onnx, safetensors or npz"
            ),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Class::Gpt2 => "GPT2LMHeadModel",
            Class::Starcoder2 => "Starcoder2ForCausalLM",
            Class::Arcee => "ArceeForCausalLM",
        }
    }
}

/// Sizes of a decoder.
struct Sizes {
    layers: u32,
    heads: u32,
    width: u32,
    context: u32,
    dropout: f32,
    vocab: usize,
}

/// The files of a model that was checked.
pub fn files(model: &Model, weights: &[&Tensor]) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let description = &model.description;
    let ModelKind::Gpt { layers, heads, width, context, dropout, norm, positions } = description.model else {
        bail!(
            "transformers loads decoders, and {:?} is of kind {:?}; export onnx, safetensors or npz",
            description.name,
            kind(&description.model)
        );
    };
    let vocab = weights.iter().find(|tensor| tensor.name == "wte.weight").map_or(0, |table| table.shape[0]);
    let sizes = Sizes { layers, heads, width, context, dropout, vocab };
    let class = Class::of(norm, positions)?;
    let end = model.text().map_err(anyhow::Error::msg)?.and_then(|text| text.end());
    let renamed = names::renamed(class, width as usize, weights);
    let mut files = vec![
        ("config.json", pretty(&Value::Object(config(class, &sizes, end)))),
        ("model.safetensors", safetensors(&renamed, &[("format", "pt")])),
        ("generation_config.json", pretty(&generation(&sizes, end))),
    ];
    files.extend(tokens::files(model, context, end)?);
    files.push(("README.md", card::card(model, class, weights).into_bytes()));
    Ok(files)
}

fn kind(model: &ModelKind) -> &'static str {
    match model {
        ModelKind::Mlp { .. } => "mlp",
        ModelKind::Cnn { .. } => "cnn",
        ModelKind::Resnet18 { .. } => "resnet18",
        ModelKind::Gpt { .. } => "gpt",
        ModelKind::Own { .. } => "own",
        ModelKind::Command(_) => "command",
    }
}

fn config(class: Class, sizes: &Sizes, end: Option<i32>) -> Map<String, Value> {
    let Sizes { layers, heads, width, context, vocab, .. } = *sizes;
    // As the job file says it: in f64 it would be 0.10000000149011612. It is for what embeddings and branches give, not for
    // the shares of attention.
    let dropout: Value = sizes.dropout.to_string().parse().unwrap_or(0.0).into();
    let mut config = json!({
        "architectures": [class.name()],
        "vocab_size": vocab,
        "bos_token_id": end,
        "eos_token_id": end,
        "initializer_range": 0.02,
        "tie_word_embeddings": true,
        "torch_dtype": "float32",
        "use_cache": true,
    });
    let rest = match class {
        Class::Gpt2 => json!({
            "model_type": "gpt2",
            "n_layer": layers,
            "n_head": heads,
            "n_embd": width,
            "n_inner": 4 * width,
            "n_positions": context,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "embd_pdrop": dropout,
            "resid_pdrop": dropout,
            "attn_pdrop": 0.0,
            "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": false,
        }),
        Class::Starcoder2 => json!({
            "model_type": "starcoder2",
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "max_position_embeddings": context,
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "norm_type": "layer_norm",
            "embedding_dropout": dropout,
            "residual_dropout": dropout,
            "attention_dropout": 0.0,
            "use_bias": true,
            "rope_theta": 10000.0,
            "sliding_window": null,
        }),
        Class::Arcee => json!({
            "model_type": "arcee",
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "hidden_size": width,
            "intermediate_size": 4 * width,
            "max_position_embeddings": context,
            "hidden_act": "gelu_pytorch_tanh",
            "rms_norm_eps": 1e-5,
            "attention_dropout": 0.0,
            "attention_bias": true,
            "mlp_bias": true,
            "rope_theta": 10000.0,
        }),
    };
    let (Some(all), Value::Object(rest)) = (config.as_object_mut(), rest) else { unreachable!("both are objects") };
    all.extend(rest);
    std::mem::take(all)
}

fn generation(sizes: &Sizes, end: Option<i32>) -> Value {
    json!({ "bos_token_id": end, "eos_token_id": end, "pad_token_id": end, "do_sample": false, "max_length": sizes.context })
}

/// JSON whose keys are sorted, whatever keeps maps elsewhere in the program.
fn pretty(value: &Value) -> Vec<u8> {
    fn sorted(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| *key);
                entries.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
            }
            Value::Array(values) => values.iter().map(sorted).collect(),
            plain => plain.clone(),
        }
    }
    let mut text = serde_json::to_string_pretty(&sorted(value)).expect("plain values have JSON");
    text.push('\n');
    text.into_bytes()
}
