//! A node's agent, modelled: wanted slots against processes, reports up, orders down.

use crate::world::{Happening, World};
use elastic_spec::facts::{End, NodeReport, NodeWant, Process, SlotWant, WorkerReport, WorkerStatus};
use elastic_spec::{Epoch, JobId, NodeId, WorkerId, limits};
use std::collections::BTreeMap;

#[derive(Debug)]
pub struct Node {
    pub name: NodeId,
    pub is_up: bool,
    pub incarnation: u64,
    pub slots: u16,
    pub draining: bool,
    want: Option<NodeWant>,
    seen: Epoch,
    pub slots_run: BTreeMap<(JobId, u16), Slot>,
    /// Ended and not yet acknowledged.
    ended: Vec<WorkerReport>,
    /// No message passes between this node and the coordinator until then.
    pub cut_until: u64,
}

#[derive(Clone, Debug)]
pub struct Slot {
    pub attempt: u32,
    pub worker: WorkerId,
    is_running: bool,
    heard_at: u64,
    status: Option<WorkerStatus>,
    is_told_to_stop: bool,
}

impl Node {
    pub fn new(index: usize, slots: u16) -> Node {
        Node {
            name: NodeId::parse(&format!("n{index}")).expect("a good name"),
            is_up: true,
            incarnation: 1,
            slots,
            draining: false,
            want: None,
            seen: Epoch::default(),
            slots_run: BTreeMap::new(),
            ended: Vec::new(),
            cut_until: 0,
        }
    }

    pub fn running(&self) -> impl Iterator<Item = WorkerId> + '_ {
        self.slots_run.values().filter(|s| s.is_running).map(|s| s.worker)
    }
}

impl World {
    /// The agent hears its workers and reports; then again after a beat.
    pub(crate) fn beat(&mut self, node: usize) {
        if self.nodes[node].is_up {
            self.report(node);
            self.stop_the_unwanted(node);
        }
        self.at(limits::BEAT_MS * 1000, Happening::Beat(node));
    }

    pub(crate) fn report(&mut self, node: usize) {
        let now = self.now;
        let mut workers = self.nodes[node].ended.clone();
        for ((job, slot), run) in self.nodes[node].slots_run.clone() {
            if !run.is_running {
                continue;
            }
            let is_stopped = self.processes.get(&run.worker).is_none_or(|p| p.stopped_until > now);
            let heard = if is_stopped { None } else { Some(self.status_of(run.worker)) };
            let entry = self.nodes[node].slots_run.get_mut(&(job.clone(), slot)).expect("just seen");
            if let Some(status) = heard {
                (entry.heard_at, entry.status) = (now, status);
            }
            let process = Process::Running { silent_ms: (now - entry.heard_at) / 1000, status: entry.status.clone() };
            workers.push(WorkerReport { job, slot, attempt: entry.attempt, worker: entry.worker, process });
        }
        let me = &self.nodes[node];
        let report = NodeReport {
            node: me.name.clone(),
            incarnation: me.incarnation,
            slots: me.slots,
            host: "127.0.0.1".into(),
            draining: me.draining,
            seen: me.seen,
            workers,
            log_address: String::new(),
            log_token: String::new(),
        };
        let is_lost = me.cut_until > now || self.chance.permille(self.net.loss);
        if !is_lost {
            let delay = self.net.delay(&mut self.chance);
            self.at(delay, Happening::ReportArrives(Box::new(report)));
        }
    }

    pub(crate) fn want(&mut self, node: usize, want: NodeWant) {
        let me = &mut self.nodes[node];
        let is_old = me.want.as_ref().is_some_and(|w| (want.term, want.revision) < (w.term, w.revision));
        if !me.is_up || me.cut_until > self.now || is_old {
            self.counts.wants_dropped += u64::from(is_old);
            return;
        }
        me.seen = Epoch { term: want.term, gen_: elastic_spec::Gen(want.revision) };
        me.ended.retain(|r| !want.acknowledged.contains(&r.worker));
        me.want = Some(want);
        self.converge(node);
    }

