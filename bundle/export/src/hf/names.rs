//! Our tensors as the classes of transformers call, cut and turn them. Every number keeps its bits.

use super::Class;
use crate::onnx::swapped;
use elastic_bundle::Tensor;

/// The output layer is the token table, which is stored once.
pub fn renamed(class: Class, width: usize, weights: &[&Tensor]) -> Vec<Tensor> {
    weights
        .iter()
        .flat_map(|tensor| match class {
            Class::Gpt2 => vec![gpt2(tensor)],
            Class::Starcoder2 => apart(tensor, width, "mlp.c_fc", "mlp.c_proj"),
            Class::Arcee => apart(tensor, width, "mlp.up_proj", "mlp.down_proj"),
        })
        .collect()
}

/// The same names behind `transformer.`; a linear layer's weight is (in, out).
fn gpt2(tensor: &Tensor) -> Tensor {
    let name = format!("transformer.{}", tensor.name);
    let is_linear = [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end));
    match is_linear {
        false => Tensor { name, ..tensor.clone() },
        true => {
            let shape = tensor.shape.iter().rev().copied().collect();
            Tensor { name, dtype: tensor.dtype, shape, bytes: swapped(tensor) }
        }
    }
}

/// Names in the manner of Llama: queries, keys and values are tensors by themselves.
fn apart(tensor: &Tensor, width: usize, up: &str, down: &str) -> Vec<Tensor> {
    let called = |name: String| vec![Tensor { name, ..tensor.clone() }];
    let Some((layer, part)) = tensor.name.strip_prefix("h.").and_then(|rest| rest.split_once('.')) else {
        return called(match tensor.name.split_once('.') {
            Some(("wte", end)) => format!("model.embed_tokens.{end}"),
            Some(("ln_f", end)) => format!("model.norm.{end}"),
            _ => unreachable!("a decoder without learned positions has no tensor {}", tensor.name),
        });
    };
    let (place, end) = part.rsplit_once('.').expect("a layer's tensors are weights and biases of a place");
    let at = format!("model.layers.{layer}");
    match place {
        "ln_1" => called(format!("{at}.input_layernorm.{end}")),
        "ln_2" => called(format!("{at}.post_attention_layernorm.{end}")),
        "attn.c_proj" => called(format!("{at}.self_attn.o_proj.{end}")),
        "mlp.c_fc" => called(format!("{at}.{up}.{end}")),
        "mlp.c_proj" => called(format!("{at}.{down}.{end}")),
        "attn.c_attn" => {
            // (3 · width, …): rows of queries, then of keys, then of values.
            let third = tensor.bytes.len() / 3;
            let shape: Vec<usize> = [width].into_iter().chain(tensor.shape[1..].iter().copied()).collect();
            let part = |(i, word): (usize, &str)| Tensor {
                name: format!("{at}.self_attn.{word}_proj.{end}"),
                dtype: tensor.dtype,
                shape: shape.clone(),
                bytes: tensor.bytes.slice(i * third..(i + 1) * third),
            };
            ["q", "k", "v"].into_iter().enumerate().map(part).collect()
        }
        _ => unreachable!("a decoder has no tensor {}", tensor.name),
    }
}
