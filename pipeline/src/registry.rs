//! A registry: `MODEL/VERSION/…`, the manifest of a version last, and `MODEL/labels.json` beside the versions.
//!
//! A version is taken by `push.json`, which only one can put, and published by `manifest.json`. What has none is not seen
//! by a server, and a push that was cut off goes on in the version that it took. A published version never changes.

use anyhow::{Context, Result, anyhow, bail};
use elastic_objects::blocking::Store;
use elastic_spec::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

pub struct Registry {
    store: Store,
    address: String,
}

const CLAIM: &str = "push.json";
const MANIFEST: &str = "manifest.json";
const LABELS: &str = "labels.json";
const OBJECTS_MAX: usize = 100_000;
const SMALL_BYTES_MAX: u64 = 1 << 20;
const FILE_BYTES_MAX: u64 = 64 << 30;
/// Tries of one that finds its model's labels moved by others each time.
const MOVES_MAX: usize = 20;

/// Versions by label.
pub type Labels = BTreeMap<String, u64>;

/// What a version is, as far as it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// The content that it was taken for.
    pub claimed: Option<String>,
    /// The content that was published.
    pub published: Option<String>,
}

/// What is to be done to have `content` published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    AlreadyThere(u64),
    /// One that was taken for it, and cut off.
    GoOn(u64),
    Take(u64),
}

pub fn decide(versions: &BTreeMap<u64, Version>, content: &str) -> Act {
    let is = |side: &Option<String>| side.as_deref() == Some(content);
    if let Some((number, _)) = versions.iter().rev().find(|(_, version)| is(&version.published)) {
        return Act::AlreadyThere(*number);
    }
    let cut_off = |version: &Version| version.published.is_none() && is(&version.claimed);
    match versions.iter().rev().find(|(_, version)| cut_off(version)) {
        Some((number, _)) => Act::GoOn(*number),
        None => Act::Take(versions.keys().next_back().map_or(1, |last| last + 1)),
    }
}

/// The version that a candidate is compared with: the labelled one, else the highest; of a candidate that is published
/// already the one before it, so that asking again compares with the same.
pub fn choose_baseline(versions: &BTreeMap<u64, Version>, labelled: Option<u64>, candidate: &str) -> Option<u64> {
    let published: Vec<(u64, &str)> =
        versions.iter().filter_map(|(number, version)| Some((*number, version.published.as_deref()?))).collect();
    match published.iter().find(|(_, content)| *content == candidate) {
        Some((own, _)) => published.iter().map(|(number, _)| *number).filter(|number| number < own).max(),
        None => {
            let labelled = labelled.filter(|label| published.iter().any(|(number, _)| number == label));
            labelled.or_else(|| published.iter().map(|(number, _)| *number).max())
        }
    }
}

/// A blessed model.
pub struct Baseline {
    pub version: u64,
    pub content_sha256: String,
    store: Store,
    prefix: String,
}

impl Baseline {
    /// Its bundle, as files of `dir`.
    pub fn fetch(&self, dir: &Path) -> Result<()> {
        fetch_bundle(&self.store, &self.prefix, dir)
    }
}

/// Where a label was and is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    pub model: String,
    pub label: String,
    pub from: Option<u64>,
    pub to: u64,
}

#[derive(Deserialize)]
struct Listed {
    content_sha256: String,
    files: Vec<ListedFile>,
}

#[derive(Deserialize)]
struct ListedFile {
    name: String,
    bytes: u64,
    sha256: Digest,
}

#[derive(Serialize, Deserialize)]
struct Claim {
    content_sha256: String,
}

impl Registry {
    pub fn open(address: &str) -> Result<Registry> {
        let store = Store::at(address).with_context(|| format!("open the registry {address}"))?;
        Ok(Registry { store, address: address.to_string() })
    }

    pub fn versions(&self, model: &str) -> Result<BTreeMap<u64, Version>> {
        let entries =
            self.store.list(model, OBJECTS_MAX).with_context(|| format!("list {}", self.store.place(model)))?;
        let mut versions: BTreeMap<u64, Version> = BTreeMap::new();
        for entry in entries {
            let Some(rest) = entry.name.strip_prefix(&format!("{model}/")) else { continue };
            let Some((number, file)) = rest.split_once('/') else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            let version = versions.entry(number).or_default();
            match file {
                CLAIM => version.claimed = self.content(&entry.name)?,
                MANIFEST => version.published = self.content(&entry.name)?,
                _ => {}
            }
        }
        Ok(versions)
    }

