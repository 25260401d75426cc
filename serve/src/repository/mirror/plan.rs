//! Decides what a mirror does next: a function of (what the bucket lists, what is here, now).
//!
//! A version is seen once its manifest is listed, which is written last. Of each model the newest versions and those with
//! a label are wanted, as the server loads them. What was refused is asked for again after 10 s, 20 s, … an hour, and at
//! once when its objects change. What is not wanted stays only for a wanted one that is not here: the newest, and what a label
//! led to. What the bucket itself has lost goes.

use crate::limits::{MODELS_MAX, NAME_BYTES_MAX, VERSIONS_MAX};
use elastic_objects::{Entry, check_name};
use elastic_spec::Digest;
use std::collections::{BTreeMap, BTreeSet};

pub const MANIFEST: &str = "manifest.json";
pub const LABELS: &str = "labels.json";

/// Of an object, or of all objects of a version: another one after any change.
pub type Mark = Digest;

/// What the bucket has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    pub models: BTreeMap<String, ListedModel>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedModel {
    pub labels: Option<ListedLabels>,
    pub versions: BTreeMap<u64, ListedVersion>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedLabels {
    pub object: String,
    pub mark: Mark,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedVersion {
    /// Its objects' common prefix; empty, or with a slash at its end.
    pub prefix: String,
    pub mark: Mark,
    /// Lengths by name.
    pub files: BTreeMap<String, u64>,
}

/// What is here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    pub models: BTreeMap<String, LocalModel>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalModel {
    /// As they were last read in the bucket.
    pub labels: Option<Labels>,
    /// Those that are in place, whole.
    pub versions: BTreeMap<u64, Mark>,
    pub refused: BTreeMap<u64, Refused>,
    /// Where each label led when it last led to a copy that is here.
    pub led: BTreeMap<String, u64>,
}

impl LocalModel {
    /// The labels are in place.
    pub fn placed(&mut self) {
        let Some(labels) = &mut self.labels else { return };
        labels.is_placed = true;
        self.led.retain(|label, _| labels.named.contains_key(label));
        let here = labels.named.iter().filter(|(_, version)| self.versions.contains_key(version));
        self.led.extend(here.map(|(label, version)| (label.clone(), *version)));
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    pub mark: Mark,
    pub bytes: Vec<u8>,
    /// If they cannot be understood: those from before.
    pub named: BTreeMap<String, u64>,
    pub is_placed: bool,
}

/// A version that could not be taken as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub mark: Mark,
    pub why: String,
    pub failures: u32,
    pub again_ms: u64,
}

/// A version to be copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetch {
    pub model: String,
    pub version: u64,
}

/// What is done without asking the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tidy {
    PlaceLabels(String),
    RemoveLabels(String),
    RemoveVersion(String, u64),
    RemoveModel(String),
}

impl Local {
    /// What was refused is so only as long as it is as it was.
    pub fn heed(&mut self, listing: &Listing) {
        for (name, model) in &mut self.models {
            let listed = |version: &u64| listing.models.get(name)?.versions.get(version);
            model.refused.retain(|version, refused| listed(version).is_some_and(|listed| listed.mark == refused.mark));
        }
    }
}

impl Listing {
    /// `own`: what a model is called whose versions lie at the address itself.
    pub fn of(entries: &[Entry], own: &str) -> Listing {
        // Checked by the store as well; here names become paths.
        let is_safe = |entry: &&Entry| check_name(&entry.name).is_ok() && !entry.name.split('/').any(is_hidden);
        let all: Vec<&Entry> = entries.iter().filter(is_safe).collect();
        let root = model("", &all);
        if !root.versions.is_empty() {
            return Listing { models: [(own.to_string(), root)].into() };
        }
        let mut apart: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
        for entry in all {
            if let Some((name, _)) = entry.name.split_once('/') {
                apart.entry(name).or_default().push(entry);
            }
        }
        let apart = apart.into_iter().filter(|(name, _)| name.len() <= NAME_BYTES_MAX).take(MODELS_MAX);
        let models = apart.map(|(name, entries)| (name.to_string(), model(&format!("{name}/"), &entries)));
        Listing { models: models.filter(|(_, model)| !model.versions.is_empty() || model.labels.is_some()).collect() }
    }
}

