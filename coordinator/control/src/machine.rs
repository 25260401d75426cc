//! The machine: takes events in, lets each part decide, gives effects out.

use crate::event::{Config, Effects, Event, Record};
use crate::job::{Cluster, Job};
use crate::node::{Node, Told};
use crate::note::Note;
use crate::placement;
use crate::record;
use crate::time::Millis;
use elastic_spec::access::Token;
use elastic_spec::facts::{JobWant, NodeWant, SlotWant};
use elastic_spec::{Epoch, Gen, JobId, NodeId, Term, TokenName};
use std::collections::BTreeMap;

/// All that the leader knows and wants.
#[derive(Debug)]
pub struct Machine {
    pub(crate) term: Term,
    pub(crate) config: Config,
    pub(crate) jobs: BTreeMap<JobId, Job>,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) tokens: BTreeMap<TokenName, Token>,
    /// When this step, or the last, took place.
    pub(crate) now: Millis,
    /// A wall clock reading and when it was taken.
    pub(crate) wall: (u64, Millis),
    /// Silence before this says nothing: the leader was new, or its loop stood still.
    pub(crate) trusted_from: Millis,
    /// Nobody is suspected of silence before.
    pub(crate) grace_until: Millis,
    pub(crate) next_seq: u64,
    /// A term above ours was seen: nothing is decided here any more.
    pub(crate) surpassed_by: Option<Term>,
}

impl Machine {
    /// A new leader, from the records in the store; the second value names records that cannot be read.
    ///
    /// `term` is the fencing token. Views are rebuilt from what agents report, and nobody is evicted
    /// until one full suspicion period has passed.
    pub fn new(term: Term, now: Millis, records: Vec<Record>, config: Config) -> (Machine, Vec<String>) {
        let mut mistakes = Vec::new();
        let (mut jobs, mut nodes, mut tokens) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for record in &records {
            match record::read(record) {
                Ok(record::Read::Job(mut job)) => {
                    job.recovers_until = job.is_live().then_some(now.plus(config.leader_grace_ms));
                    jobs.insert(job.id.clone(), *job);
                }
                Ok(record::Read::Node(node)) => {
                    nodes.insert(node.id.clone(), *node);
                }
                Ok(record::Read::Token(token)) => {
                    tokens.insert(token.name.clone(), token);
                }
                Ok(record::Read::NotOurs) => {}
                Err(mistake) => mistakes.push(mistake),
            }
        }
        let next_seq = jobs.values().map(|j: &Job| j.seq + 1).max().unwrap_or(0);
        // With no job before, there is nobody who might be heard late.
        let grace_until = jobs.values().filter_map(|j: &Job| j.recovers_until).max().unwrap_or(now);
        let machine = Machine {
            term,
            config,
            jobs,
            nodes,
            tokens,
            now,
            wall: (0, now),
            trusted_from: now,
            grace_until,
            next_seq,
            surpassed_by: None,
        };
        (machine, mistakes)
    }

    pub fn step(&mut self, now: Millis, event: Event) -> Effects {
        let mut out = Effects::default();
        if self.surpassed_by.is_none() {
            self.watch_own_pace(now, &mut out);
            self.take(event, &mut out);
        }
        if self.surpassed_by.is_some() {
            return Effects { stand_down: self.surpassed_by, notes: out.notes, ..Effects::default() };
        }
        self.settle(&mut out);
        self.write_records(&mut out);
        self.write_orders(&mut out);
        out
    }

    /// When to call `step(Event::Tick)` at the latest, if nothing else comes.
    pub fn next_deadline(&self) -> Option<Millis> {
        self.timers().first().map(|(at, _)| *at)
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// What the node shall do now: for a stream that was just opened.
    pub fn want(&self, node: &NodeId) -> Option<NodeWant> {
        let node = self.nodes.get(node).filter(|n| n.told.is_some())?;
        Some(self.order(node))
    }

    /// Suspicion rests on reports that come in steadily. When our own loop stood still (a stopped process,
    /// a sleeping machine), their absence says nothing.
    fn watch_own_pace(&mut self, now: Millis, out: &mut Effects) {
        let now = now.max(self.now);
        let gap = now.since(self.now);
        let has_workers = self.jobs.values().any(|j| !j.slots.is_empty());
        if gap > self.config.suspect_ms / 2 && has_workers {
            self.trusted_from = now;
            self.grace_until = now.plus(self.config.leader_grace_ms);
            out.notes.push(Note::Gap { ms: gap });
            for job in self.jobs.values_mut().filter(|j| j.is_recovering(now)) {
                job.recovers_until = Some(self.grace_until);
            }
        }
        self.now = now;
    }

    fn take(&mut self, event: Event, out: &mut Effects) {
        match event {
            Event::Submit { request, submit, job, secret, run_dir, unix_ms } => {
                self.wall = (unix_ms, self.now);
                let reply = self.submit(submit, job, secret, run_dir, out);
                out.then_reply.push((request, reply));
            }
            Event::Scale { request, job, min, max } => {
                let reply = self.scale(&job, min, max, out);
                out.then_reply.push((request, reply));
            }
            Event::Drain { request, node } => {
                let reply = self.drain(&node, out);
                out.then_reply.push((request, reply));
            }
            Event::Cancel { request, job } => {
                let reply = self.cancel(&job, out);
                out.then_reply.push((request, reply));
            }
            Event::KeepToken { request, token } => {
                let reply = self.keep_token(token, out);
                out.then_reply.push((request, reply));
            }
            Event::RevokeToken { request, name } => {
                let reply = self.revoke_token(&name, out);
                out.then_reply.push((request, reply));
            }
            Event::Report(report, unix_ms) => {
                self.wall = (unix_ms, self.now);
                self.report(report, out);
            }
            Event::NodeLost { node, incarnation } => {
                if let Some(node) = self.nodes.get_mut(&node).filter(|n| n.incarnation == incarnation) {
                    node.is_cut = true;
                }
            }
            Event::Tick => {}
        }
    }

    /// Everything that follows from what is known now; does nothing twice.
    fn settle(&mut self, out: &mut Effects) {
        self.judge_nodes(out);
        let (jobs, mut cluster) = self.parts(out);
        for job in jobs.values_mut() {
            if job.recovers_until.is_some_and(|until| cluster.now >= until) {
                job.recovers_until = None;
            }
            if job.is_live() {
                job.suspect(&mut cluster);
            }
            if job.is_live() {
                job.drain(&mut cluster);
                job.pay_what_is_owed(&mut cluster);
            }
        }
        placement::place(jobs, &mut cluster);
        for job in jobs.values_mut().filter(|j| j.is_live()) {
            match job.is_command() {
                true => job.settle_generation(&mut cluster),
                false => job.settle_view(&mut cluster),
            }
            job.tell_leavers(&mut cluster);
        }
    }

    /// The jobs, and what their decisions see besides.
    pub(crate) fn parts<'a>(&'a mut self, out: &'a mut Effects) -> (&'a mut BTreeMap<JobId, Job>, Cluster<'a>) {
        let cluster = Cluster {
            now: self.now,
            unix_ms: self.wall.0 + self.now.since(self.wall.1),
            term: self.term,
            config: &self.config,
            nodes: &mut self.nodes,
            trusted_from: self.trusted_from,
            grace_until: self.grace_until,
            notes: &mut out.notes,
        };
        (&mut self.jobs, cluster)
    }