    fn converge(&mut self, node: usize) {
        let Some(want) = self.nodes[node].want.clone() else { return };
        for job in &want.jobs {
            for SlotWant { slot, attempt, .. } in &job.slots {
                let key = (job.job.clone(), *slot);
                let run = self.nodes[node].slots_run.get(&key).cloned();
                match run {
                    Some(run) if run.attempt >= *attempt => {}
                    Some(run) if run.is_running => self.end(run.worker, End::Signal(9)),
                    _ => self.spawn(node, key, *attempt),
                }
            }
        }
        for ((job, slot), run) in self.nodes[node].slots_run.clone() {
            if let Some(order) = want.order_for(&job, slot).filter(|_| run.is_running) {
                self.at(100, Happening::OrderArrives(run.worker, Box::new(order)));
            }
        }
    }

    fn spawn(&mut self, node: usize, key: (JobId, u16), attempt: u32) {
        let worker = WorkerId(self.chance.draw());
        let heard_at = self.now;
        let slot = Slot { attempt, worker, is_running: true, heard_at, status: None, is_told_to_stop: false };
        self.nodes[node].slots_run.insert(key, slot);
        self.counts.spawned += 1;
        self.trace(|| format!("{worker} starts on n{node}"));
        self.boot(worker, node);
    }

    /// Processes that no want names get a while to leave, then are killed.
    fn stop_the_unwanted(&mut self, node: usize) {
        let Some(want) = self.nodes[node].want.clone() else { return };
        for ((job, slot), run) in self.nodes[node].slots_run.clone() {
            if !run.is_running || want.order_for(&job, slot).is_some() {
                continue;
            }
            if run.is_told_to_stop {
                self.end(run.worker, End::Signal(9));
            } else {
                self.nodes[node].slots_run.get_mut(&(job, slot)).expect("just seen").is_told_to_stop = true;
                self.tell(run.worker, elastic_member::Event::Leave);
            }
        }
    }

    /// A process has ended: the agent notices at once.
    pub(crate) fn end(&mut self, worker: WorkerId, end: End) {
        let Some(status) = self.processes.contains_key(&worker).then(|| self.status_of(worker)) else { return };
        let process = self.processes.remove(&worker).expect("just seen");
        self.note_tally(process.member.status().tally);
        self.trace(|| format!("{worker} ended: {end:?}"));
        self.links_break(worker);
        let node = process.node;
        let Some((key, run)) = self.nodes[node].slots_run.iter_mut().find(|(_, s)| s.worker == worker) else { return };
        run.is_running = false;
        let report = WorkerReport {
            job: key.0.clone(),
            slot: key.1,
            attempt: run.attempt,
            worker,
            process: Process::Exited { end, status: status.or(run.status.clone()) },
        };
        self.nodes[node].ended.push(report);
        self.report(node);
        self.converge(node);
    }

    /// A whole node goes, with everything on it.
    pub(crate) fn lose_node(&mut self, node: usize) {
        let workers: Vec<WorkerId> = self.nodes[node].running().collect();
        let me = &mut self.nodes[node];
        (me.is_up, me.want) = (false, None);
        me.slots_run.clear();
        me.ended.clear();
        for worker in workers {
            if let Some(process) = self.processes.remove(&worker) {
                self.note_tally(process.member.status().tally);
            }
            self.links_break(worker);
        }
        if self.chance.permille(700) {
            let (name, incarnation) = (self.nodes[node].name.clone(), self.nodes[node].incarnation);
            self.at(1_000, Happening::StreamBroke(name, incarnation));
        }
    }

    pub(crate) fn node_returns(&mut self, node: usize) {
        let me = &mut self.nodes[node];
        me.is_up = true;
        me.draining = false;
        me.incarnation += 1;
    }
}