    fn content(&self, name: &str) -> Result<Option<String>> {
        let bytes =
            self.store.get(name, SMALL_BYTES_MAX).with_context(|| format!("read {}", self.store.place(name)))?;
        let claim: Option<Claim> = serde_json::from_slice(&bytes).ok();
        Ok(claim.map(|claim| claim.content_sha256))
    }

    pub fn labels(&self, model: &str) -> Result<Labels> {
        Ok(self.labels_as_they_are(model)?.0)
    }

    /// With what changes when they do; None: there are none.
    fn labels_as_they_are(&self, model: &str) -> Result<(Labels, Option<String>)> {
        let name = format!("{model}/{LABELS}");
        let found = self.store.head(&name).with_context(|| format!("look for {}", self.store.place(&name)))?;
        let Some(found) = found else { return Ok((BTreeMap::new(), None)) };
        let reading = || format!("read {}", self.store.place(&name));
        // Read after its mark: what is newer than that is not replaced.
        let bytes = self.store.get(&name, SMALL_BYTES_MAX).with_context(reading)?;
        let labels = serde_json::from_slice(&bytes).context("expected {\"label\": version}").with_context(reading)?;
        Ok((labels, found.etag))
    }

    pub fn baseline(&self, model: &str, label: &str, candidate: &str) -> Result<Option<Baseline>> {
        let versions = self.versions(model)?;
        let labelled = self.labels(model)?.get(label).copied();
        let Some(version) = choose_baseline(&versions, labelled, candidate) else { return Ok(None) };
        let content_sha256 = versions[&version].published.clone().context("a baseline is published")?;
        Ok(Some(Baseline { version, content_sha256, store: self.store.clone(), prefix: format!("{model}/{version}") }))
    }

    /// Publishes the bundle in `dir`; gives its version. `half`: called when some of its files are there.
    pub fn publish(&self, model: &str, dir: &Path, half: impl Fn()) -> Result<u64> {
        let json = std::fs::read(dir.join(MANIFEST)).context("read the bundle's manifest")?;
        let listed: Listed = serde_json::from_slice(&json).context("read the bundle's manifest")?;
        let content = &listed.content_sha256;
        let claim = json!({ "content_sha256": content }).to_string();
        let version = loop {
            match decide(&self.versions(model)?, content) {
                Act::AlreadyThere(version) => return Ok(version),
                Act::GoOn(version) => break version,
                Act::Take(version) => {
                    let name = format!("{model}/{version}/{CLAIM}");
                    let taken = self.store.put_new(&name, claim.clone());
                    if taken.with_context(|| format!("take {}", self.store.place(&name)))? {
                        break version;
                    }
                }
            }
        };
        let put = |file: &str| -> Result<()> {
            let name = format!("{model}/{version}/{file}");
            let sent = self.store.put_file(&name, &dir.join(file));
            sent.map(drop).with_context(|| format!("publish {}", self.store.place(&name)))
        };
        for (i, file) in listed.files.iter().enumerate() {
            put(&file.name)?;
            if i == 0 {
                half();
            }
        }
        if dir.join("provenance.json").exists() {
            put("provenance.json")?;
        }
        put(MANIFEST)?;
        Ok(version)
    }

    /// Reads every byte of a version back.
    pub fn verify(&self, model: &str, version: u64) -> Result<String> {
        let prefix = format!("{model}/{version}");
        let listed = listed(&self.store, &prefix)?;
        for file in &listed.files {
            let name = format!("{prefix}/{}", file.name);
            let bytes =
                self.store.get(&name, FILE_BYTES_MAX).with_context(|| format!("read {}", self.store.place(&name)))?;
            let found = Digest::of(&bytes);
            if found != file.sha256 || bytes.len() as u64 != file.bytes {
                bail!("{} has SHA-256 {found}, its manifest says {}", self.store.place(&name), file.sha256);
            }
        }
        Ok(listed.content_sha256)
    }

