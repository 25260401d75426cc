//! What "the same weights" and "the same state" mean: two SHA-256 digests over named tensors.
//!
//! Everyone who compares weights (trainer, joiner, checkpoint, CLI) uses these functions, so equal digests
//! mean equal bits everywhere. Tensors are logical: unpadded, row-major, little-endian, tied ones once
//! under their canonical name. Where the bytes come from is the caller's business.

use crate::ids::{Digest, Round, Step};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use std::collections::BTreeMap;
use std::fmt;

/// Element types, spelled as safetensors spells them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Dtype {
    F64,
    F32,
    F16,
    Bf16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Dtype {
    pub const ALL: [Dtype; 13] = {
        use Dtype::*;
        [F64, F32, F16, Bf16, I64, I32, I16, I8, U64, U32, U16, U8, Bool]
    };

    pub fn as_str(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U64 => "U64",
            Dtype::U32 => "U32",
            Dtype::U16 => "U16",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
        }
    }

    pub fn parse(text: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|d| d.as_str() == text)
    }

    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One tensor, borrowed: its raw little-endian bytes in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// The weights digest: SHA-256 over the tensors sorted by name, each as
/// `name NUL dtype NUL shape(comma separated) NUL bytes`.
pub fn digest<'a>(tensors: impl IntoIterator<Item = Tensor<'a>>) -> Digest {
    let mut sha = sha2::Sha256::new();
    feed(&mut sha, tensors);
    Digest(sha.finalize().into())
}

/// The state digest: what must be equal for two members to go on alike, not only to predict alike.
///
/// SHA-256 over `elastic-state-1 NUL weights NUL`, the tensors of [`digest`], `optimizer NUL`, the
/// optimizer's tensors in the same form, `step NUL <decimal> NUL round NUL <decimal> NUL meta NUL`, then
/// `key NUL value NUL` for each entry of `meta` in key order. `meta` holds what else the next step depends
/// on (the loader's cursor); it must be a function of (spec, data, step), never of who trained it.
pub fn state_digest<'a>(
    weights: impl IntoIterator<Item = Tensor<'a>>,
    optimizer: impl IntoIterator<Item = Tensor<'a>>,
    (step, round): (Step, Round),
    meta: &BTreeMap<String, String>,
) -> Digest {
    let mut sha = sha2::Sha256::new();
    sha.update(b"elastic-state-1\0weights\0");
    feed(&mut sha, weights);
    sha.update(b"optimizer\0");
    feed(&mut sha, optimizer);
    sha.update(format!("step\0{step}\0round\0{round}\0meta\0"));
    for (key, value) in meta {
        for text in [key, value] {
            sha.update(text);
            sha.update([0]);
        }
    }
    Digest(sha.finalize().into())
}

fn feed<'a>(sha: &mut sha2::Sha256, tensors: impl IntoIterator<Item = Tensor<'a>>) {
    let mut sorted: Vec<Tensor<'a>> = tensors.into_iter().collect();
    sorted.sort_by_key(|t| t.name);
    for tensor in sorted {
        let shape: Vec<String> = tensor.shape.iter().map(usize::to_string).collect();
        sha.update(format!("{}\0{}\0{}\0", tensor.name, tensor.dtype, shape.join(",")));
        sha.update(tensor.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor<'a>(name: &'a str, shape: &'a [usize], bytes: &'a [u8]) -> Tensor<'a> {
        Tensor { name, dtype: Dtype::F32, shape, bytes }
    }

    #[test]
    fn the_weights_digest_is_the_sha256_of_the_documented_bytes() {
        let (a, b) = (tensor("a.weight", &[1, 2], &[1, 2, 3, 4, 5, 6, 7, 8]), tensor("b", &[], &[9, 9, 9, 9]));
        let spelled = Digest::of(b"a.weight\0F32\x001,2\0\x01\x02\x03\x04\x05\x06\x07\x08b\0F32\0\0\x09\x09\x09\x09");
        assert_eq!(digest([a, b]), spelled);
        assert_eq!(digest([b, a]), spelled, "the order that they come in does not matter");
    }

    #[test]
    fn the_state_digest_sees_the_optimizer_the_step_and_the_cursor() {
        let meta = |value: &str| BTreeMap::from([("epoch".to_string(), value.to_string())]);
        let (w, m) = (tensor("w", &[1], &[0; 4]), tensor("m", &[1], &[1; 4]));
        let base = state_digest([w], [m], (Step(3), Round(4)), &meta("0"));
        assert_eq!(base, state_digest([w], [m], (Step(3), Round(4)), &meta("0")));
        assert_ne!(base, state_digest([w], [w], (Step(3), Round(4)), &meta("0")));
        assert_ne!(base, state_digest([w], [m], (Step(2), Round(4)), &meta("0")));
        assert_ne!(base, state_digest([w], [m], (Step(3), Round(5)), &meta("0")));
        assert_ne!(base, state_digest([w], [m], (Step(3), Round(4)), &meta("1")));
    }

    #[test]
    fn every_dtype_reads_back_as_spelled() {
        assert!(Dtype::ALL.into_iter().all(|d| Dtype::parse(d.as_str()) == Some(d)));
        assert_eq!(serde_json::to_string(&Dtype::Bf16).unwrap(), "\"BF16\"");
        assert_eq!(Dtype::parse("f32"), None);
    }
}
