//! The manifest: what a checkpoint claims about itself, and the name of its directory.
//!
//! `manifest.json` starts with its own SHA-256, over everything behind it, so that a flipped bit anywhere in
//! the file shows. Comparing the claims with the files is done in `read`.

use crate::contents::size_of;
use crate::grid::BLOCK_BYTES;
use crate::read::Refusal;
use elastic_spec::weights::Dtype;
use elastic_spec::{Digest, Epoch, JobId, Round, Step};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Raised whenever an older reader would misread what is written.
pub const FORMAT_VERSION: u32 = 1;
pub(crate) const FORMAT: &str = "elastic-checkpoint";
/// The file that makes a checkpoint of the others.
pub const MANIFEST: &str = "manifest.json";
pub(crate) const WEIGHTS: &str = "weights.safetensors";
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";
pub(crate) const ROWS: &str = "rows.bin";
/// Largest manifest that is read, in bytes: room for the block checksums of about a terabyte.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub format_version: u32,
    pub cluster: String,
    pub job: JobId,
    pub config_sha256: Digest,
    pub term: u64,
    #[serde(rename = "gen")]
    pub gen_: u64,
    pub step: Step,
    pub round: Round,
    pub meta: BTreeMap<String, String>,
    pub weights_sha256: Digest,
    pub state_sha256: Digest,
    pub weights: TensorFile,
    pub optimizer: TensorFile,
    pub rows: RowFile,
}

/// A safetensors file: its header, then the tensors without gaps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorFile {
    pub bytes: u64,
    /// The 8 bytes of length and the JSON behind them.
    pub header_bytes: u64,
    pub header_crc32: u32,
    /// In the order that they lie in the file.
    pub tensors: Vec<StoredTensor>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// From the end of the header.
    pub offset: u64,
    pub bytes: u64,
    /// One for each block of 256 KiB (64 Ki floats), the last one shorter.
    pub crc32: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RowFile {
    pub bytes: u64,
    pub crc32: Vec<u32>,
}

/// The name of a published checkpoint. Ordered as they are tried: by step, then by (term, gen).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    pub step: Step,
    pub epoch: Epoch,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step-{:08}.t{}.g{}", self.step.0, self.epoch.term, self.epoch.gen_)
    }
}

impl Name {
    /// `None` for everything that is not exactly as [`Name`] writes itself: half-written ones, too.
    pub fn parse(text: &str) -> Option<Name> {
        let (step, rest) = text.strip_prefix("step-")?.split_once(".t")?;
        let (term, gen_) = rest.split_once(".g")?;
        let name = Name { step: Step(step.parse().ok()?), epoch: Epoch::new(term.parse().ok()?, gen_.parse().ok()?) };
        (name.to_string() == text).then_some(name)
    }
}

const OPENING: &str = "{\"manifest_sha256\":\"";
const CLOSING: &str = "\",";

impl Manifest {
    pub fn name(&self) -> Name {
        Name { step: self.step, epoch: self.epoch() }
    }

    pub fn epoch(&self) -> Epoch {
        Epoch::new(self.term, self.gen_)
    }

    /// Bytes of all files but the manifest.
    pub fn bytes(&self) -> u64 {
        self.weights.bytes + self.optimizer.bytes + self.rows.bytes
    }

    pub(crate) fn to_text(&self) -> String {
        let json = serde_json::to_string(self).expect("a manifest has only text keys");
        let rest = format!("{}\n", &json[1..]);
        format!("{OPENING}{}{CLOSING}{rest}", Digest::of(rest.as_bytes()))
    }

    /// The door: afterwards, all sizes in it agree with each other.
    pub(crate) fn from_text(text: &[u8]) -> Result<Manifest, Refusal> {
        let bad = |what: &str| Refusal::Manifest { what: what.to_string() };
        let text = std::str::from_utf8(text).map_err(|_| bad("it is not UTF-8"))?;
        let opened = text.strip_prefix(OPENING).ok_or_else(|| bad("it does not begin with manifest_sha256"))?;
        let (digest, rest) = opened.split_once(CLOSING).ok_or_else(|| bad("it ends within manifest_sha256"))?;
        if Digest::parse(digest) != Some(Digest::of(rest.as_bytes())) {
            return Err(Refusal::ManifestDamaged);
        }
        let json = format!("{{{rest}");
        let head: Head = serde_json::from_str(&json).map_err(|e| bad(&e.to_string()))?;
        if head.format != FORMAT {
            return Err(bad(&format!("its format is {:?}, not {FORMAT:?}", head.format)));
        }
        if head.format_version != FORMAT_VERSION {
            return Err(Refusal::Version { found: head.format_version });
        }
        let manifest: Manifest = serde_json::from_str(&json).map_err(|e| bad(&e.to_string()))?;
        manifest.weights.check(WEIGHTS)?;
        manifest.optimizer.check(OPTIMIZER)?;
        if manifest.rows.crc32.len() as u64 != manifest.rows.bytes.div_ceil(BLOCK_BYTES) {
            return Err(bad(&format!(
                "{ROWS} has {} checksums for {} bytes",
                manifest.rows.crc32.len(),
                manifest.rows.bytes
            )));
        }
        Ok(manifest)
    }
}

/// What every version of a manifest says.
#[derive(Deserialize)]
struct Head {
    format: String,
    format_version: u32,
}

impl TensorFile {
    fn check(&self, file: &'static str) -> Result<(), Refusal> {
        let bad = |what: String| Err(Refusal::Manifest { what: format!("{file}: {what}") });
        let mut names = BTreeSet::new();
        let mut end = 0u64;
        for tensor in &self.tensors {
            let StoredTensor { name, dtype, shape, offset, bytes, crc32 } = tensor;
            if !names.insert(name) {
                return bad(format!("tensor {name:?} is named twice"));
            }
            if size_of(*dtype, shape) != Some(*bytes) {
                return bad(format!("tensor {name:?} of {dtype} {shape:?} claims {bytes} bytes"));
            }
            if *offset != end {
                return bad(format!("tensor {name:?} claims offset {offset} where {end} follows"));
            }
            if crc32.len() as u64 != bytes.div_ceil(BLOCK_BYTES) {
                return bad(format!("tensor {name:?} has {} checksums for {bytes} bytes", crc32.len()));
            }
            end = match end.checked_add(*bytes) {
                Some(end) => end,
                None => return bad("its tensors are larger than any disk".to_string()),
            };
        }
        match end.checked_add(self.header_bytes) == Some(self.bytes) {
            true => Ok(()),
            false => {
                bad(format!("{} bytes of header and {end} of tensors do not make {}", self.header_bytes, self.bytes))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back_and_nothing_else_is_one() {
        let name = Name { step: Step(40), epoch: Epoch::new(3, 2) };
        assert_eq!(name.to_string(), "step-00000040.t3.g2");
        assert_eq!(Name::parse("step-00000040.t3.g2"), Some(name));
        assert_eq!(Name::parse("step-123456789.t3.g2").map(|n| n.step), Some(Step(123456789)));
        for bad in [
            "step-40.t3.g2",
            "step-00000040.t3.g2.tmp-1",
            "step-00000040.t03.g2",
            "step-0000004x.t3.g2",
            "step-+0000040.t3.g2",
            "latest",
            "",
        ] {
            assert_eq!(Name::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn names_are_tried_by_step_first_and_then_by_epoch() {
        let name = |step, term, gen_| Name { step: Step(step), epoch: Epoch::new(term, gen_) };
        assert!(name(41, 1, 1) > name(40, 9, 9));
        assert!(name(40, 2, 1) > name(40, 1, 9));
    }
}