    /// Moves a label to a version, which must be published.
    pub fn label(&self, model: &str, label: &str, version: u64) -> Result<Moved> {
        self.move_label(model, label, |_| Ok(version))
    }

    /// Moves a label back: to `version`, or to the highest one below where it is.
    pub fn rollback(&self, model: &str, label: &str, version: Option<u64>) -> Result<Moved> {
        self.move_label(model, label, |labels| {
            let now = *labels.get(label).ok_or_else(|| {
                let known: Vec<&str> = labels.keys().map(String::as_str).collect();
                anyhow!("{model} in {} has no label {label}; there are: {}", self.address, known.join(", "))
            })?;
            if let Some(version) = version {
                return Ok(version);
            }
            let versions = self.versions(model)?;
            let below = versions.iter().filter(|(number, version)| **number < now && version.published.is_some());
            let below = below.map(|(number, _)| *number).max();
            below.ok_or_else(|| anyhow!("{label} of {model} is at version {now}, and none is below it"))
        })
    }

    fn check_published(&self, model: &str, version: u64) -> Result<()> {
        let versions = self.versions(model)?;
        let published: Vec<String> =
            versions.iter().filter(|(_, v)| v.published.is_some()).map(|(number, _)| number.to_string()).collect();
        if !published.contains(&version.to_string()) {
            let all = if published.is_empty() { "none".to_string() } else { published.join(", ") };
            bail!("{model} in {} has no published version {version}; there are: {all}", self.address);
        }
        self.verify(model, version).map(drop)
    }

    /// `to`: where, as the labels are now. If another moves one meanwhile, it is asked again.
    fn move_label(&self, model: &str, label: &str, to: impl Fn(&Labels) -> Result<u64>) -> Result<Moved> {
        let lock = self.lock(model)?;
        let name = format!("{model}/{LABELS}");
        let writing = || format!("write {}", self.store.place(&name));
        for _ in 0..MOVES_MAX {
            let (mut labels, etag) = self.labels_as_they_are(model)?;
            let to = to(&labels)?;
            self.check_published(model, to)?;
            let from = labels.insert(label.to_string(), to);
            let json = serde_json::to_string_pretty(&labels).context("labels as JSON")? + "\n";
            let is_written = match lock {
                Some(_) => self.store.put(&name, json).map(|()| true),
                None => self.store.put_over(&name, json, etag),
            };
            if is_written.with_context(writing)? {
                return Ok(Moved { model: model.into(), label: label.into(), from, to });
            }
        }
        Err(anyhow!("others kept moving labels; try again")).with_context(writing)
    }

    /// Labels of a model in a folder are moved by one process at a time. In a bucket there is no lock: who comes second
    /// reads again.
    fn lock(&self, model: &str) -> Result<Option<File>> {
        if self.address.starts_with("s3://") {
            return Ok(None);
        }
        let dir = PathBuf::from(&self.address).join(model);
        if !dir.is_dir() {
            bail!("there is no model {model} in {}", self.address);
        }
        let file = File::open(&dir).with_context(|| format!("open {}", dir.display()))?;
        file.lock().with_context(|| format!("lock {}", dir.display()))?;
        Ok(Some(file))
    }
}

fn listed(store: &Store, prefix: &str) -> Result<Listed> {
    let name = format!("{prefix}/{MANIFEST}");
    let reading = || format!("read {}", store.place(&name));
    let json = store.get(&name, SMALL_BYTES_MAX).with_context(reading)?;
    let listed: Listed = serde_json::from_slice(&json).with_context(reading)?;
    match listed.files.iter().find(|file| file.name.contains('/') || file.name.starts_with('.')) {
        Some(file) => Err(anyhow!("it lists {:?}", file.name)).with_context(reading),
        None => Ok(listed),
    }
}

fn fetch_bundle(store: &Store, prefix: &str, dir: &Path) -> Result<()> {
    let listed = listed(store, prefix)?;
    for file in listed.files.iter().map(|file| file.name.as_str()).chain([MANIFEST]) {
        let name = format!("{prefix}/{file}");
        let bytes = store.get(&name, FILE_BYTES_MAX).with_context(|| format!("read {}", store.place(&name)))?;
        std::fs::write(dir.join(file), bytes).with_context(|| format!("write {}", dir.join(file).display()))?;
    }
    Ok(())
}

