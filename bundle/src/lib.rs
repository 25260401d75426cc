//! A model that can be served: weights, description, signature, transform, and the digest over all of them.
//!
//! A bundle is a directory in which `manifest.json` was written last: what has none is not a bundle yet. What is in it is
//! a function of the model alone; who trained it, when and how is told by `provenance.json`, which lies beside and is in no
//! digest. `docs/bundle-format.md` is the specification. Making a bundle of a run is the CLI's business, asking it over a
//! network the server's.

mod completion;
mod description;
mod folder;
mod generator;
mod manifest;
mod predictor;
mod provenance;
mod read;
mod sample;
mod score;
mod signature;
mod sizes;
mod utterance;
mod weights;
mod write;

pub use completion::{Asking, Completion, Finish, Penalties, Said};
pub use description::{BadDescription, Description, Shape};
pub use elastic_tensor::{DecodeMemory, Rows};
pub use folder::{FolderError, publish};
pub use generator::{AddError, Found, Generator, GeneratorSize, Seat, Wanted};
pub use manifest::{FORMAT_VERSION, FileEntry, Manifest};
pub use predictor::{Predictor, class_of, softmax};
pub use provenance::{Lived, Provenance};
pub use read::{BundleError, read_provenance};
pub use sample::{Draw, Likelihood, Sampling, choose, likelihood};
pub use score::{ClassScore, Score, Scorer};
pub use signature::{CLASS, Datatype, INPUT, LABEL, LOGITS, PROBABILITIES, Port, Signature, TOKENS};
pub use utterance::Utterance;
pub use weights::{Tensor, safetensors};
pub use write::{WriteError, write};

use elastic_transform::{Text, Transform};
use std::path::Path;

/// A model with all that belongs to it, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub description: Description,
    /// Parameters and buffers, sorted by name.
    pub weights: Vec<Tensor>,
    /// The bytes of tokenizer.json, where the transform has one.
    pub tokenizer: Option<Vec<u8>>,
}

/// A bundle as it was read from a directory: every byte was compared with its digest.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub model: Model,
    pub manifest: Manifest,
}

impl Bundle {
    /// Reads and verifies. Missing `manifest.json` is [`BundleError::NoManifest`]: not a bundle yet.
    pub fn open(dir: &Path) -> Result<Bundle, BundleError> {
        read::open(dir)
    }
}

impl Model {
    pub fn signature(&self) -> Signature {
        self.description.signature()
    }

    /// How text becomes tokens; None for a model that reads numbers.
    pub fn text(&self) -> Result<Option<Text>, String> {
        match self.description.transform {
            Transform::Scale { .. } => Ok(None),
            Transform::Bytes => Ok(Some(Text::Bytes)),
            Transform::Tokenizer => Text::of(self.tokenizer.as_deref()).map(Some),
        }
    }
}
