//! The coordinator, modelled around the real control machine: a store with a fence, leaders that come
//! and go, and old leaders that go on speaking for a while.

use crate::world::{Happening, World};
use elastic_control::{Config, Event, Machine, Millis, Record};
use elastic_spec::facts::NodeReport;
use elastic_spec::{JobId, NodeId, Term};
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Leader {
    pub term: Term,
    pub machine: Machine,
    pub stopped_until: u64,
    /// Superseded, and does not know it yet.
    is_old_until: Option<u64>,
    tick_at: u64,
}

/// The records, and the term that may write.
#[derive(Debug, Default)]
pub struct Store {
    pub term: Term,
    records: BTreeMap<String, Vec<u8>>,
}

impl World {
    /// A new leader, above every term so far.
    pub(crate) fn lead(&mut self) {
        let now = self.now;
        self.store.term = Term(self.store.term.0 + 1);
        let term = self.store.term;
        let records =
            self.store.records.iter().map(|(k, v)| Record { key: k.clone(), value: Some(v.clone()) }).collect();
        let (machine, mistakes) = Machine::new(term, Millis(now / 1000), records, Config::default());
        for mistake in mistakes {
            self.violation(format!("a record does not read back: {mistake}"));
        }
        for old in &mut self.leaders {
            old.is_old_until = old.is_old_until.or(Some(now + 300_000));
        }
        self.trace(|| format!("leader {term}"));
        self.leaders.push(Leader { term, machine, stopped_until: 0, is_old_until: None, tick_at: u64::MAX });
        self.counts.leaders += 1;
        let is_mid_change = {
            let mut epochs: Vec<_> =
                self.processes.values().filter_map(|p| p.member.status().view.map(|v| v.epoch)).collect();
            epochs.sort();
            epochs.dedup();
            epochs.len() > 1
        };
        self.counts.leader_changed_in_mid_view += u64::from(is_mid_change && term.0 > 1);
        if term.0 == 1 {
            let submit =
                elastic_spec::api::Submit { spec_json: self.spec_json.clone(), blobs: Vec::new(), resume: None };
            let job = JobId::parse("job").expect("a good name");
            let request = elastic_control::RequestId(1);
            let event = Event::Submit { request, submit, job, secret: vec![1], run_dir: "run".into(), unix_ms: 1 };
            self.decide(term, event);
        }
        self.decide(term, Event::Tick);
    }

    pub(crate) fn report_arrives(&mut self, report: NodeReport) {
        let terms: Vec<Term> = self.leaders.iter().map(|l| l.term).collect();
        for term in terms {
            self.decide(term, Event::Report(report.clone(), 1));
        }
    }

    pub(crate) fn stream_broke(&mut self, node: NodeId, incarnation: u64) {
        if let Some(leader) = self.leaders.last() {
            self.decide(leader.term, Event::NodeLost { node, incarnation });
        }
    }

    pub(crate) fn decide(&mut self, term: Term, event: Event) {
        let now = self.now;
        let Some(index) = self.leaders.iter().position(|l| l.term == term) else { return };
        let leader = &mut self.leaders[index];
        if leader.stopped_until > now {
            let wait = leader.stopped_until - now;
            self.at(wait, Happening::Decide(term, Box::new(event)));
            return;
        }
        let effects = leader.machine.step(Millis(now / 1000), event);
        let deadline = leader.machine.next_deadline();
        if let Some(Millis(deadline)) = deadline
            && (deadline * 1000 < leader.tick_at || leader.tick_at <= now)
        {
            leader.tick_at = (deadline * 1000).max(now + 1);
            let wait = leader.tick_at - now;
            self.at(wait, Happening::LeaderTick(term));
        }
        // The fence: an old leader stops at its first write.
        if !effects.persist.is_empty() && term != self.store.term {
            self.leaders.remove(index);
            self.counts.fenced += 1;
            return;
        }
        for Record { key, value } in effects.persist {
            match value {
                Some(value) => self.store.records.insert(key, value),
                None => self.store.records.remove(&key),
            };
        }
        for note in &effects.notes {
            self.trace(|| format!("control {term}: {note}"));
        }
        let half = effects.then_send.len() / 2;
        let is_split = half > 0 && self.leaders.last().map(|l| l.term) == Some(term);
        for (sent, (name, want)) in effects.then_send.into_iter().enumerate() {
            if let Some(left) = self.crash_after_orders.as_mut().filter(|_| is_split && sent == half) {
                *left -= 1;
                if *left == 0 {
                    self.crash_after_orders = None;
                    return self.crash_leader();
                }
            }
            let Some(node) = self.nodes.iter().position(|n| n.name == name) else { continue };
            if !self.chance.permille(self.net.loss) {
                let delay = self.net.delay(&mut self.chance);
                self.at(delay, Happening::WantArrives(node, Box::new(want)));
            }
        }
        if let Some(above) = effects.stand_down {
            self.leaders.retain(|l| l.term != term);
            if term == self.store.term {
                self.store.term = above.max(self.store.term);
                self.at(10_000, Happening::NewLeader);
            }
        }
    }

    pub(crate) fn leader_tick(&mut self, term: Term) {
        if let Some(index) = self.leaders.iter().position(|l| l.term == term) {
            if self.leaders[index].is_old_until.is_some_and(|until| until <= self.now) {
                self.leaders.remove(index);
                return;
            }
            self.leaders[index].tick_at = u64::MAX;
            self.decide(term, Event::Tick);
        }
    }
}
