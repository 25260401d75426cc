//! The machine: takes events in, lets each part decide, gives effects out.

use crate::event::{Config, Effects, Event, Record};
use crate::time::Millis;
use elastic_spec::api::{JobStatus, NodeStatus};
use elastic_spec::facts::NodeWant;
use elastic_spec::{JobId, NodeId, Term};

/// All that the leader knows and wants.
#[derive(Debug)]
pub struct Machine {
    term: Term,
    config: Config,
    last: Millis,
}

impl Machine {
    /// A new leader, from the records in the store; the second value names records that cannot be read.
    ///
    /// `term` is the fencing token. Views are rebuilt from what agents report, and nobody is evicted
    /// until one full suspicion period has passed.
    pub fn new(term: Term, now: Millis, records: Vec<Record>, config: Config) -> (Machine, Vec<String>) {
        let _ = records;
        (Machine { term, config, last: now }, Vec::new())
    }

    pub fn step(&mut self, now: Millis, event: Event) -> Effects {
        self.last = now;
        let _ = (event, self.term, &self.config);
        Effects::default()
    }

    /// When to call `step(Event::Tick)` at the latest, if nothing else comes.
    pub fn next_deadline(&self) -> Option<Millis> {
        None
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// What the node shall do now: for a stream that was just opened.
    pub fn want(&self, _node: &NodeId) -> Option<NodeWant> {
        None
    }

    pub fn jobs(&self, _now: Millis) -> Vec<JobStatus> {
        Vec::new()
    }

    pub fn job(&self, _now: Millis, _job: &JobId) -> Option<JobStatus> {
        None
    }

    pub fn nodes(&self, _now: Millis) -> Vec<NodeStatus> {
        Vec::new()
    }
}
