//! A model's folder as Hugging Face keeps it: which files it has. What is in them the models' crate knows.

/// The shape of the network; a folder without it is none of a model.
pub const CONFIG: &str = "config.json";
/// All weights in one file.
pub const WHOLE: &str = "model.safetensors";
/// Or which of several files has which tensor.
pub const INDEX: &str = "model.safetensors.index.json";

/// The files that an index names, each once, in the order of their names.
pub fn parts(index: &[u8]) -> Result<Vec<String>, String> {
    let index: serde_json::Value = serde_json::from_slice(index).map_err(|e| format!("{INDEX}: {e}"))?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let map = map.ok_or_else(|| format!("{INDEX}: has no table `weight_map` from tensors to files"))?;
    let mut files = std::collections::BTreeSet::new();
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
    fn an_index_does_not_lead_out_of_its_folder() {
        for file in ["\"../a.safetensors\"", "\"/etc/a.safetensors\"", "\"a.bin\"", "\".safetensors\"", "7"] {
            let index = format!("{{\"weight_map\": {{\"a\": {file}}}}}");
            assert!(parts(index.as_bytes()).unwrap_err().contains("`a` is in"), "{file}");
        }
        assert!(parts(b"{}").unwrap_err().contains("weight_map"));
        assert!(parts(b"nonsense").unwrap_err().starts_with("model.safetensors.index.json: "));
    }
}
