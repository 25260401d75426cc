//! A registry: `MODEL/VERSION/…`, the manifest of a version last, and beside the versions `MODEL/labels.json` and, of how
//! they came there, `MODEL/moves.json`.
//!
//! A version is taken by `push.json`, which only one can put, and published by `manifest.json`. What has none is not seen
//! by a server, and a push that was cut off goes on in the version that it took. A published version never changes.

pub mod moves;

use anyhow::{Context, Result, anyhow, bail};
use elastic_objects::Address;
use elastic_objects::blocking::Store;
use elastic_spec::Digest;
use moves::{By, MOVES_KEPT, Move};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

pub struct Registry {
    store: Store,
    address: String,
}

const CLAIM: &str = "push.json";
const MANIFEST: &str = "manifest.json";
const LABELS: &str = "labels.json";
const MOVES: &str = "moves.json";
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

/// The version that a candidate is compared with: the labelled one, else the highest. Of a candidate that is published
/// already the one that had the label `before` it, else the one below it, so that asking again compares with the same.
pub fn choose_baseline(
    versions: &BTreeMap<u64, Version>,
    labelled: Option<u64>,
    before: Option<u64>,
    candidate: &str,
) -> Option<u64> {
    let published: Vec<(u64, &str)> =
        versions.iter().filter_map(|(number, version)| Some((*number, version.published.as_deref()?))).collect();
    match published.iter().find(|(_, content)| *content == candidate) {
        Some((own, _)) => {
            let before = before.filter(|before| before != own && published.iter().any(|(number, _)| number == before));
            before.or_else(|| published.iter().map(|(number, _)| *number).filter(|number| number < own).max())
        }
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
        self.as_it_is(&format!("{model}/{LABELS}"), "{\"label\": version}")
    }

    fn moves_as_they_are(&self, model: &str) -> Result<(Vec<Move>, Option<String>)> {
        self.as_it_is(&format!("{model}/{MOVES}"), "the moves of labels")
    }

    fn as_it_is<T: Default + DeserializeOwned>(&self, name: &str, what: &str) -> Result<(T, Option<String>)> {
        let found = self.store.head(name).with_context(|| format!("look for {}", self.store.place(name)))?;
        let Some(found) = found else { return Ok((T::default(), None)) };
        let reading = || format!("read {}", self.store.place(name));
        // Read after its mark: what is newer than that is not replaced.
        let bytes = self.store.get(name, SMALL_BYTES_MAX).with_context(reading)?;
        let value = serde_json::from_slice(&bytes).with_context(|| format!("expected {what}")).with_context(reading)?;
        Ok((value, found.etag))
    }

    pub fn baseline(&self, model: &str, label: &str, candidate: &str) -> Result<Option<Baseline>> {
        let versions = self.versions(model)?;
        let labelled = self.labels(model)?.get(label).copied();
        let before = moves::before_push(&self.moves_as_they_are(model)?.0, label, candidate);
        let Some(version) = choose_baseline(&versions, labelled, before, candidate) else { return Ok(None) };
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
        self.move_label(model, label, By::Label, |_, _| Ok(version))
    }

    /// Moves a label to the version of a content that was pushed, unless a push did that before: where the label is since
    /// then is somebody's will.
    pub fn push_label(&self, model: &str, label: &str, version: u64, content: &str) -> Result<Moved> {
        self.move_label(model, label, By::Push, |labels, moves| {
            let now = labels.get(label).copied();
            let is_moved = moves::is_moved_by_push(moves, label, now, content);
            Ok(if is_moved { version } else { now.unwrap_or(version) })
        })
    }

    /// Moves a label back: to `version`, or to where it was before.
    pub fn rollback(&self, model: &str, label: &str, version: Option<u64>) -> Result<Moved> {
        self.move_label(model, label, By::Rollback, |labels, moves| {
            let now = *labels.get(label).ok_or_else(|| {
                let known: Vec<&str> = labels.keys().map(String::as_str).collect();
                let there =
                    if known.is_empty() { "it has none".into() } else { format!("there are: {}", known.join(", ")) };
                let cure = format!("elastic pipeline label {} {model} {label} VERSION", self.address);
                anyhow!("{model} in {} has no label {label}; {there}. Give it one: {cure}", self.address)
            })?;
            if let Some(version) = version {
                return Ok(version);
            }
            let versions = self.versions(model)?;
            let published = versions.iter().filter(|(_, version)| version.published.is_some());
            let published = published.map(|(number, _)| *number).collect();
            let none =
                || anyhow!("{label} of {model} is at version {now}, and there is none to go back to; --to names one");
            moves::back(moves, &published, label, now).ok_or_else(none)
        })
    }

    /// Gives its content.
    fn check_published(&self, model: &str, version: u64) -> Result<String> {
        let versions = self.versions(model)?;
        let published: Vec<String> =
            versions.iter().filter(|(_, v)| v.published.is_some()).map(|(number, _)| number.to_string()).collect();
        if !published.contains(&version.to_string()) {
            let all = if published.is_empty() { "none".to_string() } else { published.join(", ") };
            bail!("{model} in {} has no published version {version}; there are: {all}", self.address);
        }
        self.verify(model, version)
    }

    /// `to`: where, as the labels are now and came there. If another moves one meanwhile, it is asked again.
    fn move_label(
        &self,
        model: &str,
        label: &str,
        by: By,
        to: impl Fn(&Labels, &[Move]) -> Result<u64>,
    ) -> Result<Moved> {
        let lock = self.lock(model)?;
        let put = |name: &str, value: String, etag: Option<String>| {
            let is_written = match lock {
                Some(_) => self.store.put(name, value).map(|()| true),
                None => self.store.put_over(name, value, etag),
            };
            is_written.with_context(|| format!("write {}", self.store.place(name)))
        };
        for _ in 0..MOVES_MAX {
            let (mut moves, moves_etag) = self.moves_as_they_are(model)?;
            let (mut labels, etag) = self.labels_as_they_are(model)?;
            let to = to(&labels, &moves)?;
            let content_sha256 = self.check_published(model, to)?;
            let from = labels.insert(label.to_string(), to);
            let step = Move { label: label.into(), from, to, content_sha256, by };
            let moved = Moved { model: model.into(), label: label.into(), from, to };
            if from == Some(to) {
                return Ok(moved);
            }
            // Written down first: who is cut off between the two is seen to have been.
            if moves.iter().rev().find(|step| step.label == label) != Some(&step) {
                moves.push(step);
                let kept = &moves[moves.len().saturating_sub(MOVES_KEPT)..];
                let lines: Vec<String> =
                    kept.iter().map(serde_json::to_string).collect::<Result<_, _>>().context("moves as JSON")?;
                if !put(&format!("{model}/{MOVES}"), format!("[\n{}\n]\n", lines.join(",\n")), moves_etag)? {
                    continue;
                }
            }
            let json = serde_json::to_string_pretty(&labels).context("labels as JSON")? + "\n";
            if put(&format!("{model}/{LABELS}"), json, etag)? {
                return Ok(moved);
            }
        }
        Err(anyhow!("others kept moving labels of {model} in {}; try again", self.address))
    }

    /// Labels of a model in a folder are moved by one process at a time. In a bucket there is no lock: who comes second
    /// reads again.
    fn lock(&self, model: &str) -> Result<Option<File>> {
        let Address::Folder(root) = Address::parse(&self.address)? else { return Ok(None) };
        let dir = root.join(model);
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
        assert_eq!(
            choose_baseline(&known, Some(1), None, "c"),
            Some(1),
            "rolled back: that one answers who names none"
        );
        assert_eq!(choose_baseline(&known, None, None, "c"), Some(2));
        assert_eq!(choose_baseline(&known, Some(3), None, "c"), Some(2), "what is not published is no model");
        assert_eq!(choose_baseline(&known, Some(2), None, "b"), Some(1), "not itself");
        assert_eq!(choose_baseline(&known, Some(2), Some(2), "b"), Some(1), "not itself, whatever is told");
        let more = versions(&[(1, None, Some("a")), (2, None, Some("x")), (3, None, Some("c"))]);
        assert_eq!(choose_baseline(&more, Some(1), Some(1), "c"), Some(1), "2 never had the label");
        assert_eq!(choose_baseline(&more, Some(1), Some(7), "c"), Some(2), "7 is gone");
        assert_eq!(choose_baseline(&known, Some(1), None, "a"), None);
        assert_eq!(choose_baseline(&versions(&[]), None, None, "a"), None);
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
        let by_address = Registry::open(&format!("file://{}", dir.path().join("r").display())).unwrap();
        assert_eq!(by_address.label("m", "live", 1).unwrap().from, Some(1));
        for (told, says) in [
            (registry.rollback("m", "live", None), "there is none to go back to"),
            (
                registry.rollback("m", "canary", None),
                "no label canary; there are: live. Give it one: elastic pipeline label",
            ),
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

    /// A content is pushed once, and what was done to its label since then stays.
    #[test]
    fn a_push_of_the_same_content_leaves_a_label_where_others_put_it() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r").display().to_string()).unwrap();
        let push = |content: &str| {
            let from = dir.path().join(content);
            if !from.exists() {
                bundle(&from, content);
            }
            let version = registry.publish("m", &from, || ()).unwrap();
            registry.push_label("m", "live", version, content).unwrap().to
        };
        assert_eq!((push("a"), push("b"), push("b")), (1, 2, 2));
        assert_eq!(registry.rollback("m", "live", None).unwrap().to, 1);
        assert_eq!(push("b"), 1, "asked again, by whatever workspace or version of the program");
        std::fs::remove_dir_all(dir.path().join("r/m/2")).unwrap();
        assert_eq!(push("b"), 1, "its version is gone, and made again");
        assert_eq!(registry.versions("m").unwrap().len(), 2);
        assert_eq!(registry.baseline("m", "live", "b").unwrap().unwrap().version, 1);
        assert_eq!(push("c"), 3, "a new one moves it");
        assert_eq!(registry.rollback("m", "live", None).unwrap().to, 1, "and not back to 2");
        // Cut off between the two files: the label is where the move found it.
        let moves = std::fs::read_to_string(dir.path().join("r/m/moves.json")).unwrap();
        assert_eq!(push("d"), 4);
        registry.store.put("m/labels.json", "{\"live\": 1}").unwrap();
        assert_eq!(push("d"), 4, "it goes on");
        let after = std::fs::read_to_string(dir.path().join("r/m/moves.json")).unwrap();
        assert_eq!(after.lines().count(), moves.lines().count() + 1, "and is written down once: {after}");
    }
}
