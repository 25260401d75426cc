//! Decides what is loaded, what answers, and when the old version goes: a function of (state, event, now).
//!
//! Of each model the newest versions and those with a label are wanted. A wanted version is loaded aside; until the newest
//! answers, the one that did before goes on, and so does the version that a label led to. Where nothing answers and all
//! that is wanted has failed, the next lower version is tried, and so on downwards. Who names none gets the version with
//! the label `live` where the model has that, else the newest; while the labelled one does not answer, who did goes on.
//!
//! A load that came to nothing is tried again after 1 s, 2 s, … 60 s, and at once when the files change. Files that vanish
//! with their whole model take it out; a model whose directory is there but holds nothing whole (somebody copies) keeps
//! what it has.

use crate::state::IndexRow;
use elastic_spec::pipeline::LIVE_LABEL;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What a look at the directory saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub models: BTreeMap<String, FoundModel>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundModel {
    pub versions: BTreeMap<u64, FoundVersion>,
    /// The error keeps the labels that there were.
    pub labels: Result<BTreeMap<String, u64>, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundVersion {
    pub dir: PathBuf,
    /// Another one: the files were written anew.
    pub mark: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Load {
    pub name: String,
    pub version: u64,
    pub dir: PathBuf,
    pub mark: u64,
}

#[derive(Clone, Debug)]
pub enum Event {
    Found(Found),
    Loaded(Load),
    Failed(Load, String),
    /// Somebody wants the model loaded, now.
    On(String),
    /// Somebody wants it gone until further notice.
    Off(String),
    Tick,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Load(Load),
    /// What answers has changed.
    Show,
}

/// What answers for one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub versions: BTreeSet<u64>,
    pub labels: BTreeMap<String, u64>,
    /// Which of them answers who names none.
    pub default: Option<u64>,
    /// Why none does.
    pub unready: Option<String>,
}

pub struct Machine {
    keep: usize,
    looked: bool,
    models: BTreeMap<String, Model>,
    shown: BTreeMap<String, Shown>,
}

#[derive(Default)]
struct Model {
    is_off: bool,
    found: BTreeMap<u64, FoundVersion>,
    labels: BTreeMap<String, u64>,
    bad_labels: Option<String>,
    /// Were they ever read?
    has_labels: bool,
    versions: BTreeMap<u64, Version>,
}

#[derive(Default)]
struct Version {
    /// Mark of the files that answer.
    live: Option<u64>,
    attempt: Option<Attempt>,
}

/// To load files of this mark.
struct Attempt {
    mark: u64,
    failures: u32,
    stage: Stage,
}

enum Stage {
    Loading,
    Failed { reason: String, again_ms: u64 },
}

impl Machine {
    pub fn new(keep: usize) -> Machine {
        assert!(keep > 0, "at least the newest version answers");
        Machine { keep, looked: false, models: BTreeMap::new(), shown: BTreeMap::new() }
    }

    pub fn step(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        match event {
            Event::Found(found) => self.found(found),
            Event::Loaded(load) => {
                if let Some(version) = self.version(&load) {
                    version.live = Some(load.mark);
                    version.attempt = None;
                }
            }
            Event::Failed(load, reason) => {
                if let Some(Version { attempt: Some(attempt), .. }) = self.version(&load) {
                    attempt.failures += 1;
                    let again_ms = now_ms + backoff_ms(attempt.failures);
                    attempt.stage = Stage::Failed { reason, again_ms };
                }
            }
            Event::On(name) => {
                if let Some(model) = self.models.get_mut(&name) {
                    model.is_off = false;
                    // Who asks does not wait for the next try.
                    model.versions.values_mut().for_each(Version::try_now);
                }
            }
            Event::Off(name) => {
                if let Some(model) = self.models.get_mut(&name) {
                    model.is_off = true;
                }
            }
            Event::Tick => {}
        }
        self.settle(now_ms)
    }

    fn found(&mut self, found: Found) {
        self.looked = true;
        self.models.retain(|name, _| found.models.contains_key(name));
        for (name, found) in found.models {
            let model = self.models.entry(name).or_default();
            if !found.versions.is_empty() {
                model.found = found.versions;
            }
            match found.labels {
                Ok(labels) => (model.labels, model.bad_labels, model.has_labels) = (labels, None, true),
                Err(why) => model.bad_labels = Some(why),
            }
        }
    }

    /// The version that a load was started for, if it is still that.
    fn version(&mut self, load: &Load) -> Option<&mut Version> {
        let version = self.models.get_mut(&load.name)?.versions.get_mut(&load.version)?;
        version.attempt.as_ref().is_some_and(|attempt| attempt.mark == load.mark).then_some(version)
    }

    /// What is to be loaded now, and what answers now.
    fn settle(&mut self, now_ms: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        let before = std::mem::take(&mut self.shown);
        for (name, model) in &mut self.models {
            let loads = model.loads(self.keep, now_ms).into_iter();
            effects.extend(loads.map(|(version, found)| {
                let FoundVersion { dir, mark } = found;
                Effect::Load(Load { name: name.clone(), version, dir, mark })
            }));
            model.retire(self.keep, before.get(name).unwrap_or(&Shown::default()));
        }
        let shown = |(name, model): (&String, &Model)| {
            let before = before.get(name).cloned().unwrap_or_default();
            (name.clone(), model.shown(&before))
        };
        self.shown = self.models.iter().map(shown).collect();
        // A version that was written anew changes nothing that can be compared: its load says it.
        effects.push(Effect::Show);
        effects
    }

    pub fn shown(&self) -> BTreeMap<String, Shown> {
        self.shown.clone()
    }

    /// Is this what the model waits for? Files that changed meanwhile are loaded anew.
    pub fn expects(&self, load: &Load) -> bool {
        let version = self.models.get(&load.name).and_then(|model| model.versions.get(&load.version));
        let attempt = version.and_then(|version| version.attempt.as_ref());
        attempt.is_some_and(|attempt| attempt.mark == load.mark)
    }

    pub fn knows(&self, name: &str) -> bool {
        self.models.contains_key(name)
    }

    /// Has everything that was found been loaded or refused once?
    pub fn has_settled(&self) -> bool {
        self.looked && self.models.values().all(|model| !model.is_loading())
    }

    /// Of what somebody asked for: None while it is being loaded.
    pub fn outcome(&self, name: &str) -> Option<Result<(), String>> {
        let Some(model) = self.models.get(name) else { return Some(Err("it is gone".into())) };
        if model.is_loading() {
            return None;
        }
        let wanted = model.wanted(self.keep);
        let reason = wanted.iter().find_map(|version| Some((version, model.versions.get(version)?.reason()?)));
        match reason {
            Some((version, reason)) => Some(Err(format!("version {version}: {reason}"))),
            None if wanted.is_empty() => Some(Err("it has no whole bundle".into())),
            None => Some(Ok(())),
        }
    }

    /// Labels that do not lead to their version, by model, and what answers meanwhile.
    pub fn labels_amiss(&self) -> BTreeSet<(String, String)> {
        let of = |(name, model): (&String, &Model)| {
            let amiss = self.shown.get(name).map(|shown| model.labels_amiss(shown)).unwrap_or_default();
            amiss.into_iter().map(|why| (name.clone(), why)).collect::<Vec<_>>()
        };
        self.models.iter().flat_map(of).collect()
    }

    /// Why labels cannot be read, by model.
    pub fn bad_labels(&self) -> BTreeSet<(String, String)> {
        let of = |(name, model): (&String, &Model)| Some((name.clone(), model.bad_labels.clone()?));
        self.models.iter().filter_map(of).collect()
    }

    pub fn index(&self) -> Vec<IndexRow> {
        let mut rows = Vec::new();
        for (name, model) in &self.models {
            let row = |version: String, state, reason: String| IndexRow { name: name.clone(), version, state, reason };
            for (number, version) in &model.versions {
                let reason = version.reason().unwrap_or_default().to_string();
                let state = match (version.live, &version.attempt) {
                    (Some(_), _) => "READY",
                    (None, Some(Attempt { stage: Stage::Loading, .. })) => "LOADING",
                    (None, _) => "UNAVAILABLE",
                };
                rows.push(row(number.to_string(), state, reason));
            }
            if model.versions.is_empty() {
                rows.push(row(String::new(), "UNAVAILABLE", model.why_nothing()));
            }
            let amiss = self.shown.get(name).map(|shown| model.labels_amiss(shown)).unwrap_or_default();
            for why in model.bad_labels.iter().chain(&amiss) {
                rows.push(row(String::new(), "UNAVAILABLE", why.clone()));
            }
        }
        rows
    }
}

impl Model {
    fn wanted(&self, keep: usize) -> BTreeSet<u64> {
        if self.is_off {
            return BTreeSet::new();
        }
        let newest = self.found.keys().rev().take(keep);
        let labelled = self.labels.values().filter(|version| self.found.contains_key(version));
        newest.chain(labelled).copied().collect()
    }

    /// What is wanted; while that has failed and nothing answers, also the next lower version, and so on.
    fn tried(&self, keep: usize) -> BTreeSet<u64> {
        let mut tried = self.wanted(keep);
        if self.is_off || self.versions.values().any(|version| version.live.is_some()) {
            return tried;
        }
        for number in self.found.keys().rev() {
            if !tried.iter().all(|tried| self.has_failed(*tried)) {
                break;
            }
            tried.insert(*number);
        }
        tried
    }

    /// Also while it is tried again.
    fn has_failed(&self, number: u64) -> bool {
        let attempt = self.versions.get(&number).and_then(|version| version.attempt.as_ref());
        attempt.is_some_and(|attempt| attempt.failures > 0 && attempt.mark == self.found[&number].mark)
    }

    fn loads(&mut self, keep: usize, now_ms: u64) -> Vec<(u64, FoundVersion)> {
        let mut loads = Vec::new();
        for number in self.tried(keep) {
            let found = &self.found[&number];
            let version = self.versions.entry(number).or_default();
            if version.live == Some(found.mark) {
                version.attempt = None;
                continue;
            }
            let failures = match &version.attempt {
                Some(Attempt { stage: Stage::Loading, .. }) => continue,
                Some(Attempt { mark, failures, stage: Stage::Failed { again_ms, .. } }) if *mark == found.mark => {
                    if now_ms < *again_ms {
                        continue;
                    }
                    *failures
                }
                _ => 0,
            };
            version.attempt = Some(Attempt { mark: found.mark, failures, stage: Stage::Loading });
            loads.push((number, found.clone()));
        }
        loads
    }

    /// What is not wanted goes, but for what stands in for a wanted one that does not answer. `before`: what answered.
    fn retire(&mut self, keep: usize, before: &Shown) {
        let tried = self.tried(keep);
        let stand_ins = if self.is_off { BTreeSet::new() } else { self.stand_ins(before) };
        self.versions.retain(|number, _| tried.contains(number) || stand_ins.contains(number));
    }

    /// The newest that answers, each label's old version, and who answers who names none. No others: one damaged version
    /// with a label would keep all that come after it in memory.
    fn stand_ins(&self, before: &Shown) -> BTreeSet<u64> {
        let answers = |number: &u64| self.versions.get(number).is_some_and(|version| version.live.is_some());
        let mut stand_ins = BTreeSet::new();
        let newest_answers = self.found.keys().next_back().is_some_and(answers);
        if !newest_answers {
            stand_ins.extend(self.versions.keys().copied().rfind(answers));
        }
        let waits = |(_, wanted): &(&String, &u64)| self.found.contains_key(wanted) && !answers(wanted);
        let waiting = self.labels.iter().filter(waits);
        stand_ins.extend(waiting.filter_map(|(label, _)| before.labels.get(label).copied().filter(answers)));
        // A label that leads nowhere is somebody's mistake: who answered for it stays.
        if let Some(labelled) = self.labels.get(LIVE_LABEL).filter(|labelled| !answers(labelled)) {
            let is_there = |old: &u64| self.found.contains_key(old) || self.found.contains_key(labelled);
            stand_ins.extend(before.default.filter(|old| answers(old) && is_there(old)));
        }
        stand_ins
    }

    /// A label goes on to its new version when that answers, and stays at the old one until then.
    fn shown(&self, before: &Shown) -> Shown {
        let live = |number: &u64| self.versions.get(number).is_some_and(|version| version.live.is_some());
        let versions: BTreeSet<u64> = self.versions.keys().copied().filter(live).collect();
        let target = |(label, wanted): (&String, &u64)| {
            let old = before.labels.get(label).filter(|old| live(old) && !live(wanted));
            (label.clone(), *old.unwrap_or(wanted))
        };
        let labels: BTreeMap<String, u64> = self.labels.iter().map(target).collect();
        let newest = versions.last().copied();
        // Which version is meant is not known.
        if let (Some(why), false, false) = (&self.bad_labels, self.has_labels, self.is_off) {
            return Shown { versions, labels, default: None, unready: Some(why.clone()) };
        }
        let default = match labels.get(LIVE_LABEL) {
            None => newest,
            Some(labelled) if live(labelled) => Some(*labelled),
            Some(labelled) => match before.default.filter(live) {
                Some(old) => Some(old),
                // At the start another one is not quickly taken for it.
                None if self.is_first_load(*labelled) => None,
                None => newest,
            },
        };
        let unready = default.is_none().then(|| match labels.get(LIVE_LABEL) {
            Some(labelled) if newest.is_some() => format!("version {labelled}, named '{LIVE_LABEL}', is being loaded"),
            _ => self.why_nothing(),
        });
        Shown { versions, labels, default, unready }
    }

    fn is_first_load(&self, number: u64) -> bool {
        let attempt = self.versions.get(&number).and_then(|version| version.attempt.as_ref());
        matches!(attempt, Some(Attempt { failures: 0, stage: Stage::Loading, .. }))
    }

    /// Labels whose version is not there or cannot be loaded, and what answers meanwhile.
    fn labels_amiss(&self, shown: &Shown) -> Vec<String> {
        let mut amiss = Vec::new();
        for (label, wanted) in self.labels.iter().filter(|(_, wanted)| !self.is_off && !shown.versions.contains(wanted))
        {
            let what = match self.versions.get(wanted) {
                None => "is not there",
                // Also while it is tried again.
                Some(version) if version.attempt.as_ref().is_some_and(|attempt| attempt.failures > 0) => {
                    "cannot be loaded"
                }
                Some(_) => continue,
            };
            let named = shown.labels.get(label).filter(|other| shown.versions.contains(other));
            let meanwhile = match (named, shown.default.filter(|_| label == LIVE_LABEL)) {
                (Some(other), _) => format!("version {other} goes on answering"),
                (None, Some(other)) => format!("version {other} answers who names none"),
                (None, None) => "nothing answers to it".into(),
            };
            amiss.push(format!("label '{label}' names version {wanted}, which {what}; {meanwhile}"));
        }
        amiss
    }

    fn why_nothing(&self) -> String {
        if self.is_off {
            return "it was unloaded".into();
        }
        let reason = self
            .versions
            .iter()
            .rev()
            .find_map(|(number, version)| version.reason().map(|reason| format!("version {number}: {reason}")));
        match (reason, self.is_loading()) {
            (Some(reason), _) => reason,
            (None, true) => "it is being loaded".into(),
            (None, false) => "there is no whole bundle of it".into(),
        }
    }

    fn is_loading(&self) -> bool {
        let loading = |version: &Version| matches!(&version.attempt, Some(Attempt { stage: Stage::Loading, .. }));
        self.versions.values().any(loading)
    }
}

impl Version {
    fn reason(&self) -> Option<&str> {
        match &self.attempt {
            Some(Attempt { stage: Stage::Failed { reason, .. }, .. }) => Some(reason),
            _ => None,
        }
    }

    fn try_now(&mut self) {
        if let Some(Attempt { stage: Stage::Failed { again_ms, .. }, .. }) = &mut self.attempt {
            *again_ms = 0;
        }
    }
}

/// 1 s, doubling up to 60 s.
fn backoff_ms(failures: u32) -> u64 {
    (1_000u64 << failures.saturating_sub(1).min(6)).min(60_000)
}

#[cfg(test)]
mod tests;
