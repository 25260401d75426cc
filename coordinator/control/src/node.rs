//! What is known of a node, and what it was told.

use crate::event::Config;
use crate::time::Millis;
use elastic_spec::facts::{NodeReport, Process, SlotWant, WorkerReport};
use elastic_spec::{Epoch, JobId, NodeId, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub id: NodeId,
    pub incarnation: u64,
    /// The agent before this one: what still comes from it is of no more account.
    pub former: Option<u64>,
    pub host: String,
    pub slots: u16,
    pub heard: Millis,
    /// Its stream is broken.
    pub is_cut: bool,
    pub is_silent: bool,
    pub drain: Drain,
    pub strikes: Strikes,
    pub numerics: Option<u64>,
    /// Processes that run there, as last reported.
    pub running: BTreeMap<(JobId, u16), WorkerId>,
    /// Ends that it waits to have acknowledged.
    pub ended: BTreeSet<WorkerId>,
    pub told: Option<Told>,
    pub revision: u64,
    pub confirmed: Epoch,
    pub is_changed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    No,
    /// The agent itself says so, for as long as it says so.
    Agent,
    /// A person said so: until the agent is started again.
    Operator {
        incarnation: u64,
    },
}

/// Restarts that the node gave cause for, lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Strikes {
    pub count: u32,
    pub last_unix_ms: u64,
}

/// The last order, in short: enough to see whether the next one differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    pub jobs: Vec<(JobId, Option<Epoch>, Vec<SlotWant>)>,
    pub acknowledged: BTreeSet<WorkerId>,
    pub at: Millis,
}

impl Node {
    pub fn new(id: NodeId) -> Node {
        Node {
            id,
            incarnation: 0,
            former: None,
            host: String::new(),
            slots: 0,
            heard: Millis(0),
            is_cut: false,
            is_silent: true,
            drain: Drain::No,
            strikes: Strikes::default(),
            numerics: None,
            running: BTreeMap::new(),
            ended: BTreeSet::new(),
            told: None,
            revision: 0,
            confirmed: Epoch::default(),
            is_changed: false,
        }
    }

    /// Whether it was heard at all since this leader began.
    pub fn is_known(&self) -> bool {
        self.incarnation != 0
    }

    pub fn is_draining(&self) -> bool {
        self.drain != Drain::No
    }

    pub fn is_usable(&self) -> bool {
        self.is_known() && !self.is_silent && !self.is_draining()
    }

    /// Takes in what a report says of the node itself.
    pub fn observe(&mut self, now: Millis, report: &NodeReport) {
        self.incarnation = report.incarnation;
        self.host.clone_from(&report.host);
        self.slots = report.slots;
        self.heard = now;
        self.is_cut = false;
        self.confirmed = report.seen;
        self.drain = match self.drain {
            Drain::Operator { incarnation } if incarnation == report.incarnation => self.drain,
            _ if report.draining => Drain::Agent,
            _ => Drain::No,
        };
        self.running.clear();
        self.ended.clear();
        for worker in &report.workers {
            self.observe_worker(worker);
        }
    }

    fn observe_worker(&mut self, report: &WorkerReport) {
        let status = match &report.process {
            Process::Running { status, .. } => {
                self.running.insert((report.job.clone(), report.slot), report.worker);
                status
            }
            Process::Exited { status, .. } => {
                self.ended.insert(report.worker);
                status
            }
        };
        self.numerics = status.as_ref().filter(|s| s.numerics != 0).map(|s| s.numerics).or(self.numerics);
    }

    /// Strikes that still count.
    pub fn strikes(&self, unix_ms: u64, config: &Config) -> u32 {
        let age = unix_ms.saturating_sub(self.strikes.last_unix_ms);
        if age > config.strikes_ms { 0 } else { self.strikes.count }
    }

    pub fn strike(&mut self, unix_ms: u64, config: &Config) {
        self.strikes = Strikes { count: self.strikes(unix_ms, config) + 1, last_unix_ms: unix_ms };
        self.is_changed = true;
    }
}
