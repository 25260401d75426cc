//! Decides which membership is right for a job, given who is there.
//!
//! While somebody active is left, those stay, learners that caught up come in beside them, and everyone
//! else who is up learns. When nobody active is left (at the start, or all were lost), a first view is
//! gathered: whoever holds the highest round is active, the others learn from them.

use crate::job::{Cluster, Job};
use crate::note::{Cause, Note};
use crate::slot::{Leave, Slot, Worker};
use elastic_spec::facts::Phase;
use elastic_spec::view::{Pace, Role, View, ViewMember};
use elastic_spec::{NodeId, Round, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// The membership that is right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub pace: Pace,
    /// In rank order.
    pub active: Vec<ViewMember>,
    pub learners: Vec<ViewMember>,
}

impl Wanted {
    pub fn is_in_force(&self, view: &View) -> bool {
        let ids = |members: &[ViewMember]| members.iter().map(|m| m.worker).collect::<BTreeSet<WorkerId>>();
        let learners: Vec<ViewMember> = view.members.iter().filter(|m| m.role == Role::Learner).cloned().collect();
        view.pace == self.pace
            && view.active().map(|m| m.worker).eq(self.active.iter().map(|m| m.worker))
            && ids(&learners) == ids(&self.learners)
    }
}

impl Job {
    /// None: nobody could be in a view, so the view in force stays for those who may come back.
    pub(crate) fn wanted(&mut self, cluster: &mut Cluster) -> Option<Wanted> {
        self.keep_out_other_numerics(cluster);
        let (stays, leaves) = self.active_left(cluster);
        if stays.is_empty() && leaves.is_empty() {
            return self.gather(cluster);
        }
        self.gather_since = None;
        let view = self.view.as_ref().expect("only a view has active members");
        let mut active = stays;
        active.extend(view.members.iter().filter(|m| m.role == Role::Learner).filter_map(|m| {
            let (_, slot) = self.slot_of(m.worker)?;
            let is_due = !slot.is_leaving() && slot.fit()?.has_caught_up(view.epoch);
            is_due.then(|| ViewMember { role: Role::Active, ..m.clone() })
        }));
        let mut pace = Pace::Run;
        if active.len() < usize::from(self.min) && !leaves.is_empty() {
            if self.heir_is_coming(&active, cluster) {
                active.extend(leaves);
            } else if active.is_empty() && !self.is_handed_over(&leaves, cluster) {
                (active, pace) = (leaves, Pace::Pause);
            }
        }
        if active.len() < usize::from(self.min) {
            pace = Pace::Pause;
        }
        let learners = if active.is_empty() { Vec::new() } else { self.learners_beside(&active) };
        Some(Wanted { pace, active, learners })
    }

    /// The active members that can still be counted on: those that stay, and those that shall leave.
    fn active_left(&self, cluster: &Cluster) -> (Vec<ViewMember>, Vec<ViewMember>) {
        let (mut stays, mut leaves) = (Vec::new(), Vec::new());
        for member in self.view.iter().flat_map(View::active) {
            match self.slot_of(member.worker) {
                None if self.is_unheard(member.worker, cluster) => stays.push(member.clone()),
                None => {}
                Some((_, slot)) if slot.fit().is_none_or(|w| self.has_lost_state(w)) => {}
                Some((_, slot)) if slot.is_leaving() => leaves.push(member.clone()),
                Some(_) => stays.push(member.clone()),
            }
        }
        (stays, leaves)
    }

    /// A member that acts on the view in force and holds nothing cannot be what that view takes it for.
    fn has_lost_state(&self, worker: &Worker) -> bool {
        let acts_on_it = worker.epoch().is_some() && worker.epoch() == self.view.as_ref().map(|v| v.epoch);
        acts_on_it && (worker.at().is_none() || worker.phase() == Phase::Booting)
    }

    /// Whether a worker that stays may still take over from one that leaves.
    fn heir_is_coming(&self, active: &[ViewMember], cluster: &Cluster) -> bool {
        let is_active = |w: &Worker| active.iter().any(|m| m.worker == w.id);
        let heirs = self.slots.values().filter(|s| {
            !s.is_leaving() && s.worker.as_ref().is_none_or(|w| w.suspect_since.is_none() && !is_active(w))
        });
        heirs.count() > 0 && !self.hand_over_is_overdue(cluster)
    }