    fn judge_nodes(&mut self, out: &mut Effects) {
        for node in self.nodes.values_mut().filter(|n| n.is_known() && !n.is_silent) {
            let ms = self.now.since(node.heard.max(self.trusted_from));
            if ms > self.config.suspect_ms {
                node.is_silent = true;
                out.notes.push(Note::NodeSilent { node: node.id.clone(), ms });
            }
        }
        let is_used = |id: &NodeId| self.jobs.values().any(|j| j.slots.values().any(|s| s.node == *id));
        let is_old = |n: &Node| n.is_known() && n.is_silent && self.now.since(n.heard) > self.config.forget_ms;
        let old: Vec<NodeId> =
            self.nodes.values().filter(|n| is_old(n) && !is_used(&n.id)).map(|n| n.id.clone()).collect();
        for id in old {
            self.nodes.remove(&id);
            out.persist.push(Record { key: record::of_node(&Node::new(id.clone())).key, value: None });
            out.notes.push(Note::NodeForgotten { node: id });
        }
    }

    fn write_records(&mut self, out: &mut Effects) {
        for job in self.jobs.values_mut().filter(|j| j.is_changed) {
            job.is_changed = false;
            out.persist.push(record::of_job(job));
        }
        for node in self.nodes.values_mut().filter(|n| n.is_changed) {
            node.is_changed = false;
            out.persist.push(record::of_node(node));
        }
        let mut over: Vec<(u64, JobId)> =
            self.jobs.values().filter(|j| !j.is_live()).map(|j| (j.seq, j.id.clone())).collect();
        over.sort();
        let surplus = over.len().saturating_sub(self.config.jobs_over_max);
        for (_, id) in over.into_iter().take(surplus) {
            out.persist.push(Record { key: record::job_key(&id), value: None });
            self.jobs.remove(&id);
        }
    }

    /// Orders that differ from the last, or that were not confirmed for a while.
    fn write_orders(&mut self, out: &mut Effects) {
        let ids: Vec<NodeId> = self.nodes.values().filter(|n| n.is_known()).map(|n| n.id.clone()).collect();
        for id in ids {
            let told = self.told(&self.nodes[&id]);
            let node = self.nodes.get_mut(&id).expect("it was listed");
            let revision = Epoch { term: self.term, gen_: Gen(node.revision) };
            match &node.told {
                Some(old) if old.jobs == told.jobs && old.acknowledged == told.acknowledged => {
                    let is_due = self.now.since(old.at) >= self.config.resend_ms;
                    if node.confirmed >= revision || !is_due || node.is_cut || node.is_silent {
                        continue;
                    }
                }
                _ => node.revision += 1,
            }
            node.told = Some(told);
            let want = self.order(&self.nodes[&id]);
            out.then_send.push((id, want));
        }
    }

    fn told(&self, node: &Node) -> Told {
        let jobs = self.live_on(node).map(|(job, slots)| (job.id.clone(), job.view.as_ref().map(|v| v.epoch), slots));
        Told { jobs: jobs.collect(), acknowledged: node.ended.clone(), at: self.now }
    }

    fn order(&self, node: &Node) -> NodeWant {
        let jobs = self.live_on(node).map(|(job, slots)| JobWant {
            job: job.id.clone(),
            config: job.config,
            launch: job.launch.clone(),
            slots,
            view: job.view.clone(),
            restarts: job.restarts,
        });
        NodeWant {
            term: self.term,
            revision: node.revision,
            jobs: jobs.collect(),
            acknowledged: node.ended.iter().copied().collect(),
        }
    }

    fn live_on<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = (&'a Job, Vec<SlotWant>)> {
        let on_node = |job: &'a Job| -> Vec<SlotWant> {
            let slots = job.slots.iter().filter(|(_, s)| s.node == node.id);
            slots.filter_map(|(index, s)| s.want(*index, self.now)).collect()
        };
        self.jobs.values().filter(|j| j.is_live()).map(move |j| (j, on_node(j))).filter(|(_, s)| !s.is_empty())
    }
}
