//! The directory of models: what lies there, what is loaded of it, and the swap from one version to the next.
//!
//! [`scan`] looks, [`machine`] decides (pure), this file carries out: it loads and warms a version aside, one at a time,
//! and only then puts it into the table that requests look into. A version that is taken out of the table answers
//! what it was asked and is gone when its last request has its answer. Of a registry in a bucket the directory is a copy
//! that [`mirror`] keeps.

pub mod machine;
pub mod mirror;
pub mod scan;

use crate::bundled;
use crate::clock::now_us;
use crate::model::{Model, Takes};
use crate::quiet;
use crate::refusal::{Refusal, quote};
use crate::server::raised;
use crate::serving::{Entry, Hands, Left, Loaded, Table};
use crate::state::{Shared, View};
use machine::{Effect, Event, Load, Machine};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

/// The way of requests to the repository.
#[derive(Clone)]
pub struct Orders(mpsc::Sender<Order>);

enum Order {
    Load(String, oneshot::Sender<Result<(), Refusal>>),
    Unload(String, oneshot::Sender<Result<(), Refusal>>),
}

const ORDERS_MAX: usize = 32;

impl Orders {
    pub fn new() -> (Orders, Inbox) {
        let (sender, inbox) = mpsc::channel(ORDERS_MAX);
        (Orders(sender), Inbox(inbox))
    }

    pub async fn load(&self, name: &str) -> Result<(), Refusal> {
        self.give(|reply| Order::Load(name.to_string(), reply)).await
    }

    pub async fn unload(&self, name: &str) -> Result<(), Refusal> {
        self.give(|reply| Order::Unload(name.to_string(), reply)).await
    }

    async fn give(&self, order: impl FnOnce(oneshot::Sender<Result<(), Refusal>>) -> Order) -> Result<(), Refusal> {
        let (reply, answer) = oneshot::channel();
        let full = |_| Refusal::Full { what: "too many orders wait for the repository".into(), retry_after_s: 1 };
        self.0.try_send(order(reply)).map_err(full)?;
        answer.await.unwrap_or_else(|_| Err(Refusal::Unready("the server is ending".into())))
    }
}

/// Where orders arrive.
pub struct Inbox(mpsc::Receiver<Order>);

/// Opens a version's files. Tests have another one.
pub type Open = Arc<dyn Fn(&Path) -> Result<Arc<dyn Model>, String> + Send + Sync>;

/// That of bundles.
pub fn bundles() -> Open {
    Arc::new(bundled::open)
}

pub(crate) struct Repository {
    shared: Arc<Shared>,
    open: Open,
    machine: Machine,
    live: BTreeMap<(String, u64), Arc<Loaded>>,
    loads: VecDeque<Load>,
    loading: bool,
    done: mpsc::Sender<Done>,
    asked: Vec<(String, oneshot::Sender<Result<(), Refusal>>)>,
    /// Labels that do not lead to their version, as they were last told.
    amiss: BTreeSet<(String, String)>,
    /// Labels that cannot be read, as they were last told.
    bad_labels: BTreeSet<(String, String)>,
    view: View,
}

/// A load that ended.
struct Done {
    load: Load,
    result: Result<Loaded, String>,
}

/// Runs until `end` says so. Settled and unsettled is told in the shared view.
pub(crate) async fn run(shared: Arc<Shared>, open: Open, inbox: Inbox, mut end: watch::Receiver<bool>) {
    let Inbox(mut inbox) = inbox;
    let (done, mut results) = mpsc::channel(1);
    let machine = Machine::new(shared.config.keep);
    let mut repository = Repository {
        shared,
        open,
        machine,
        live: BTreeMap::new(),
        loads: VecDeque::new(),
        loading: false,
        done,
        asked: Vec::new(),
        amiss: BTreeSet::new(),
        bad_labels: BTreeSet::new(),
        view: View::default(),
    };
    let mirror = repository.shared.config.mirror.clone();
    let mut passes = mirror.as_ref().map(|mirror| mirror.passes());
    // A copy is looked at when it has changed.
    let poll = repository.shared.config.poll.filter(|_| mirror.is_none());
    if mirror.is_none() {
        repository.look().await;
    }
    let mut ticks = tokio::time::interval(poll.unwrap_or(RETRY_TICK));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    loop {
        tokio::select! {
            _ = raised(&mut end) => return,
            Some(done) = results.recv() => repository.loaded(done),
            order = inbox.recv() => match order {
                Some(order) => repository.order(order).await,
                None => return,
            },
            () = passed(&mut passes) => repository.look().await,
            _ = ticks.tick() => match poll {
                Some(_) => repository.look().await,
                None => repository.step(Event::Tick),
            },
        }
    }
}

/// The mirror has something; never without one.
async fn passed(passes: &mut Option<watch::Receiver<u64>>) {
    let is_told = match passes {
        Some(passes) => passes.changed().await.is_ok(),
        None => false,
    };
    if !is_told {
        std::future::pending::<()>().await;
    }
}

const RETRY_TICK: Duration = Duration::from_secs(1);

impl Repository {
    async fn look(&mut self) {
        let root = self.shared.config.models.clone();
        let mirror = self.shared.config.mirror.clone();
        let scan = move || match mirror {
            Some(mirror) => mirror.scan(scan::scan),
            None => scan::scan(&root),
        };
        match tokio::task::spawn_blocking(scan).await {
            Ok(Ok(found)) => self.step(Event::Found(found)),
            // What is loaded goes on answering while its files cannot be seen.
            Ok(Err(why)) => {
                warn!(%why, "the models cannot be looked at");
                self.step(Event::Tick);
            }
            Err(error) => warn!(%error, "the models cannot be looked at"),
        }
    }