    /// Whether what the last ones hold is published, or has had its time.
    fn is_handed_over(&self, leaves: &[ViewMember], cluster: &Cluster) -> bool {
        let view = self.view.as_ref().expect("they are in a view");
        // Only the lowest rank publishes; what it published holds for all.
        let status = |m: &ViewMember| self.slot_of(m.worker)?.1.fit()?.status.as_ref();
        let published = leaves.iter().filter_map(|m| Some(status(m)?.published.as_ref()?.round)).max();
        let is_published = |m: &ViewMember| status(m).is_some_and(|s| s.at.is_some() && s.at <= published);
        let is_pausing =
            |m: &ViewMember| self.slot_of(m.worker).and_then(|(_, s)| s.fit()?.epoch()) == Some(view.epoch);
        let is_held = view.pace == Pace::Pause && leaves.iter().all(|m| is_pausing(m) && is_published(m));
        is_held || self.hand_over_is_overdue(cluster)
    }

    fn hand_over_is_overdue(&self, cluster: &Cluster) -> bool {
        self.slots.values().any(|slot| match slot.leave {
            Leave::HandsOver { since } => cluster.now.since(since) > cluster.config.hand_over_ms,
            _ => false,
        })
    }

    fn learners_beside(&self, active: &[ViewMember]) -> Vec<ViewMember> {
        let is_active = |w: &Worker| active.iter().any(|m| m.worker == w.id);
        self.fit()
            .filter(|(_, slot, worker)| !slot.is_leaving() && worker.is_up() && !is_active(worker))
            .map(|(_, slot, worker)| member(slot, worker, Role::Learner))
            .collect()
    }

    /// The first view, or the first after all were lost.
    fn gather(&mut self, cluster: &mut Cluster) -> Option<Wanted> {
        if self.has_begun && self.is_recovering(cluster.now) {
            return None;
        }
        let (ready, all_are_ready) = self.ready_of_one_class(cluster);
        if ready.len() < usize::from(self.min) || ready.is_empty() {
            self.gather_since = None;
            return None;
        }
        let since = *self.gather_since.get_or_insert(cluster.now);
        if !all_are_ready && cluster.now.since(since) < cluster.config.gather_ms {
            return None;
        }
        let highest = ready.iter().map(|r| r.at).max()?;
        if highest < self.published_round() && !self.refreshed(&ready, all_are_ready, cluster) {
            return None;
        }
        let take = |role: Role, is_wanted: &dyn Fn(&Ready) -> bool| -> Vec<ViewMember> {
            let mut those: Vec<&Ready> = ready.iter().filter(|r| is_wanted(r)).collect();
            those.sort_by_key(|r| (&r.node, r.slot));
            those.iter().map(|r| ViewMember { role, ..r.member.clone() }).collect()
        };
        let active = take(Role::Active, &|r| r.at == highest);
        let learners = take(Role::Learner, &|r| r.at < highest);
        self.numerics = ready.first().map(|r| r.class);
        self.roll_back_to(highest, cluster);
        let pace = if active.len() < usize::from(self.min) { Pace::Pause } else { Pace::Run };
        Some(Wanted { pace, active, learners })
    }

    /// Those that could be active in a first view, and whether nobody else is still to come. Where classes
    /// differ and it is time to begin, the smaller ones are kept out.
    fn ready_of_one_class(&mut self, cluster: &mut Cluster) -> (Vec<Ready>, bool) {
        let mut ready = self.ready();
        let is_late = self.gather_since.is_some_and(|s| cluster.now.since(s) >= cluster.config.gather_ms);
        let is_time = is_late || ready.len() == self.staying();
        if let Some(most) = most_common_class(&ready) {
            if is_time {
                ready.iter().filter(|r| r.class != most).for_each(|r| self.keep_out(r.slot, most, cluster));
            }
            ready.retain(|r| r.class == most);
        }
        let all_are_ready = ready.len() == self.staying();
        (ready, all_are_ready)
    }