fn is_hidden(part: &str) -> bool {
    part.starts_with('.')
}

/// What lies under a prefix, as one model: a bundle, or versions by number.
fn model(prefix: &str, entries: &[&Entry]) -> ListedModel {
    let mut apart: BTreeMap<(u64, String), Vec<&Entry>> = BTreeMap::new();
    let mut labels = None;
    for entry in entries {
        let Some(rest) = entry.name.strip_prefix(prefix) else { continue };
        match rest.split_once('/') {
            None if rest == LABELS => labels = Some(ListedLabels { object: entry.name.clone(), mark: mark(&[entry]) }),
            None => apart.entry((1, prefix.to_string())).or_default().push(entry),
            Some((number, file)) if !file.contains('/') => {
                // "01" would be a second place of the same version.
                let Some(number) = number.parse::<u64>().ok().filter(|n| n.to_string() == number) else { continue };
                apart.entry((number, format!("{prefix}{number}/"))).or_default().push(entry);
            }
            Some(_) => {}
        }
    }
    let version = |((number, prefix), entries): ((u64, String), Vec<&Entry>)| {
        let name = |entry: &&Entry| (entry.name[prefix.len()..].to_string(), entry.bytes);
        let files: BTreeMap<String, u64> = entries.iter().map(name).collect();
        let is_published = files.contains_key(MANIFEST);
        is_published.then(|| (number, ListedVersion { mark: mark(&entries), prefix, files }))
    };
    let mut versions: Vec<_> = apart.into_iter().filter_map(version).collect();
    // A directory with a manifest is a bundle, whatever lies beside it.
    if versions.iter().any(|(_, version)| version.prefix == prefix) {
        versions.retain(|(_, version)| version.prefix == prefix);
    }
    ListedModel { labels, versions: versions.into_iter().rev().take(VERSIONS_MAX).collect() }
}

fn mark(entries: &[&Entry]) -> Mark {
    // Written again with the same bytes it is the same, where the store tells.
    let state = |entry: &Entry| entry.etag.clone().unwrap_or_else(|| format!("{:?}", entry.modified));
    let line = |entry: &&Entry| format!("{} {} {}\n", entry.name, entry.bytes, state(entry));
    Digest::of(entries.iter().map(line).collect::<String>().as_bytes())
}

/// Labels that are new, to be read before anything is fetched.
pub fn labels_to_read(listing: &Listing, local: &Local) -> Vec<(String, ListedLabels)> {
    let is_new = |name: &String, labels: &ListedLabels| {
        local.models.get(name).and_then(|model| model.labels.as_ref()).is_none_or(|have| have.mark != labels.mark)
    };
    let listed = listing.models.iter().filter_map(|(name, model)| Some((name, model.labels.as_ref()?)));
    listed.filter(|(name, labels)| is_new(name, labels)).map(|(name, l)| (name.clone(), l.clone())).collect()
}

/// Small ones first: a label or a small model does not wait for a large one.
pub fn fetches(listing: &Listing, local: &Local, keep: usize, now_ms: u64) -> Vec<Fetch> {
    let nothing = LocalModel::default();
    let mut fetches = Vec::new();
    for (name, listed) in &listing.models {
        let model = local.models.get(name).unwrap_or(&nothing);
        for version in tried(listed, model, keep) {
            let listed = &listed.versions[&version];
            let waits = model.refused.get(&version).is_some_and(|r| r.mark == listed.mark && now_ms < r.again_ms);
            if model.versions.get(&version) != Some(&listed.mark) && !waits {
                fetches.push((listed.files.values().sum::<u64>(), Fetch { model: name.clone(), version }));
            }
        }
    }
    fetches.sort_by_key(|(bytes, _)| *bytes);
    fetches.into_iter().map(|(_, fetch)| fetch).collect()
}

