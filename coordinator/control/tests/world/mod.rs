//! A small cluster around the machine: agents that obey, workers that train in step, a clock, a store.
//!
//! Only what the control plane sees of them is played. Links are perfect unless a test breaks them; the
//! protocol between members has its own simulator. Each step checks what must always hold.
#![allow(dead_code, reason = "each test program uses its own part")]

mod cluster;
mod invariants;

pub use cluster::*;

use elastic_control::{Config, Effects, Event, Machine, Millis, Record, Reply, RequestId};
use elastic_spec::job::{ParseContext, parse};
use elastic_spec::{JobId, NodeId, Term, api};
use invariants::Invariants;
use std::collections::BTreeMap;

pub struct World {
    pub now: u64,
    pub term: u64,
    /// None: the coordinator is away or stands still.
    pub machine: Option<Machine>,
    /// The coordinator's process is stopped: it is there, and takes nothing in.
    pub is_stopped: bool,
    pub store: BTreeMap<String, Vec<u8>>,
    pub cluster: Cluster,
    pub trace: Vec<String>,
    invariants: Invariants,
    requests: u64,
}

/// Steps of the world's clock, in ms.
const TICK: u64 = 5;

impl World {
    pub fn new() -> World {
        let mut world = World {
            now: 0,
            term: 0,
            machine: None,
            is_stopped: false,
            store: BTreeMap::new(),
            cluster: Cluster::default(),
            trace: Vec::new(),
            invariants: Invariants::default(),
            requests: 0,
        };
        world.lead();
        world
    }

    /// A leader with the next term reads the store.
    pub fn lead(&mut self) {
        self.term += 1;
        let records = self.store.iter().map(|(k, v)| Record { key: k.clone(), value: Some(v.clone()) });
        let (machine, mistakes) = Machine::new(Term(self.term), Millis(self.now), records.collect(), Config::default());
        self.say(format!("leader of term {}", self.term));
        mistakes.iter().for_each(|m| self.say(m.clone()));
        self.machine = Some(machine);
        self.is_stopped = false;
        self.cluster.reconnect_all();
    }

    pub fn run(&mut self, ms: u64) {
        let end = self.now + ms;
        while self.now < end {
            self.now += TICK;
            self.cluster.advance(self.now);
            if self.is_stopped {
                continue;
            }
            for report in self.cluster.reports(self.now) {
                self.step(Event::Report(report, unix(self.now)));
            }
            let is_due = self.machine.as_ref().and_then(|m| m.next_deadline()).is_some_and(|at| at.0 <= self.now);
            if is_due {
                self.step(Event::Tick);
            }
        }
    }

    pub fn step(&mut self, event: Event) {
        let Some(machine) = &mut self.machine else { return };
        let reported = match &event {
            Event::Report(report, _) => Some(report.clone()),
            _ => None,
        };
        let effects = machine.step(Millis(self.now), event);
        self.invariants.check(reported.as_ref(), &effects);
        self.carry_out(effects);
    }

    fn carry_out(&mut self, effects: Effects) {
        effects.notes.iter().for_each(|note| self.say(note.to_string()));
        for record in effects.persist {
            let deleted = if record.value.is_none() { " deleted" } else { "" };
            self.say(format!("  stored {}{deleted}", record.key));
            match record.value {
                Some(value) => self.store.insert(record.key, value),
                None => self.store.remove(&record.key),
            };
        }
        for (node, want) in effects.then_send {
            self.cluster.receive(&node, want, self.now);
        }
        for (_, reply) in effects.then_reply {
            match reply {
                Reply::Refused(why) => self.say(format!("refused: {why}")),
                Reply::Submitted { .. } | Reply::Done => {}
            }
        }
        if effects.stand_down.is_some() {
            self.machine = None;
        }
    }

    pub fn say(&mut self, line: String) {
        self.trace.push(format!("{:>6} {line}", self.now));
    }

    pub fn submit(&mut self, name: &str, options: &Options) {
        let toml = options.job_file(name);
        let spec = parse(&toml, &ParseContext::default()).unwrap_or_else(|e| panic!("{toml}\n{e:?}")).spec;
        self.cluster.describe_job(&job(name), &spec);
        let submit = api::Submit { spec_json: spec.canonical_json(), blobs: Vec::new(), resume: None };
        let request = self.request();
        let run_dir = options.0.get("dir").map_or(format!("/runs/{name}"), |d| d.clone());
        let (secret, unix_ms) = (vec![7; 32], unix(self.now));
        self.step(Event::Submit { request, submit, job: job(name), secret, run_dir, unix_ms });
    }

    pub fn scale(&mut self, name: &str, min: u16, max: u16) {
        let request = self.request();
        self.step(Event::Scale { request, job: job(name), min, max });
    }

    pub fn drain(&mut self, name: &str) {
        let request = self.request();
        self.step(Event::Drain { request, node: node(name) });
    }

    pub fn cancel(&mut self, name: &str) {
        let request = self.request();
        self.step(Event::Cancel { request, job: job(name) });
    }

    pub fn status(&self, name: &str) -> Option<api::JobStatus> {
        self.machine.as_ref()?.job(Millis(self.now), &job(name))
    }

    fn request(&mut self) -> RequestId {
        self.requests += 1;
        RequestId(self.requests)
    }
}

/// `key=value` words of a command.
#[derive(Clone, Debug, Default)]
pub struct Options(pub BTreeMap<String, String>);

impl Options {
    pub fn number(&self, key: &str, default: u64) -> u64 {
        self.0.get(key).map_or(default, |v| v.parse().unwrap_or_else(|_| panic!("{key}={v} is not a number")))
    }

    fn job_file(&self, name: &str) -> String {
        format!(
            "name = \"{name}\"\n[model]\nkind = \"mlp\"\nhidden = [4]\n\
             [data]\nkind = \"synthetic\"\nsamples = 1000\nfeatures = 4\nclasses = 2\nvalidation = 0.0\n\
             [train]\nglobal_batch = {batch}\nshards = {v}\nsteps = {steps}\nlr = 0.1\n\
             [elastic]\nmin_workers = {min}\nmax_workers = {max}\nrestarts = {restarts}\n\
             [checkpoint]\nevery = {every}\n",
            v = self.number("v", 16),
            batch = self.number("v", 16) * 4,
            steps = self.number("steps", 10_000),
            min = self.number("min", 1),
            max = self.number("max", 4),
            restarts = self.number("restarts", 3),
            every = self.number("every", 0),
        )
    }
}

pub fn job(name: &str) -> JobId {
    JobId::parse(name).expect("a test names its jobs well")
}

pub fn node(name: &str) -> NodeId {
    NodeId::parse(name).expect("a test names its nodes well")
}

fn unix(now: u64) -> u64 {
    1_700_000_000_000 + now
}