    /// Those that could be active in a first view.
    fn ready(&self) -> Vec<Ready> {
        self.fit()
            .filter(|(_, slot, worker)| !slot.is_leaving() && worker.is_up())
            .filter_map(|(index, slot, worker)| {
                Some(Ready {
                    slot: index,
                    node: slot.node.clone(),
                    at: worker.at()?,
                    class: worker.status.as_ref()?.numerics,
                    member: member(slot, worker, Role::Active),
                })
            })
            .collect()
    }

    /// A checkpoint is known that is newer than what anybody here holds. Processes that began before it
    /// was published are started anew, once, to take it up; when that did not help it cannot be read,
    /// and the job goes on from what there is.
    fn refreshed(&mut self, ready: &[Ready], all_are_ready: bool, cluster: &mut Cluster) -> bool {
        let floor = self.published_round();
        let mut is_fresh = all_are_ready;
        for one in ready {
            let slot = self.slots.get_mut(&one.slot).expect("it is ready");
            if slot.refreshed_for == Some(floor) {
                continue;
            }
            is_fresh = false;
            slot.refreshed_for = Some(floor);
            slot.restart(cluster.now, cluster.now);
            self.attempts.insert(one.slot, slot.attempt);
            let (job, node, attempt) = (self.id.clone(), slot.node.clone(), slot.attempt);
            cluster.note(Note::Refreshed { job, slot: one.slot, attempt, node, round: floor });
        }
        is_fresh
    }

    /// From here on the job is where its new members are, which may be further back than it was.
    fn roll_back_to(&mut self, round: Round, cluster: &Cluster) {
        let at_round = self.fit().filter(|(_, _, w)| w.at() == Some(round));
        let step = at_round.filter_map(|(_, _, w)| w.status.as_ref().map(|s| s.step)).max();
        self.seen.round = round;
        self.seen.step = step.unwrap_or(self.seen.step);
        self.seen.mark = (round, cluster.now);
        self.seen.metrics = self.seen.metrics.filter(|m| m.step <= self.seen.step);
    }

    fn keep_out_other_numerics(&mut self, cluster: &mut Cluster) {
        let Some(class) = self.numerics else { return };
        let is_odd = |worker: &Worker| worker.is_up() && worker.status.as_ref().is_some_and(|s| s.numerics != class);
        let odd: Vec<u16> = self.fit().filter(|(_, _, w)| is_odd(w)).map(|(index, _, _)| index).collect();
        odd.into_iter().for_each(|slot| self.keep_out(slot, class, cluster));
    }

    /// A worker that computes other bits is of no use to this job, and neither is its node.
    fn keep_out(&mut self, index: u16, class: u64, cluster: &mut Cluster) {
        let Some(slot) = self.slots.get(&index) else { return };
        let Some(worker) = &slot.worker else { return };
        let has = worker.status.as_ref().map_or(0, |s| s.numerics);
        let (id, node) = (worker.id, slot.node.clone());
        let incarnation = cluster.nodes.get(&node).map_or(0, |n| n.incarnation);
        let cause = Cause::Numerics { has, job: class };
        cluster.note(Note::KeptOut { job: self.id.clone(), node: node.clone(), worker: id, cause });
        self.unfit.insert(node, incarnation);
        self.drop_slot(index);
    }
}

struct Ready {
    slot: u16,
    node: NodeId,
    at: Round,
    class: u64,
    member: ViewMember,
}

fn member(slot: &Slot, worker: &Worker, role: Role) -> ViewMember {
    let address = worker.status.as_ref().map(|s| s.address.clone()).unwrap_or_default();
    ViewMember { worker: worker.id, node: slot.node.clone(), address, role }
}

/// The class of most, then of those furthest on, then of the first slot.
fn most_common_class(ready: &[Ready]) -> Option<u64> {
    let mut classes: BTreeMap<u64, (usize, Round, std::cmp::Reverse<u16>)> = BTreeMap::new();
    for one in ready {
        let entry = classes.entry(one.class).or_insert((0, Round(0), std::cmp::Reverse(one.slot)));
        *entry = (entry.0 + 1, entry.1.max(one.at), entry.2.max(std::cmp::Reverse(one.slot)));
    }
    classes.into_iter().max_by_key(|(_, weight)| *weight).map(|(class, _)| class)
}
