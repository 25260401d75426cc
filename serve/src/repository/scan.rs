//! What lies in a directory of models. Only whole bundles are seen: those whose manifest, written last, is there.
//!
//! Three layouts: a bundle; one model's versions (`1/`, `2/`, each a bundle); many models, each a bundle or a directory of
//! versions. Beside versions `labels.json` gives names to some: `{"stable": 3}`.

use crate::limits::{MODELS_MAX, NAME_BYTES_MAX, SMALL_FILE_BYTES_MAX, VERSIONS_MAX};
use crate::repository::machine::{Found, FoundModel, FoundVersion};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MANIFEST: &str = "manifest.json";
const LABELS: &str = "labels.json";

/// The error is for a root that cannot be read at all.
pub fn scan(root: &Path) -> Result<Found, String> {
    let mut models = BTreeMap::new();
    if let Some(version) = bundle(root) {
        let name = said_name(root).or_else(|| name_of(root)).unwrap_or_else(|| "model".into());
        let model = FoundModel { versions: [(1, version)].into(), labels: Ok(BTreeMap::new()) };
        models.insert(name, model);
        return Ok(Found { models });
    }
    let entries = directories(root)?;
    let model = versions(root, &entries);
    if !model.versions.is_empty() {
        models.insert(name_of(root).unwrap_or_else(|| "model".into()), model);
        return Ok(Found { models });
    }
    for name in entries.into_iter().take(MODELS_MAX) {
        let dir = root.join(&name);
        let model = match bundle(&dir) {
            Some(version) => FoundModel { versions: [(1, version)].into(), labels: labels(&dir) },
            None => match of_model(&dir) {
                Ok(model) => model,
                // It vanished between two looks, or is not for us.
                Err(_) => continue,
            },
        };
        models.insert(name, model);
    }
    Ok(Found { models })
}

/// A model's directory: its versions, and the labels that they have.
pub fn of_model(dir: &Path) -> Result<FoundModel, String> {
    Ok(versions(dir, &directories(dir)?))
}

fn versions(dir: &Path, entries: &[String]) -> FoundModel {
    let numbers = entries.iter().filter_map(|name| Some((name.parse::<u64>().ok()?, name)));
    let found = numbers.take(VERSIONS_MAX).filter_map(|(number, name)| Some((number, bundle(&dir.join(name))?)));
    FoundModel { versions: found.collect(), labels: labels(dir) }
}

/// Names of directories, sorted. Hidden ones are somebody's unfinished work.
fn directories(dir: &Path) -> Result<Vec<String>, String> {
    let cannot = |error| format!("read {}: {error}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot)? {
        let entry = entry.map_err(cannot)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        // Links are followed: a registry may be put together of them.
        if !name.starts_with('.') && name.len() <= NAME_BYTES_MAX && entry.path().is_dir() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// A directory with a manifest, and a mark that changes when that is written anew.
fn bundle(dir: &Path) -> Option<FoundVersion> {
    let meta = fs::metadata(dir.join(MANIFEST)).ok().filter(|meta| meta.is_file())?;
    let mut hasher = DefaultHasher::new();
    (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ino()).hash(&mut hasher);
    Some(FoundVersion { dir: dir.to_path_buf(), mark: hasher.finish() })
}

fn labels(dir: &Path) -> Result<BTreeMap<String, u64>, String> {
    let path = dir.join(LABELS);
    let mut text = String::new();
    match fs::File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        opened => {
            let read = opened.and_then(|file| file.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text));
            read.map_err(|error| format!("read {}: {error}", path.display()))?;
        }
    }
    serde_json::from_str(&text).map_err(|error| format!("{}: expected {{\"label\": version}}: {error}", path.display()))
}

/// The name that a bundle gives its model.
fn said_name(dir: &Path) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        name: String,
    }
    let mut text = String::new();
    fs::File::open(dir.join("model.json")).ok()?.take(SMALL_FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    let Named { name } = serde_json::from_str(&text).ok()?;
    (!name.is_empty() && name.len() <= NAME_BYTES_MAX).then_some(name)
}

fn name_of(dir: &Path) -> Option<String> {
    let whole = fs::canonicalize(dir).ok()?;
    Some(whole.file_name()?.to_str()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn seen(root: &Path) -> Vec<(String, Vec<u64>)> {
        let found = scan(root).unwrap();
        found.models.into_iter().map(|(name, model)| (name, model.versions.into_keys().collect())).collect()
    }

    #[test]
    fn a_bundle_is_one_model_by_the_name_that_it_gives_itself() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "manifest.json", "{}");
        put(root.path(), "model.json", r#"{"name":"digits","model":1}"#);
        assert_eq!(seen(root.path()), [("digits".to_string(), vec![1])]);
    }

    #[test]
    fn a_registry_has_models_with_versions_and_labels() {
        let root = tempfile::tempdir().unwrap();
        for file in ["a/1/manifest.json", "a/12/manifest.json", "b/manifest.json", "a/.13.tmp/manifest.json"] {
            put(root.path(), file, "{}");
        }
        put(root.path(), "a/13/weights.safetensors", "half copied");
        put(root.path(), "a/labels.json", r#"{"stable":1}"#);
        put(root.path(), "c/labels.json", "[");
        assert_eq!(seen(root.path()), [("a".into(), vec![1, 12]), ("b".into(), vec![1]), ("c".into(), vec![])]);
        let found = scan(root.path()).unwrap();
        assert_eq!(found.models["a"].labels.as_ref().unwrap()["stable"], 1);
        assert!(found.models["c"].labels.as_ref().unwrap_err().contains("labels.json"));
        assert_eq!(seen(&root.path().join("a")), [("a".to_string(), vec![1, 12])]);
    }

    #[test]
    fn a_manifest_that_is_written_anew_has_another_mark() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "manifest.json", "{}");
        let before = bundle(root.path()).unwrap();
        assert_eq!(bundle(root.path()).unwrap(), before);
        put(root.path(), "other", "{ }");
        fs::rename(root.path().join("other"), root.path().join("manifest.json")).unwrap();
        assert_ne!(bundle(root.path()).unwrap().mark, before.mark);
    }

    #[test]
    fn a_root_that_is_not_there_is_an_error() {
        assert!(scan(Path::new("/nowhere/at/all")).unwrap_err().contains("/nowhere/at/all"));
    }
}
