//! Decides who is no longer to be counted on although nobody saw it end: the silent and the hanging.
//!
//! Suspicion is cheap: what a suspect still sends counts, and it comes back as a learner. So it is fast,
//! and faster with evidence (a broken link or stream). Two things speak against it: that this leader is
//! new or its own loop stood still, so that what it missed proves nothing; and that rounds go on, which
//! need each active member.

use crate::faults::After;
use crate::job::{Cluster, Job};
use crate::note::{Cause, Note};
use crate::slot::{Slot, Worker};
use elastic_spec::WorkerId;
use elastic_spec::facts::Phase;
use elastic_spec::view::{Pace, Role};
use std::collections::BTreeMap;

impl Job {
    /// Judges every worker as of now.
    pub(crate) fn suspect(&mut self, cluster: &mut Cluster) {
        self.welcome_back(cluster);
        self.suspect_silent(cluster);
        self.suspect_unheard(cluster);
        self.replace_long_silent(cluster);
        self.restart_stuck(cluster);
        // How a command gets on, nobody here can know.
        if !self.is_command() {
            self.evict_hanging(cluster);
        }
    }

    fn welcome_back(&mut self, cluster: &mut Cluster) {
        for slot in self.slots.values_mut() {
            let Some(worker) = &mut slot.worker else { continue };
            if worker.suspect_since.is_some_and(|since| worker.heard > since) {
                worker.suspect_since = None;
                // What held it up is over; it is not to blame for the standstill.
                worker.progressed = cluster.now;
                let node = slot.node.clone();
                cluster.note(Note::Returned { job: self.id.clone(), worker: worker.id, node });
            }
        }
    }

    fn suspect_silent(&mut self, cluster: &mut Cluster) {
        if cluster.now < cluster.grace_until {
            return;
        }
        let silent: Vec<(u16, Cause)> = self
            .fit()
            .filter_map(|(index, slot, worker)| {
                let ms = cluster.silence(self, worker);
                (ms > self.patience(slot, worker, cluster))
                    .then(|| (index, self.cause_of_silence(slot, worker, cluster)))
            })
            .collect();
        for (index, cause) in silent {
            let slot = self.slots.get_mut(&index).expect("it was just judged");
            let worker = slot.worker.as_mut().expect("it was just judged");
            worker.suspect_since = Some(cluster.now);
            let (id, node) = (worker.id, slot.node.clone());
            self.remember_fault(&node, id, cause.to_string(), cluster);
            cluster.note(Note::Evicted { job: self.id.clone(), worker: id, node, cause });
        }
    }

    /// How long this worker may be silent.
    fn patience(&self, slot: &Slot, worker: &Worker, cluster: &Cluster) -> u64 {
        let is_cut = cluster.nodes.get(&slot.node).is_some_and(|n| n.is_cut);
        match is_cut || self.is_lost_by_peers(worker.id) {
            true => cluster.config.suspect_with_evidence_ms,
            false => cluster.config.suspect_ms,
        }
    }

    fn is_lost_by_peers(&self, worker: WorkerId) -> bool {
        let epoch = self.view.as_ref().map(|v| v.epoch);
        let statuses =
            self.fit().filter_map(|(_, _, w)| w.status.as_ref().filter(|_| w.id != worker && w.epoch() == epoch));
        epoch.is_some() && statuses.into_iter().any(|s| s.lost_peers.contains(&worker))
    }

    fn cause_of_silence(&self, slot: &Slot, worker: &Worker, cluster: &Cluster) -> Cause {
        let ms = cluster.silence(self, worker);
        let is_node_silent = cluster.nodes.get(&slot.node).is_none_or(|n| n.is_silent || n.is_cut);
        match is_node_silent {
            true => Cause::NodeSilent { ms },
            false if self.is_lost_by_peers(worker.id) => Cause::LinkLost { ms },
            false => Cause::Silent { ms },
        }
    }

    /// Members of an adopted view that no node has spoken of by the end of the new leader's grace.
    fn suspect_unheard(&mut self, cluster: &mut Cluster) {
        let is_out = |w: &WorkerId| !self.is_unheard(*w, cluster);
        let out: Vec<WorkerId> = self.unheard.iter().copied().filter(is_out).collect();
        for worker in out {
            self.unheard.remove(&worker);
            let member = self.view.as_ref().and_then(|v| v.member(worker));
            let Some(node) = member.map(|m| m.node.clone()).filter(|_| self.slot_of(worker).is_none()) else {
                continue;
            };
            let cause = Cause::NodeSilent { ms: cluster.now.since(cluster.trusted_from) };
            self.remember_fault(&node, worker, cause.to_string(), cluster);
            cluster.note(Note::Evicted { job: self.id.clone(), worker, node, cause });
        }
    }

    /// Whether nothing can be known of this member yet.
    pub(crate) fn is_unheard(&self, worker: WorkerId, cluster: &Cluster) -> bool {
        let node = self.view.as_ref().and_then(|v| v.member(worker)).map(|m| &m.node);
        let has_spoken = node.and_then(|n| cluster.nodes.get(n)).is_some_and(|n| n.is_known());
        self.unheard.contains(&worker) && self.is_recovering(cluster.now) && !has_spoken
    }

