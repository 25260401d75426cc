//! What answers now: each version of each model that is loaded, and who gets a request that names it.
//!
//! The table is replaced whole when something changes; a request keeps what it found until it has its answer.

use crate::batching::Policy;
use crate::batching::crew::{By, Crew, Done};
use crate::clock::{now_us, thread_us};
use crate::limits::TIMEOUT_MAX;
use crate::model::{Face, Model, Predict};
use crate::quiet;
use crate::refusal::{Refusal, quote};
use crate::stats::Stats;
use crate::tensor::Rows;
use crate::text;
use crate::text::scribe::Scribe;
use elastic_tensor::backend;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// One version of a model, loaded, warm and with threads that compute it.
pub struct Loaded {
    pub name: Arc<str>,
    pub version: u64,
    pub model: Arc<dyn Model>,
    pub stats: Arc<Stats>,
    pub policy: Policy,
    crew: Crew,
    /// What continues texts, or why nothing does.
    text: Result<Scribe, String>,
    /// Told when the last request that used it is answered.
    _left: Option<Left>,
}

/// Calls its function when it is dropped.
pub struct Left(pub Box<dyn Fn() + Send + Sync>);

impl Drop for Left {
    fn drop(&mut self) {
        (self.0)();
    }
}

/// How a version is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hands {
    /// Predictors of one version, each with a thread that feeds it …
    pub instances: usize,
    /// … and threads that one of them computes on.
    pub threads: usize,
    /// It stands behind those who answer meanwhile.
    pub behind: bool,
}

impl Loaded {
    /// Makes the predictors, warms each with a smallest and full batches, and starts the threads.
    pub fn start(
        name: &str,
        version: u64,
        model: Arc<dyn Model>,
        policy: Policy,
        hands: Hands,
        left: Option<Left>,
    ) -> Result<Loaded, String> {
        let mut predictors = Vec::new();
        let mut full_us = u64::MAX;
        for _ in 0..hands.instances.max(1) {
            let mut predictor = model.predictor(hands.threads.max(1))?;
            // What it has threads for, it has as those have who answer.
            let clock = if hands.threads > 1 || backend::is_taken() { now_us } else { thread_us };
            let warm = || warm(model.face(), predictor.as_mut(), policy.rows_max, clock);
            full_us = full_us.min(quiet::run(hands.behind, warm)?);
            predictors.push(predictor);
        }
        let by = match Duration::from_micros(full_us) < policy.quick && policy.delay.is_zero() {
            true => By::Readers,
            false => By::Threads,
        };
        let stats = Arc::new(Stats::default());
        let crew = Crew::start(model.clone(), predictors, policy, by, stats.clone())
            .map_err(|error| format!("start a thread to compute on: {error}"))?;
        Ok(Loaded {
            name: name.into(),
            version,
            model,
            stats,
            policy,
            crew,
            text: Err("it was loaded without".into()),
            _left: left,
        })
    }

    /// With what continues texts, where it can be: other requests are answered in any case.
    pub fn with_text(mut self, policy: text::Policy, hands: Hands) -> Loaded {
        let start = AssertUnwindSafe(|| Scribe::start(self.model.clone(), policy, hands));
        self.text = catch_unwind(start).unwrap_or_else(|_| Err("what continues them panicked as it was made".into()));
        self
    }

    pub fn text(&self) -> Result<&Scribe, &str> {
        self.text.as_ref().map_err(String::as_str)
    }

    pub fn face(&self) -> &Face {
        self.model.face()
    }

    /// Checks the rows and waits for their logits.
    pub async fn infer(&self, rows: Rows, deadline_us: u64) -> Result<Done, Refusal> {
        self.model.check(&rows).map_err(Refusal::Invalid)?;
        self.crew.infer(rows, deadline_us).await
    }
}

/// A smallest and some full batches. Gives how long one of those takes, in µs of the clock; a part of a large one tells. The
/// shortest of some: the first are slower, and in the middle of one this thread may lose the processor.
fn warm(face: &Face, predictor: &mut dyn Predict, rows_max: usize, clock: fn() -> u64) -> Result<u64, String> {
    predictor.logits(&warm_rows(face, 1))?;
    let rows = warm_rows(face, rows_max.min(WARM_ROWS_MAX));
    let mut shortest_us = u64::MAX;
    for _ in 0..FULL_BATCHES {
        let start_us = clock();
        predictor.logits(&rows)?;
        shortest_us = shortest_us.min(clock() - start_us);
    }
    Ok(shortest_us * rows_max.div_ceil(rows.count()) as u64)
}

const FULL_BATCHES: usize = 3;

fn warm_rows(face: &Face, count: usize) -> Rows {
    match &face.takes {
        crate::model::Takes::Features { .. } => Rows::Features { count, values: vec![0.0; count * face.width()] },
        // One row of tokens is as large as a full batch of another model.
        crate::model::Takes::Tokens { .. } => Rows::Tokens { count: 1, length: 1, ids: vec![0] },
    }
}

/// A warm-up is not worth more than so many rows.
const WARM_ROWS_MAX: usize = 64;

/// Counts a request once, whatever becomes of it: answered, refused, or dropped with its connection.
pub struct Counted {
    stats: Arc<Stats>,
    start_us: u64,
    open: bool,
}

impl Counted {
    pub fn new(loaded: &Loaded, start_us: u64) -> Counted {
        Counted { stats: loaded.stats.clone(), start_us, open: true }
    }

