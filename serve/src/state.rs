//! What all parts of a server share: its phase, what answers, the counters, and the way to the repository.

use crate::config::Config;
use crate::http::body::Budget;
use crate::refusal::Refusal;
use crate::repository::Orders;
use crate::serving::{Loaded, Serving, Which};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

pub struct Shared {
    pub config: Config,
    pub serving: Serving,
    pub bodies: Arc<Budget>,
    pub answers: Answers,
    phase: AtomicU8,
    pub(crate) open: AtomicUsize,
    pub(crate) orders: Orders,
    pub(crate) view: Mutex<View>,
}

/// What the repository last said of itself.
#[derive(Clone, Debug, Default)]
pub struct View {
    pub index: Vec<IndexRow>,
    pub loads: u64,
    pub failures: u64,
    /// Every version that was there at the start has been loaded or refused.
    pub settled: bool,
}

/// A version of a model, in the words of the model repository extension.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexRow {
    pub name: String,
    pub version: String,
    pub state: &'static str,
    pub reason: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Serving,
    /// Readiness says no; requests are still answered.
    Draining,
}

impl Shared {
    pub(crate) fn new(config: Config, orders: Orders) -> Shared {
        Shared {
            config,
            serving: Serving::default(),
            bodies: Arc::default(),
            answers: Answers::default(),
            phase: AtomicU8::new(0),
            open: AtomicUsize::new(0),
            orders,
            view: Mutex::default(),
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Relaxed) {
            0 => Phase::Serving,
            _ => Phase::Draining,
        }
    }

    pub(crate) fn drain(&self) {
        self.phase.store(1, Relaxed);
    }

    /// Can it answer? If not, why.
    pub fn readiness(&self) -> Result<(), String> {
        if self.phase() == Phase::Draining {
            return Err("the server is draining".into());
        }
        let settled = self.view.lock().unwrap_or_else(PoisonError::into_inner).settled;
        if !settled {
            let away = self.config.mirror.as_ref().and_then(|mirror| mirror.status().away);
            return Err(away.unwrap_or_else(|| "models are being loaded".into()));
        }
        match self.serving.table().models.values().any(|entry| entry.default_version().is_some()) {
            true => Ok(()),
            false => Err("no model is loaded".into()),
        }
    }

    pub fn find(&self, name: &str, which: &Which) -> Result<Arc<Loaded>, Refusal> {
        self.serving.find(name, which)
    }

    pub fn index(&self) -> Vec<IndexRow> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).index.clone()
    }

    /// Versions loaded, and loads that came to nothing.
    pub fn loads(&self) -> (u64, u64) {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        (view.loads, view.failures)
    }

    pub fn connections(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Looks for the model's newest files now, and returns when they answer or are refused.
    pub async fn load(&self, name: &str) -> Result<(), Refusal> {
        if let Some(mirror) = &self.config.mirror {
            let went = tokio::time::timeout(self.config.timeout, mirror.pass()).await;
            let went = went.unwrap_or_else(|_| Err(format!("{} has not been looked at in time", mirror.address())));
            went.map_err(Refusal::Unready)?;
        }
        self.orders.load(name).await
    }

    pub async fn unload(&self, name: &str) -> Result<(), Refusal> {
        self.orders.unload(name).await
    }
}

/// Answers by status.
#[derive(Debug, Default)]
pub struct Answers {
    ok: AtomicU64,
    others: Mutex<BTreeMap<u16, u64>>,
}

impl Answers {
    pub fn count(&self, status: u16) {
        match status {
            200 => drop(self.ok.fetch_add(1, Relaxed)),
            status => *self.others.lock().unwrap_or_else(PoisonError::into_inner).entry(status).or_default() += 1,
        }
    }

    pub fn counts(&self) -> Vec<(u16, u64)> {
        let mut counts = vec![(200, self.ok.load(Relaxed))];
        counts.extend(self.others.lock().unwrap_or_else(PoisonError::into_inner).iter().map(|(s, n)| (*s, *n)));
        counts
    }
}