    async fn order(&mut self, order: Order) {
        match order {
            Order::Load(name, reply) => {
                self.look().await;
                if !self.machine.knows(&name) {
                    let unknown = format!("there is no model '{}' in the repository", quote(&name));
                    let _ = reply.send(Err(Refusal::NotFound(unknown)));
                    return;
                }
                self.asked.push((name.clone(), reply));
                self.step(Event::On(name));
            }
            Order::Unload(name, reply) => {
                let known = self.machine.knows(&name);
                self.step(Event::Off(name.clone()));
                let unknown = || Refusal::NotFound(format!("there is no model '{}' in the repository", quote(&name)));
                let _ = reply.send(if known { Ok(()) } else { Err(unknown()) });
            }
        }
    }

    fn loaded(&mut self, Done { load, result }: Done) {
        self.loading = false;
        let key = (load.name.clone(), load.version);
        match result {
            Ok(_) if !self.machine.expects(&load) => self.step(Event::Tick),
            Ok(loaded) => {
                self.view.loads += 1;
                info!(model = %load.name, version = load.version, "a version is loaded and warm");
                self.live.insert(key, Arc::new(loaded));
                self.step(Event::Loaded(load));
            }
            Err(why) => {
                self.view.failures += 1;
                warn!(model = %load.name, version = load.version, %why, "a version cannot be loaded");
                self.step(Event::Failed(load, why));
            }
        }
    }

    fn step(&mut self, event: Event) {
        let now_ms = now_us() / 1000;
        for effect in self.machine.step(now_ms, event) {
            match effect {
                Effect::Load(load) => self.loads.push_back(load),
                Effect::Show => self.show(),
            }
        }
        self.start_load();
        self.view.index = self.machine.index();
        self.view.settled |= self.machine.has_settled();
        *self.shared.view.lock().unwrap_or_else(PoisonError::into_inner) = self.view.clone();
        for (name, reply) in std::mem::take(&mut self.asked) {
            match self.machine.outcome(&name) {
                None => self.asked.push((name, reply)),
                Some(Ok(())) => drop(reply.send(Ok(()))),
                Some(Err(why)) => {
                    let why = format!("load model '{name}': {why}");
                    let _ = reply.send(Err(Refusal::Invalid(why)));
                }
            }
        }
    }

    /// The table that requests look into becomes what the machine says.
    fn show(&mut self) {
        let shown = self.machine.shown();
        let is_shown =
            |(name, version): &(String, u64)| shown.get(name).is_some_and(|model| model.versions.contains(version));
        self.live.retain(|key, loaded| {
            let stays = is_shown(key);
            if !stays {
                info!(model = %loaded.name, version = loaded.version, "a version answers no new requests");
            }
            stays
        });
        let mut table = Table::default();
        for (name, model) in shown {
            let live = |version: &u64| self.live.get(&(name.clone(), *version)).map(|l| (*version, l.clone()));
            let versions = model.versions.iter().filter_map(live).collect();
            let (labels, default, unready) = (model.labels, model.default, model.unready);
            table.models.insert(name, Entry { versions, labels, default, unready });
        }
        let before = self.shared.serving.table();
        for (name, entry) in &table.models {
            if let Some(version) = entry.default
                && before.models.get(name).and_then(|entry| entry.default) != Some(version)
            {
                info!(model = %name, version, "this version answers who names none");
            }
        }
        self.shared.serving.replace(table);
        let amiss = self.machine.labels_amiss();
        for (model, why) in amiss.difference(&self.amiss) {
            warn!(%model, %why, "a label does not lead to its version");
        }
        self.amiss = amiss;
        let bad = self.machine.bad_labels();
        for (model, why) in bad.difference(&self.bad_labels) {
            warn!(%model, %why, "the labels cannot be read; what they said before holds");
        }
        self.bad_labels = bad;
    }

    /// One at a time: a load competes with requests for the processor.
    fn start_load(&mut self) {
        if self.loading {
            return;
        }
        let Some(load) = self.loads.pop_front() else { return };
        self.loading = true;
        let (open, done) = (self.open.clone(), self.done.clone());
        let policy = self.shared.config.policy;
        // While nobody answers there is nobody to stand behind.
        let hands = Hands { behind: !self.live.is_empty(), ..self.shared.config.hands };
        let text = self.shared.config.text;
        let mirror = self.shared.config.mirror.as_ref();
        let refused = mirror.and_then(|mirror| mirror.refusal(&load.name, load.version, load.mark));
        tokio::task::spawn_blocking(move || {
            let (name, version) = (load.name.clone(), load.version);
            let left = Left(Box::new(move || info!(model = %name, version, "a version has answered its last request")));
            let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let model = refused.map_or_else(|| quiet::run(hands.behind, || open(&load.dir)), Err)?;
                let loaded = Loaded::start(&load.name, load.version, model, policy, hands, Some(left))?;
                let loaded = loaded.with_text(text, hands);
                if let (Takes::Tokens { .. }, Err(why)) = (&loaded.face().takes, loaded.text()) {
                    info!(model = %load.name, version = load.version, %why, "texts are not continued");
                }
                Ok(loaded)
            }));
            let result = caught.unwrap_or_else(|_| Err("the load panicked".into()));
            // The receiver is gone when the server ends.
            let _ = done.blocking_send(Done { load, result });
        });
    }
}
