//! A model's folder as Hugging Face keeps it: which files it has. What is in them the models' crate knows.

use crate::ids::Digest;
use std::collections::{BTreeMap, BTreeSet};

/// The shape of the network; a folder without it is none of a model.
pub const CONFIG: &str = "config.json";
/// All weights in one file.
pub const WHOLE: &str = "model.safetensors";
/// Or which of several files has which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// What `model.init_sha256` is to be: of one file its digest, of several that of the lines `<hex>  <name>`. None: there
/// is no file.
pub fn digest(files: &BTreeMap<String, Digest>) -> Option<Digest> {
    match files.len() {
        0 => None,
        1 => files.values().next().copied(),
        _ => {
            let lines: String = files.iter().map(|(name, digest)| format!("{digest}  {name}\n")).collect();
            Some(Digest::of(lines.as_bytes()))
        }
    }
}

/// The files that an index names, each once, in the order of their names.
pub fn parts(index: &[u8]) -> Result<Vec<String>, String> {
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|e| format!("{INDEX}: {e}"))?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| format!("{INDEX}: has no table `weight_map` from tensors to files"))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(file) if is_plain(file) => files.insert(file.to_string()),
            _ => return Err(format!("{INDEX}: `{tensor}` is in {file}, which is no file of this folder")),
        };
    }
    Ok(files.into_iter().collect())
}

/// A name of a file beside the index, and nothing that leads elsewhere.
fn is_plain(file: &str) -> bool {
    file.ends_with(".safetensors") && !file.starts_with('.') && !file.contains(['/', '\\', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_each_file_once() {
        let index =
            r#"{"metadata": {}, "weight_map": {"a": "2.safetensors", "b": "1.safetensors", "c": "2.safetensors"}}"#;
        assert_eq!(parts(index.as_bytes()).unwrap(), ["1.safetensors", "2.safetensors"]);
    }

    #[test]
    fn the_digest_of_a_folder_covers_names_and_files() {
        let file = |name: &str, text: &str| (name.to_string(), Digest::of(text.as_bytes()));
        let of = |files: &[(String, Digest)]| digest(&files.iter().cloned().collect());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[file("", "x")]), Some(Digest::of(b"x")));
        let folder = [file("config.json", "x"), file("model.safetensors", "y")];
        let lines = format!("{}  config.json\n{}  model.safetensors\n", folder[0].1, folder[1].1);
        assert_eq!(of(&folder), Some(Digest::of(lines.as_bytes())));
    }

    #[test]
    fn an_index_does_not_lead_out_of_its_folder() {
        for file in ["\"../a.safetensors\"", "\"/etc/a.safetensors\"", "\"a.bin\"", "\".safetensors\"", "7"] {
            let index = format!("{{\"weight_map\": {{\"a\": {file}}}}}");
            assert!(parts(index.as_bytes()).unwrap_err().contains("`a` is in"), "{file}");
        }
        assert!(parts(b"{}").unwrap_err().contains("weight_map"));
        assert!(parts(b"nonsense").unwrap_err().starts_with("model.safetensors.index.json: "));
    }
}