    fn replace_long_silent(&mut self, cluster: &mut Cluster) {
        let config = cluster.config;
        // A command's group holds nothing that would be worth waiting for.
        let replace_ms = if self.is_command() { 3 * config.suspect_ms } else { config.replace_ms };
        let long: Vec<u16> = self
            .slots
            .iter()
            .filter(|(_, slot)| {
                let node = cluster.nodes.get(&slot.node);
                let is_node_gone = node
                    .is_none_or(|n| n.is_silent && cluster.now.since(n.heard.max(cluster.trusted_from)) > replace_ms);
                match &slot.worker {
                    None => is_node_gone,
                    Some(w) => w.suspect_since.is_some() && cluster.silence(self, w) > replace_ms,
                }
            })
            .map(|(index, _)| *index)
            .collect();
        for index in long {
            let Some(slot) = self.slots.get(&index).filter(|_| self.is_live()) else { continue };
            let is_node_silent = cluster.nodes.get(&slot.node).is_none_or(|n| n.is_silent);
            match &slot.worker {
                None => self.free(index, "its node is gone".to_string(), cluster),
                Some(w) => {
                    let cause = self.cause_of_silence(slot, w, cluster);
                    let after = if is_node_silent { After::Elsewhere } else { After::HereAtOnce };
                    self.fault(index, cause, after, cluster);
                }
            }
        }
    }

    /// Processes that never speak, boots and learners that stand still.
    fn restart_stuck(&mut self, cluster: &mut Cluster) {
        let stuck: Vec<(u16, Cause)> = self
            .fit()
            .filter(|(_, slot, _)| !slot.is_leaving())
            .filter_map(|(index, _, worker)| {
                let ms = cluster.now.since(worker.progressed.max(cluster.trusted_from).max(self.view_since));
                let role = self.view.as_ref().and_then(|v| v.member(worker.id)).map(|m| m.role);
                match (worker.phase(), role) {
                    (Phase::Booting, None) if ms > cluster.config.boot_ms => Some((index, Cause::NeverSpoke { ms })),
                    (_, Some(Role::Learner)) if ms > cluster.config.learn_ms => Some((index, Cause::Stuck { ms })),
                    _ => None,
                }
            })
            .collect();
        for (index, cause) in stuck {
            if !self.is_live() {
                return;
            }
            self.fault(index, cause, After::HereAtOnce, cluster);
        }
    }

    /// The watchdog for those who beat but do not work.
    fn evict_hanging(&mut self, cluster: &mut Cluster) {
        for (worker, ms) in self.hanging(cluster) {
            if !self.is_live() {
                return;
            }
            let Some((index, _)) = self.slot_of(worker) else { continue };
            let is_waited_for =
                self.fit().any(|(_, _, w)| w.status.as_ref().is_some_and(|s| s.waiting_on.contains(&worker)));
            let cause = if is_waited_for { Cause::Hung { ms } } else { Cause::StoodStill { ms } };
            self.fault(index, cause, After::HereAtOnce, cluster);
        }
    }

    /// Who holds everyone up, and since when.
    ///
    /// Members say whom they wait for once their own work is done. Who stands still and waits for nobody
    /// is the one; if all wait for each other (a link that carries nothing one way), the most named of
    /// them goes, and of those the highest rank, one at a time.
    fn hanging(&self, cluster: &Cluster) -> Vec<(WorkerId, u64)> {
        let Some(view) = &self.view else { return Vec::new() };
        let mut still: BTreeMap<WorkerId, u64> = BTreeMap::new();
        let mut named: BTreeMap<WorkerId, usize> = BTreeMap::new();
        let mut waits: Vec<WorkerId> = Vec::new();
        let mut step_us = 0;
        for (_, _, worker) in self.fit() {
            let Some(status) = &worker.status else { continue };
            step_us = step_us.max(status.metrics.map_or(0, |m| m.step_us));
            let from = worker.progressed.max(cluster.trusted_from).max(self.view_since);
            let ms = cluster.now.since(from);
            let is_fetching = worker.epoch() == Some(view.epoch) && !self.is_active(worker.id);
            // A learner that gets nothing from a member names it, also while the job is paused.
            let is_starved = is_fetching && ms > cluster.config.hang_ms_min;
            status.waiting_on.iter().filter(|_| is_starved).for_each(|w| *named.entry(*w).or_default() += 1);
            if !self.is_active(worker.id) || worker.epoch() != Some(view.epoch) || worker.phase() == Phase::Finished {
                continue;
            }
            still.insert(worker.id, ms);
            status.waiting_on.iter().for_each(|w| *named.entry(*w).or_default() += 1);
            if !status.waiting_on.is_empty() {
                waits.push(worker.id);
            }
        }
        let pace = (step_us / 1_000).saturating_mul(cluster.config.hang_steps).max(cluster.config.hang_ms_min);
        let is_blind = step_us == 0 || named.is_empty();
        let limit = if is_blind { pace.max(cluster.config.hang_blind_ms) } else { pace };
        let hanging = |w: &WorkerId| still.get(w).is_some_and(|ms| *ms > limit);
        let found = |those: Vec<WorkerId>| those.into_iter().map(|w| (w, still[&w])).collect::<Vec<_>>();
        let idle: Vec<WorkerId> = still.keys().copied().filter(|w| hanging(w) && !waits.contains(w)).collect();
        let blamed: Vec<WorkerId> = idle.iter().copied().filter(|w| named.contains_key(w)).collect();
        if !blamed.is_empty() {
            return found(blamed);
        }
        // In a pause nobody works. While anybody gets on, or cannot be judged, the round is not stuck.
        if view.pace == Pace::Pause || still.len() != view.world_size() as usize || !still.keys().all(hanging) {
            return Vec::new();
        }
        let worst = named.iter().filter(|(w, _)| still.contains_key(w)).max_by_key(|(w, n)| (**n, view.rank_of(**w)));
        match worst {
            Some((worker, _)) => found(vec![*worker]),
            None => found(idle),
        }
    }
}