/// What can be put in order now. Of a model that still lacks something nothing is touched: labels come after the versions
/// that they name, and what answers stays until its successor is here.
pub fn tidy(listing: &Listing, local: &Local, keep: usize) -> Vec<Tidy> {
    let mut acts = Vec::new();
    for (name, model) in &local.models {
        let Some(listed) = listing.models.get(name) else {
            acts.push(Tidy::RemoveModel(name.clone()));
            continue;
        };
        // Labels that could not be read may name anything.
        if listed.labels.is_some() && model.labels.is_none() {
            continue;
        }
        let wanted = wanted(listed, model, keep);
        let is_whole = |version: &u64| model.versions.get(version) == Some(&listed.versions[version].mark);
        let is_refused =
            |version: &u64| model.refused.get(version).is_some_and(|r| r.mark == listed.versions[version].mark);
        if !wanted.iter().all(|version| is_whole(version) || is_refused(version)) {
            continue;
        }
        match (&listed.labels, &model.labels) {
            (Some(_), Some(labels)) if !labels.is_placed => acts.push(Tidy::PlaceLabels(name.clone())),
            (None, Some(_)) => acts.push(Tidy::RemoveLabels(name.clone())),
            _ => {}
        }
        let mut stand_ins: BTreeSet<u64> = BTreeSet::new();
        if !listed.versions.keys().next_back().is_some_and(is_whole) {
            stand_ins.extend(model.versions.keys().next_back());
        }
        // One that is refused keeps what its label led to, and no more.
        let named = model.labels.iter().flat_map(|labels| &labels.named);
        let lacking = named.filter(|(_, version)| wanted.contains(version) && !is_whole(version));
        stand_ins.extend(lacking.filter_map(|(label, _)| model.led.get(label)));
        let goes = |version: &&u64| match listed.versions.contains_key(version) {
            true => !stand_ins.contains(version) && !wanted.contains(version),
            false => true,
        };
        acts.extend(model.versions.keys().filter(goes).map(|version| Tidy::RemoveVersion(name.clone(), *version)));
    }
    acts
}

/// As [`crate::repository::machine`] wants them.
fn wanted(listed: &ListedModel, model: &LocalModel, keep: usize) -> BTreeSet<u64> {
    let newest = listed.versions.keys().rev().take(keep);
    let labels = model.labels.iter().filter(|_| listed.labels.is_some()).flat_map(|labels| labels.named.values());
    newest.chain(labels.filter(|version| listed.versions.contains_key(version))).copied().collect()
}

/// As well, while nothing is here and all that is wanted was refused, the next lower version, and so on.
fn tried(listed: &ListedModel, model: &LocalModel, keep: usize) -> BTreeSet<u64> {
    let mut tried = wanted(listed, model, keep);
    let is_refused =
        |version: &u64| model.refused.get(version).is_some_and(|r| r.mark == listed.versions[version].mark);
    for version in listed.versions.keys().rev().filter(|_| model.versions.is_empty()) {
        if !tried.iter().all(is_refused) {
            break;
        }
        tried.insert(*version);
    }
    tried
}

/// The next time for a version that was refused: its bytes cost something, and seldom mend themselves.
pub fn refuse(before: Option<&Refused>, mark: Mark, why: String, now_ms: u64) -> Refused {
    let failures = before.filter(|before| before.mark == mark).map_or(0, |before| before.failures) + 1;
    let wait_ms = (10_000u64 << (failures - 1).min(9)).min(3_600_000);
    Refused { mark, why, failures, again_ms: now_ms + wait_ms }
}

/// The wait after so many passes in a row that came to nothing.
pub fn wait_ms(poll_ms: u64, failures: u32) -> u64 {
    match failures {
        0 => poll_ms,
        n => (poll_ms.max(100) << (n - 1).min(10)).min(poll_ms.max(30_000)),
    }
}

#[cfg(test)]
mod tests;
