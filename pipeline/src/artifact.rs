//! What a stage makes: a type, facts, and named blobs.
//!
//! The digest of an artifact covers what it *is*. What tells how it came about (who trained it, when) lies beside and does
//! not count, so that the same model made in two ways is the same input of what follows.

use elastic_spec::Digest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A file of somebody else's.
    File,
    /// Rows to train and to evaluate on.
    Examples,
    /// A trained state.
    Model,
    Bundle,
    /// A model in a format of others.
    Export,
    Evaluation,
    /// Requests with the answers that the server gave.
    Answers,
    Pushed,
}

impl Kind {
    pub fn word(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Examples => "examples",
            Kind::Model => "model",
            Kind::Bundle => "bundle",
            Kind::Export => "export",
            Kind::Evaluation => "evaluation",
            Kind::Answers => "answers",
            Kind::Pushed => "pushed",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blob {
    pub name: String,
    pub sha256: Digest,
    pub bytes: u64,
    /// Whether it is part of what the artifact is.
    pub counts: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    pub kind: Kind,
    /// Part of what the artifact is.
    pub facts: Value,
    /// Beside it.
    pub notes: Value,
    /// Sorted by name.
    pub blobs: Vec<Blob>,
}

impl Artifact {
    pub fn new(kind: Kind, facts: Value, mut blobs: Vec<Blob>) -> Artifact {
        blobs.sort_by(|a, b| a.name.cmp(&b.name));
        Artifact { kind, facts, notes: Value::Null, blobs }
    }

    pub fn digest(&self) -> Digest {
        let blobs: Vec<(&str, Digest)> =
            self.blobs.iter().filter(|blob| blob.counts).map(|blob| (blob.name.as_str(), blob.sha256)).collect();
        let manifest = serde_json::json!(["elastic-artifact-1", self.kind, self.facts, blobs]);
        Digest::of(manifest.to_string().as_bytes())
    }

    pub fn blob(&self, name: &str) -> Option<&Blob> {
        self.blobs.iter().find(|blob| blob.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_beside_does_not_count() {
        let blob = |name: &str, text: &str, counts| Blob {
            name: name.into(),
            sha256: Digest::of(text.as_bytes()),
            bytes: text.len() as u64,
            counts,
        };
        let made = |views: &str| {
            Artifact::new(
                Kind::Model,
                serde_json::json!({"step": 1}),
                vec![blob("weights", "w", true), blob("views", views, false)],
            )
        };
        assert_eq!(made("1 worker").digest(), made("3, then 2").digest());
        let other = Artifact::new(Kind::Model, serde_json::json!({"step": 2}), made("").blobs);
        assert_ne!(made("").digest(), other.digest());
    }
}