    pub fn answered(mut self, done: &crate::batching::crew::Times) {
        self.open = false;
        self.stats.answered(now_us() - self.start_us, done);
    }

    pub fn refused(mut self, refusal: Refusal) -> Refusal {
        self.open = false;
        self.stats.refused(now_us() - self.start_us, &refusal);
        refusal
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if self.open {
            self.stats.refused(now_us() - self.start_us, &Refusal::Cancelled);
        }
    }
}

/// Which version a request names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// None: the one with the label `live` where the model has that, else the newest.
    Default,
    Version(u64),
    Label(String),
}

impl Which {
    /// A version in a path or message; empty names none.
    pub fn parse(text: &str) -> Result<Which, Refusal> {
        match text {
            "" => Ok(Which::Default),
            text => text
                .parse()
                .map(Which::Version)
                .map_err(|_| Refusal::Invalid(format!("version '{}' is not a whole number", quote(text)))),
        }
    }
}

/// One model as requests find it.
#[derive(Clone, Default)]
pub struct Entry {
    pub versions: BTreeMap<u64, Arc<Loaded>>,
    pub labels: BTreeMap<String, u64>,
    /// Which of them answers who names none.
    pub default: Option<u64>,
    /// What is answered where none does.
    pub unready: Option<String>,
}

impl Entry {
    pub fn default_version(&self) -> Option<&Arc<Loaded>> {
        self.versions.get(&self.default?)
    }
}

#[derive(Clone, Default)]
pub struct Table {
    pub models: BTreeMap<String, Entry>,
}

impl Table {
    pub fn find(&self, name: &str, which: &Which) -> Result<&Arc<Loaded>, Refusal> {
        let Some(entry) = self.models.get(name) else {
            return Err(Refusal::NotFound(format!("unknown model '{}'", quote(name))));
        };
        let unready = || {
            let why = entry.unready.as_deref().unwrap_or("no version is loaded");
            Refusal::Unready(format!("model '{name}' is not ready: {why}"))
        };
        match which {
            Which::Default => entry.default_version().ok_or_else(unready),
            _ if entry.versions.is_empty() => Err(unready()),
            Which::Version(version) => entry
                .versions
                .get(version)
                .ok_or_else(|| Refusal::NotFound(format!("unknown version {version} of model '{name}'"))),
            Which::Label(label) => {
                let version = entry
                    .labels
                    .get(label)
                    .ok_or_else(|| Refusal::NotFound(format!("unknown label '{}' of model '{name}'", quote(label))))?;
                entry.versions.get(version).ok_or_else(|| {
                    Refusal::Unready(format!("version {version} of model '{name}', named '{label}', is not loaded"))
                })
            }
        }
    }
}

/// The table in force.
#[derive(Default)]
pub struct Serving {
    table: RwLock<Arc<Table>>,
}

impl Serving {
    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn replace(&self, table: Table) {
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    pub fn find(&self, name: &str, which: &Which) -> Result<Arc<Loaded>, Refusal> {
        self.table().find(name, which).cloned()
    }
}

/// When a request that asks for so much time, or for none, is late.
pub fn deadline_us(now_us: u64, asked: Option<Duration>, usual: Duration) -> u64 {
    now_us + asked.unwrap_or(usual).min(TIMEOUT_MAX).as_micros() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Held, echo};

    fn table() -> Table {
        let load = |version| {
            let hands = Hands { instances: 1, threads: 1, behind: false };
            Arc::new(Loaded::start("m", version, echo(2, &Held::new()), Policy::default(), hands, None).unwrap())
        };
        let versions = [3, 12].map(|version| (version, load(version))).into();
        let labels = [("stable".to_string(), 3), ("next".to_string(), 13)].into();
        let entry = Entry { versions, labels, default: Some(12), unready: None };
        let rolled_back = Entry { default: Some(3), ..entry.clone() };
        let loading = Entry { default: None, unready: Some("version 13 is being loaded".into()), ..entry.clone() };
        let empty = Entry { unready: Some("the bundle is damaged".into()), ..Entry::default() };
        let models = [("m", entry), ("back", rolled_back), ("soon", loading), ("bad", empty)];
        Table { models: models.map(|(name, entry)| (name.to_string(), entry)).into() }
    }

    fn found(name: &str, which: Which) -> Result<u64, u16> {
        table().find(name, &which).map(|loaded| loaded.version).map_err(|refusal| refusal.status())
    }

    #[test]
    fn a_request_gets_the_default_version_or_the_one_that_it_names() {
        assert_eq!(found("m", Which::Default), Ok(12));
        assert_eq!(found("back", Which::Default), Ok(3));
        assert_eq!(found("back", Which::Version(12)), Ok(12));
        assert_eq!(found("m", Which::Version(3)), Ok(3));
        assert_eq!(found("m", Which::Label("stable".into())), Ok(3));
    }

    #[test]
    fn what_is_unknown_is_not_found_and_what_is_not_loaded_is_unready() {
        assert_eq!(found("x", Which::Default), Err(404));
        assert_eq!(found("m", Which::Version(4)), Err(404));
        assert_eq!(found("m", Which::Label("x".into())), Err(404));
        assert_eq!(found("m", Which::Label("next".into())), Err(503));
        assert_eq!(found("bad", Which::Default), Err(503));
        assert_eq!((found("soon", Which::Default), found("soon", Which::Version(12))), (Err(503), Ok(12)));
        assert_eq!(found("bad", Which::Version(1)), Err(503));
    }
}
