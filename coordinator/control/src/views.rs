//! Makes a view when another membership is right than the one in force, and takes over views made by
//! leaders before.

use crate::job::{Cluster, Job};
use crate::members::Wanted;
use crate::note::{Note, ViewNote};
use crate::shard_map::shard_map;
use crate::slot::Leave;
use elastic_spec::api::JobState;
use elastic_spec::view::{Pace, Role, View};
use elastic_spec::{Epoch, Gen, Rank, WorkerId};
use std::collections::BTreeMap;

impl Job {
    /// Brings the view in line with who is there; changes that come close together make one view.
    pub(crate) fn settle_view(&mut self, cluster: &mut Cluster) {
        let Some(wanted) = self.wanted(cluster) else {
            self.change_since = None;
            return self.note_standstill(cluster);
        };
        let is_first = self.view.as_ref().is_none_or(|v| v.world_size() == 0);
        if self.view.as_ref().is_some_and(|view| wanted.is_in_force(view)) {
            self.change_since = None;
            return self.name_state(cluster);
        }
        let since = *self.change_since.get_or_insert(cluster.now);
        if is_first || cluster.now.since(since) >= cluster.config.coalesce_ms {
            self.make_view(wanted, cluster);
            self.name_state(cluster);
        }
    }

    fn make_view(&mut self, wanted: Wanted, cluster: &mut Cluster) {
        self.gen_ += 1;
        self.views += 1;
        let epoch = Epoch { term: cluster.term, gen_: Gen(self.gen_) };
        let active: Vec<WorkerId> = wanted.active.iter().map(|m| m.worker).collect();
        let owners = self.map_for(&active);
        for member in &wanted.learners {
            let was_learner = self.role_of(member.worker) == Some(Role::Learner);
            if let Some(worker) = self.worker_mut(member.worker).filter(|_| !was_learner) {
                worker.admitted = Some(epoch);
            }
        }
        let ranks: BTreeMap<WorkerId, Rank> =
            active.iter().enumerate().map(|(rank, worker)| (*worker, Rank(rank as u16))).collect();
        let loads = active.iter().map(|w| (*w, owners.iter().filter(|o| *o == w).count() as u16)).collect();
        let is_new = self.view.as_ref().is_none_or(|v| v.world_size() == 0);
        let view = View {
            job: self.id.clone(),
            epoch,
            pace: wanted.pace,
            shard_map: owners.iter().map(|w| ranks[w]).collect(),
            members: wanted.active.into_iter().chain(wanted.learners).collect(),
        };
        assert_eq!(view.check(), Ok(()), "a view that we make is sound");
        cluster.note(Note::View(ViewNote {
            job: self.id.clone(),
            epoch,
            pace: view.pace,
            active: loads,
            learners: view.members.iter().filter(|m| m.role == Role::Learner).map(|m| m.worker).collect(),
            round: is_new.then_some(self.seen.round),
        }));
        self.view = Some(view);
        self.view_since = cluster.now;
        self.seen.mark = (self.seen.round, cluster.now);
        (self.change_since, self.gather_since) = (None, None);
        if !self.has_begun {
            (self.has_begun, self.is_changed) = (true, true);
        }
    }

    /// Shards by worker; unchanged while the active members are.
    fn map_for(&self, active: &[WorkerId]) -> Vec<WorkerId> {
        let old: Vec<WorkerId> = self.view.iter().flat_map(View::active).map(|m| m.worker).collect();
        let previous: Vec<WorkerId> =
            self.view.iter().flat_map(|v| &v.shard_map).filter_map(|rank| old.get(rank.0 as usize).copied()).collect();
        let (survivors, joiners): (Vec<WorkerId>, Vec<WorkerId>) = active.iter().partition(|w| old.contains(w));
        shard_map(&previous, &survivors, &joiners, self.shards())
    }

    fn role_of(&self, worker: WorkerId) -> Option<Role> {
        self.view.as_ref()?.member(worker).map(|m| m.role)
    }

    fn worker_mut(&mut self, id: WorkerId) -> Option<&mut crate::slot::Worker> {
        self.slots.values_mut().filter_map(|s| s.worker.as_mut()).find(|w| w.id == id)
    }

    /// The view that a worker acts on was made by a leader before this one: go on from the highest.
    pub(crate) fn adopt(&mut self, view: &View, cluster: &mut Cluster) {
        let is_ours = |epoch: Epoch| epoch.term == cluster.term;
        if is_ours(view.epoch) {
            return;
        }
        let is_higher = self.view.as_ref().is_none_or(|v| !is_ours(v.epoch) && v.epoch < view.epoch);
        let fits = view.shard_map.is_empty() || view.shards() == self.shards();
        if !is_higher || !fits || view.job != self.id || view.check().is_err() {
            return;
        }
        cluster.note(Note::ViewAdopted { job: self.id.clone(), epoch: view.epoch });
        self.unheard = view.members.iter().map(|m| m.worker).collect();
        self.view = Some(view.clone());
        self.view_since = cluster.now;
        self.views = self.views.max(1);
        self.adopt_generation(view);
        if !self.has_begun {
            (self.has_begun, self.is_changed) = (true, true);
        }
    }

    /// The class of an adopted view's members is the job's.
    pub(crate) fn adopt_numerics(&mut self) {
        if self.numerics.is_none() && self.view.is_some() {
            let active = self.fit().find(|(_, _, w)| self.is_active(w.id));
            self.numerics = active.and_then(|(_, _, w)| w.status.as_ref()).map(|s| s.numerics);
        }
    }

    /// The state that follows from the view in force.
    pub(crate) fn name_state(&mut self, cluster: &mut Cluster) {
        if let Some((state, reason)) = self.state_by_view() {
            self.set_state(state, reason, cluster);
        }
    }

    pub(crate) fn state_by_view(&self) -> Option<(JobState, String)> {
        let view = self.view.as_ref()?;
        if self.is_command() {
            return Some(self.state_of_generation(view));
        }
        let learners = view.members.len() - usize::from(view.world_size());
        Some(match (view.pace, view.world_size()) {
            (_, 0) => (JobState::Paused, "its last worker has left".to_string()),
            (Pace::Run, world) if learners > 0 => {
                (JobState::Running, format!("{world} of at most {} workers, {learners} more catch up", self.max))
            }
            (Pace::Run, world) => (JobState::Running, format!("{world} of at most {} workers", self.max)),
            (Pace::Pause, _) if self.is_handing_over() => {
                (JobState::Paused, "its last worker leaves and publishes what it holds".to_string())
            }
            (Pace::Pause, world) => {
                (JobState::Paused, format!("has {world} of min_workers = {}; its state is held", self.min))
            }
        })
    }

    fn is_handing_over(&self) -> bool {
        self.staying() == 0 && self.slots.values().any(|s| matches!(s.leave, Leave::HandsOver { .. }))
    }

    /// Nobody is there who could be in a view.
    fn note_standstill(&mut self, cluster: &mut Cluster) {
        if self.has_begun && !self.is_recovering(cluster.now) {
            let reason = format!("has none of min_workers = {}", self.min);
            self.set_state(JobState::Paused, reason, cluster);
        }
    }
}
