//! A gRPC request as rows and wanted outputs.

use super::wire::infer_parameter::ParameterChoice;
use super::wire::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::wire::{InferParameter, ModelInferRequest};
use crate::limits::{NAME_BYTES_MAX, TENSORS_MAX};
use crate::model::{Face, Output};
use crate::outputs::{Wanted, find};
use crate::refusal::{Refusal, quote};
use crate::tensor::{self, Datatype, Numbers, Rows};
use std::collections::HashMap;
use std::time::Duration;
use tonic::metadata::MetadataMap;

pub struct Ask {
    pub id: String,
    pub timeout: Option<Duration>,
    pub rows: Rows,
    pub wanted: Vec<Wanted>,
    /// Answer with raw bytes.
    pub raw: bool,
}

pub fn read(face: &Face, request: ModelInferRequest) -> Result<Ask, Refusal> {
    let ModelInferRequest { id, parameters, inputs, outputs, raw_input_contents, .. } = request;
    if id.len() > NAME_BYTES_MAX {
        return Err(Refusal::Invalid(format!("'id' is longer than {NAME_BYTES_MAX} bytes")));
    }
    if outputs.len() > TENSORS_MAX {
        return Err(Refusal::Invalid(format!("more than {TENSORS_MAX} outputs")));
    }
    let raw = !raw_input_contents.is_empty();
    if raw && raw_input_contents.len() != inputs.len() {
        let (raw, inputs) = (raw_input_contents.len(), inputs.len());
        return Err(Refusal::Invalid(format!("'raw_input_contents' has {raw} items for {inputs} inputs")));
    }
    let [input] = <[InferInputTensor; 1]>::try_from(inputs).map_err(|inputs| {
        let (name, count) = (face.input().name, inputs.len());
        Refusal::Invalid(format!("the model takes one input, '{name}'; the request has {count}"))
    })?;
    shared_memory(&input.parameters)?;
    let rows = rows(face, input, raw_input_contents.first().map(|bytes| bytes.as_ref()))?;
    let wanted = match outputs.is_empty() {
        true => face.kinds().iter().map(|output| Wanted { output: *output, binary: raw, largest: None }).collect(),
        false => outputs.iter().map(|output| wanted(face, output, raw)).collect::<Result<_, _>>()?,
    };
    let timeout = whole(parameters.get("timeout"), "timeout")?.filter(|us| *us > 0).map(Duration::from_micros);
    Ok(Ask { id, timeout, rows, wanted, raw })
}

fn rows(face: &Face, input: InferInputTensor, raw: Option<&[u8]>) -> Result<Rows, Refusal> {
    let name = face.input().name;
    if input.name != name {
        let found = quote(&input.name);
        return Err(Refusal::Invalid(format!("unknown input '{found}'; the model takes '{name}'")));
    }
    let datatype = Datatype::parse(&input.datatype)?;
    tensor::check_datatype(face, datatype)?;
    let dims = tensor::check_shape(face, &input.shape)?;
    let contents = input.contents.filter(|contents| *contents != Default::default());
    let numbers = match (raw, contents) {
        (Some(_), Some(_)) => {
            let text = format!("input '{name}' has 'contents', and the request has 'raw_input_contents': one of them");
            return Err(Refusal::Invalid(text));
        }
        (Some(bytes), None) => tensor::from_bytes(face, datatype, bytes, dims.numbers)?,
        (None, None) => return Err(Refusal::Invalid(format!("input '{name}' has no contents"))),
        (None, Some(contents)) => match datatype {
            Datatype::Fp32 => Numbers::F32(contents.fp32_contents),
            Datatype::Int32 => Numbers::I32(contents.int_contents),
            _ => Numbers::I32(tensor::narrow(face, contents.int64_contents.into_iter())?),
        },
    };
    tensor::rows(face, dims, numbers)
}

fn wanted(face: &Face, output: &InferRequestedOutputTensor, raw: bool) -> Result<Wanted, Refusal> {
    shared_memory(&output.parameters)?;
    let found = find(face, &output.name)?;
    let largest = whole(output.parameters.get("classification"), "classification")?.filter(|n| *n > 0);
    if largest.is_some() && !matches!(found, Output::Logits | Output::Probabilities) {
        return Err(Refusal::Invalid(format!("output '{}' cannot be classified", found.name())));
    }
    Ok(Wanted { output: found, binary: raw, largest: largest.map(|n| n as usize) })
}

fn shared_memory(parameters: &HashMap<String, InferParameter>) -> Result<(), Refusal> {
    match parameters.contains_key("shared_memory_region") {
        true => Err(Refusal::Unimplemented("shared memory is not served; send the tensor's bytes".into())),
        false => Ok(()),
    }
}

/// A whole number, however a client says it.
fn whole(parameter: Option<&InferParameter>, name: &str) -> Result<Option<u64>, Refusal> {
    let wrong = || Refusal::Invalid(format!("parameter '{name}' must be a whole number, 0 or more"));
    let value = match parameter.and_then(|parameter| parameter.parameter_choice.as_ref()) {
        None => return Ok(None),
        Some(ParameterChoice::Int64Param(n)) => u64::try_from(*n).ok(),
        Some(ParameterChoice::Uint64Param(n)) => Some(*n),
        Some(ParameterChoice::StringParam(text)) => text.parse().ok(),
        Some(_) => None,
    };
    value.map(Some).ok_or_else(wrong)
}

/// The deadline that a gRPC client gives its call: digits and a unit.
pub fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n.saturating_mul(3600)),
        "M" => Duration::from_secs(n.saturating_mul(60)),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::wire::InferTensorContents;
    use super::*;
    use crate::model::Takes;
    use proptest::prelude::*;
    use prost::Message;

    fn face() -> Face {
        let takes = Takes::Features { shape: vec![2], classes: 3 };
        Face { takes, labels: vec![], content: String::new(), created_s: 0 }
    }

    fn good() -> ModelInferRequest {
        let contents = InferTensorContents { fp32_contents: vec![1.0, 2.0], ..Default::default() };
        let (name, datatype, shape) = ("input".into(), "FP32".into(), vec![1, 2]);
        let input = InferInputTensor { name, datatype, shape, contents: Some(contents), ..Default::default() };
        ModelInferRequest { id: "7".into(), inputs: vec![input], ..Default::default() }
    }

    #[test]
    fn typed_and_raw_contents_are_the_same_rows() {
        let typed = read(&face(), good()).unwrap();
        let mut request = good();
        request.inputs[0].contents = None;
        request.raw_input_contents = vec![[1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat().into()];
        let raw = read(&face(), request).unwrap();
        assert_eq!((typed.rows, typed.raw), (raw.rows, false));
        assert!(raw.raw);
    }

    #[test]
    fn a_deadline_is_digits_and_a_unit() {
        let of = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            timeout(&metadata)
        };
        assert_eq!(of("250m"), Some(Duration::from_millis(250)));
        assert_eq!(of("3S"), Some(Duration::from_secs(3)));
        for wrong in ["m", "3x", "-1S", "1.5S"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_none(bytes in prop::collection::vec(any::<u8>(), 0..80), at in 0usize..60, to: u8) {
            let mut changed = good().encode_to_vec();
            if let Some(byte) = changed.get_mut(at) {
                *byte = to;
            }
            for bytes in [bytes, changed] {
                if let Ok(request) = ModelInferRequest::decode(bytes.as_slice()) {
                    let _ = read(&face(), request);
                }
            }
        }
    }
}
