//! README.md: what the folder holds, in facts that follow from the model.

use super::Class;
use elastic_bundle::{Model, Shape, Tensor};
use elastic_spec::job::{Dtype, ModelKind};
use elastic_spec::weights;
use elastic_transform::Transform;

pub fn card(model: &Model, class: Class, weights: &[&Tensor]) -> String {
    let description = &model.description;
    let ModelKind::Gpt { layers, heads, width, context, norm, positions, .. } = description.model else {
        unreachable!("only a gpt has a class")
    };
    let numbers: usize = weights.iter().map(|tensor| tensor.shape.iter().product::<usize>()).sum();
    let vocab = match description.data {
        Shape::Tokens { vocab, .. } | Shape::Features { features: vocab, .. } => vocab,
    };
    let text = match description.transform {
        Transform::Bytes => "Tokens are the bytes of a text in UTF-8. The model itself has learned any bytes.",
        Transform::Tokenizer => "Tokens are those of `tokenizer.json`. No special tokens were added in training.",
        Transform::Scale { .. } => "Tokens were made from a seed and have no text, so there is no tokenizer.",
    };
    let dtype = match description.dtype {
        Dtype::F32 => "Trained in f32.",
        Dtype::Bf16 => {
            "Trained with products in bf16; weights are f32. Loaded in f32 the logits differ from the original's by bf16's rounding."
        }
    };
    let digest = weights::digest(weights.iter().map(|tensor| weights::Tensor {
        name: &tensor.name,
        dtype: tensor.dtype,
        shape: &tensor.shape,
        bytes: &tensor.bytes,
    }));
    let (norm, positions) = (format!("{norm:?}").to_lowercase(), format!("{positions:?}").to_lowercase());
    let (name, class) = (&description.name, class.name());
    format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n# {name}\n\n\
         A decoder of {numbers} numbers, trained and exported by elastic.\n\n\
         | | |\n|---|---|\n| class | `{class}` |\n| layers | {layers} |\n| heads | {heads} |\n| width | {width} |\n\
         | context | {context} |\n| vocabulary | {vocab} |\n| norm | {norm} |\n| positions | {positions} |\n\
         | weights' SHA-256, as elastic counts it | `{digest}` |\n\n\
         {text} {dtype}\n\n\
         ```python\nfrom transformers import AutoModelForCausalLM\n\n\
         model = AutoModelForCausalLM.from_pretrained(\".\")\n```\n"
    )
}
