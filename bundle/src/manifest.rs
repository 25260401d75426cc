//! `manifest.json`: the files of a bundle with their digests, and the one digest of its content.

use elastic_spec::Digest;
use serde::{Deserialize, Serialize};

/// Raised whenever an older reader would misread what is written.
pub const FORMAT_VERSION: u32 = 1;
pub(crate) const FORMAT: &str = "elastic-bundle";
pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const DESCRIPTION: &str = "model.json";
pub(crate) const SIGNATURE: &str = "signature.json";
pub(crate) const WEIGHTS: &str = "weights.safetensors";
pub(crate) const TOKENIZER: &str = "tokenizer.json";
pub(crate) const PROVENANCE: &str = "provenance.json";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: String,
    pub format_version: u32,
    /// Of all files below: what makes two bundles the same.
    pub content_sha256: Digest,
    /// Of the tensors alone, as a checkpoint has it.
    pub weights_sha256: Digest,
    /// Sorted by name.
    pub files: Vec<FileEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub name: String,
    pub bytes: u64,
    pub sha256: Digest,
}

impl Manifest {
    pub fn of(weights_sha256: Digest, mut files: Vec<FileEntry>) -> Manifest {
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let content_sha256 = content(&files);
        Manifest { format: FORMAT.into(), format_version: FORMAT_VERSION, content_sha256, weights_sha256, files }
    }

    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_string_pretty(self).expect("a manifest has only plain values");
        text.push('\n');
        text.into_bytes()
    }

    /// What is wrong with it, in words.
    pub fn parse(json: &[u8]) -> Result<Manifest, String> {
        // The version first: a newer manifest may have more fields.
        #[derive(Deserialize)]
        struct Version {
            format: String,
            format_version: u32,
        }
        let version: Version = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        if version.format != FORMAT {
            return Err(format!("its format is {:?}, not {FORMAT:?}", version.format));
        }
        if version.format_version != FORMAT_VERSION {
            return Err(format!(
                "its format version is {}, and this program reads version {FORMAT_VERSION}",
                version.format_version
            ));
        }
        let manifest: Manifest = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let found = content(&manifest.files);
        if found != manifest.content_sha256 {
            return Err(format!(
                "content_sha256 is {}, but that of its list of files is {found}",
                manifest.content_sha256
            ));
        }
        // Each once and in order: another order would be another digest of the same content.
        if let Some(pair) = manifest.files.windows(2).find(|pair| pair[0].name >= pair[1].name) {
            return Err(format!("{:?} stands behind {:?} in its list of files", pair[1].name, pair[0].name));
        }
        let known = [DESCRIPTION, SIGNATURE, WEIGHTS, TOKENIZER];
        match manifest.files.iter().find(|file| !known.contains(&file.name.as_str())) {
            Some(file) => Err(format!("it lists {:?}, which is no file of a bundle", file.name)),
            None => Ok(manifest),
        }
    }
}

/// SHA-256 over a line `<sha256>  <name>` for each file, in the order of their names: what `sha256sum` prints of them.
fn content(files: &[FileEntry]) -> Digest {
    let lines: String = files.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
    Digest::of(lines.as_bytes())
}