/// Why a push that was done once is not there any more; None: it is.
pub fn lost(facts: &Value) -> Result<Option<String>> {
    let text = |key: &str| facts[key].as_str().unwrap_or_default().to_string();
    let registry = Registry::open(&text("registry"))?;
    let (model, version) = (text("model"), facts["version"].as_u64().unwrap_or_default());
    let versions = registry.versions(&model)?;
    let published = versions.get(&version).and_then(|version| version.published.clone());
    Ok(match published {
        Some(content) if content == text("content_sha256") => None,
        Some(_) => Some(format!("version {version} of {model} in the registry has another content")),
        None => Some(format!("version {version} of {model} is not in the registry any more")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn versions(all: &[(u64, Option<&str>, Option<&str>)]) -> BTreeMap<u64, Version> {
        let text = |side: &Option<&str>| side.map(str::to_string);
        all.iter().map(|(n, c, p)| (*n, Version { claimed: text(c), published: text(p) })).collect()
    }

    #[test]
    fn a_content_is_published_once_and_a_cut_off_push_goes_on() {
        assert_eq!(decide(&versions(&[]), "a"), Act::Take(1));
        let known = versions(&[(1, Some("a"), Some("a")), (2, Some("b"), None), (4, Some("c"), None)]);
        assert_eq!(decide(&known, "a"), Act::AlreadyThere(1));
        assert_eq!(decide(&known, "b"), Act::GoOn(2));
        assert_eq!(decide(&known, "d"), Act::Take(5), "a version that another took stays the other's");
    }

    #[test]
    fn the_baseline_is_the_labelled_version_and_stays_the_same_after_the_push() {
        let known = versions(&[(1, None, Some("a")), (2, None, Some("b")), (3, Some("c"), None)]);
        assert_eq!(choose_baseline(&known, Some(1), "c"), Some(1), "rolled back: that one answers who names none");
        assert_eq!(choose_baseline(&known, None, "c"), Some(2));
        assert_eq!(choose_baseline(&known, Some(3), "c"), Some(2), "what is not published is no model");
        assert_eq!(choose_baseline(&known, Some(2), "b"), Some(1), "not itself");
        assert_eq!(choose_baseline(&known, Some(1), "a"), None);
        assert_eq!(choose_baseline(&versions(&[]), None, "a"), None);
    }

    fn bundle(dir: &Path, content: &str) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("model.json"), content).unwrap();
        let files = json!([{"name": "model.json", "bytes": content.len(), "sha256": Digest::of(content.as_bytes())}]);
        std::fs::write(dir.join(MANIFEST), json!({"content_sha256": content, "files": files}).to_string()).unwrap();
    }

    #[test]
    fn versions_count_up_and_labels_move_and_roll_back() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r").display().to_string()).unwrap();
        for (content, version) in [("a", 1), ("b", 2), ("a", 1)] {
            let from = dir.path().join(content);
            bundle(&from, content);
            assert_eq!(registry.publish("m", &from, || ()).unwrap(), version);
        }
        assert_eq!(registry.verify("m", 2).unwrap(), "b");
        assert_eq!(registry.label("m", "live", 1).unwrap().from, None);
        assert_eq!(registry.label("m", "live", 2).unwrap().from, Some(1));
        assert_eq!(registry.rollback("m", "live", None).unwrap().to, 1);
        assert_eq!(registry.labels("m").unwrap(), [("live".to_string(), 1)].into());
        for (told, says) in [
            (registry.rollback("m", "live", None), "none is below it"),
            (registry.rollback("m", "canary", None), "no label canary; there are: live"),
            (registry.label("m", "live", 7), "no published version 7; there are: 1, 2"),
            (registry.label("x", "live", 1), "no model x"),
        ] {
            let told = format!("{:#}", told.unwrap_err());
            assert!(told.contains(says), "{told}");
        }
        std::fs::write(dir.path().join("r/m/2/model.json"), "x").unwrap();
        let told = format!("{:#}", registry.label("m", "live", 2).unwrap_err());
        assert!(told.contains("its manifest says"), "{told}");
    }
}
