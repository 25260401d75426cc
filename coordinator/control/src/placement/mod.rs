//! Decides where workers run: a hard filter, then an ordered score (`score`), within each job's share
//! (`share`).
//!
//! A job begins only when its minimum fits at once. It grows when room appears and gives room back,
//! by letting workers go in order, when another job is short of its share. Where nobody wants the room
//! nothing moves.

mod score;
mod share;

use crate::job::{Cluster, Job};
use crate::node::Node;
use crate::note::Note;
use crate::slot::Slot;
use elastic_spec::view::Role;
use elastic_spec::{JobId, NodeId};
use score::{Dispensable, InView, NumericsFit, Score};
use share::{Claim, share};
use std::cmp::Reverse;
use std::collections::BTreeMap;

/// Room on the nodes, as of now.
#[derive(Debug, Default)]
struct Room {
    /// Slots that count towards shares.
    total: usize,
    /// Where one more worker could start now, and how many.
    free: BTreeMap<NodeId, usize>,
    occupied: BTreeMap<NodeId, usize>,
    /// Slots that leavers will give back.
    coming: usize,
}

pub(crate) fn place(jobs: &mut BTreeMap<JobId, Job>, cluster: &mut Cluster) {
    let mut queue: Vec<(u64, JobId)> = jobs.values().filter(|j| j.is_live()).map(|j| (j.seq, j.id.clone())).collect();
    queue.sort();
    let queue: Vec<JobId> = queue.into_iter().map(|(_, id)| id).collect();
    shrink_to_nodes(jobs, &queue, cluster);
    let mut room = Room::new(jobs, cluster);
    let claims: Vec<Claim> = queue.iter().map(|id| jobs[id].claim(cluster)).collect();
    let shares: BTreeMap<JobId, usize> = queue.iter().cloned().zip(share(&claims, room.total)).collect();
    give_back(jobs, &queue, &shares, &room, cluster);
    for id in &queue {
        let job = jobs.get_mut(id).expect("it is in the queue");
        job.grow(shares[id], &mut room, cluster);
    }
}

/// Why a job that waits for its first workers does so.
pub(crate) fn why_it_waits(job: &Job, jobs: &BTreeMap<JobId, Job>, cluster: &Cluster) -> String {
    let room = Room::new(jobs, cluster);
    let min = usize::from(job.min);
    let staying = job.staying();
    let unfit = job.unfit.len();
    let other_bits =
        if unfit > 0 { format!("; {unfit} nodes compute other bits and are left out") } else { String::new() };
    let capable: usize = job.fit_nodes(cluster).map(|n| job.of_node(usize::from(n.slots))).sum();
    if staying >= min {
        let ready = job.fit().filter(|(_, slot, w)| !slot.is_leaving() && w.is_up()).count();
        return format!("starts: {ready} of min_workers = {min} are ready{other_bits}");
    }
    if room.total == 0 {
        return format!("waits for nodes: none has a slot to give{other_bits}");
    }
    if capable + if job.is_command() { staying } else { 0 } < min {
        if job.is_command() {
            return format!("needs {min} nodes at once, there are {}", capable + staying);
        }
        return format!("needs min_workers = {min} slots at once, all nodes together have {capable}{other_bits}");
    }
    let free: usize = room.free.values().sum();
    format!("waits for {} of min_workers = {min}: {free} of {} slots are free{other_bits}", min - staying, room.total)
}

impl Room {
    fn new(jobs: &BTreeMap<JobId, Job>, cluster: &Cluster) -> Room {
        let mut room = Room::default();
        let mut held: BTreeMap<&NodeId, usize> = BTreeMap::new();
        let live = || jobs.values().filter(|j| j.is_live());
        for slot in live().flat_map(|j| j.slots.values()) {
            *room.occupied.entry(slot.node.clone()).or_default() += 1;
            match slot.is_leaving() {
                true => room.coming += 1,
                false => *held.entry(&slot.node).or_default() += 1,
            }
        }
        for node in cluster.nodes.values() {
            let is_wanted = |(job, slot): &(JobId, u16)| {
                live().find(|j| j.id == *job).and_then(|j| j.slots.get(slot)).is_some_and(|s| s.node == node.id)
            };
            let unwanted = node.running.keys().filter(|place| !is_wanted(place)).count();
            let occupied = room.occupied.entry(node.id.clone()).or_default();
            *occupied += unwanted;
            room.coming += unwanted;
            let held = held.get(&node.id).copied().unwrap_or(0);
            if !node.is_usable() || is_quarantined(node, cluster) {
                room.total += held;
                continue;
            }
            room.total += usize::from(node.slots).max(held);
            room.free.insert(node.id.clone(), usize::from(node.slots).saturating_sub(*occupied));
        }
        room
    }
}

/// A node that causes far more restarts than its best peer gets no more work. A node alone has no peer,
/// and where all fail alike the job is at fault.
fn is_quarantined(node: &Node, cluster: &Cluster) -> bool {
    let strikes = |n: &Node| n.strikes(cluster.unix_ms, cluster.config);
    let peers = cluster.nodes.values().filter(|n| n.id != node.id && n.is_usable());
    let least = peers.map(strikes).min();
    least.is_some_and(|least| strikes(node) >= least + cluster.config.quarantine_strikes)
}

/// A node may come back with fewer slots than it had: the newest jobs lose theirs first.
fn shrink_to_nodes(jobs: &mut BTreeMap<JobId, Job>, queue: &[JobId], cluster: &mut Cluster) {
    let sizes: Vec<(NodeId, usize)> =
        cluster.nodes.values().filter(|n| n.is_known()).map(|n| (n.id.clone(), usize::from(n.slots))).collect();
    for (node, slots) in sizes {
        let on_node = |job: &Job| job.slots.values().filter(|s| s.node == node).count();
        let held: usize = queue.iter().map(|id| on_node(&jobs[id])).sum();
        let mut surplus = held.saturating_sub(slots);
        for id in queue.iter().rev() {
            let job = jobs.get_mut(id).expect("it is in the queue");
            let staying = job.slots.iter().filter(|(_, s)| s.node == node && !s.is_leaving());
            let mut those: Vec<(Dispensable, u16)> =
                staying.map(|(index, slot)| (job.dispensable(*index, slot, cluster), *index)).collect();
            those.sort();
            for (_, index) in those.into_iter().take(surplus) {
                job.let_go(index, "its node has fewer slots than before", cluster);
                surplus -= 1;
            }
        }
    }
}

/// Lets workers go where a job is above its maximum, or above its share while another is short of its own.
fn give_back(
    jobs: &mut BTreeMap<JobId, Job>,
    queue: &[JobId],
    shares: &BTreeMap<JobId, usize>,
    room: &Room,
    cluster: &mut Cluster,
) {
    let now = cluster.now;
    let is_short = |job: &Job| !job.is_recovering(now) && now >= job.hold_until;
    let short: usize =
        jobs.values().filter(|j| j.is_live() && is_short(j)).map(|j| shares[&j.id].saturating_sub(j.staying())).sum();
    let free: usize = room.free.values().sum();
    let mut needed = short.saturating_sub(free + room.coming);
    for id in queue.iter().rev() {
        let job = jobs.get_mut(id).expect("it is in the queue");
        let above_max = job.staying().saturating_sub(usize::from(job.max));
        let above_share = job.staying().saturating_sub(shares[id].max(usize::from(job.min)));
        let lent = above_share.saturating_sub(above_max).min(needed);
        needed -= lent;
        for _ in 0..above_max {
            job.let_go_of_one("scaled down", cluster);
        }
        for _ in 0..lent {
            job.let_go_of_one("other jobs are short of their share", cluster);
        }
    }
}

impl Job {
    fn claim(&self, cluster: &Cluster) -> Claim {
        let max = usize::from(self.max.saturating_sub(self.owed).max(self.min));
        // More than one a node it cannot use.
        let nodes = || self.fit_nodes(cluster).count() + self.staying();
        let max = if self.is_command() { max.min(nodes().max(usize::from(self.min))) } else { max };
        let has_begun = self.has_begun || self.staying() > 0 || self.is_recovering(cluster.now);
        Claim { min: usize::from(self.min), max, has_begun }
    }

    /// Nodes that may run this job at all.
    fn fit_nodes<'a>(&'a self, cluster: &'a Cluster) -> impl Iterator<Item = &'a Node> {
        cluster
            .nodes
            .values()
            .filter(|n| n.is_usable() && self.unfit.get(&n.id) != Some(&n.incarnation) && !is_quarantined(n, cluster))
            // A command has one group of processes on a node.
            .filter(|n| !self.is_command() || self.slots.values().all(|s| s.node != n.id))
    }

    /// How many workers a node with so much room could take.
    fn of_node(&self, free: usize) -> usize {
        if self.is_command() { free.min(1) } else { free }
    }

    fn grow(&mut self, share: usize, room: &mut Room, cluster: &mut Cluster) {
        if self.is_recovering(cluster.now) || cluster.now < self.hold_until || self.staying() >= share {
            return;
        }
        let free: usize = self.fit_nodes(cluster).filter_map(|n| room.free.get(&n.id)).map(|f| self.of_node(*f)).sum();
        if self.staying() + free < usize::from(self.min) && self.staying() == 0 {
            return;
        }
        while self.staying() < share {
            let Some(score) = self.best_node(room, cluster) else { return };
            let node = score.node;
            let slot = (0..).find(|i| !self.slots.contains_key(i)).expect("there are fewer slots than numbers");
            let attempt = self.attempts.get(&slot).map_or(0, |last| last + 1);
            self.attempts.insert(slot, attempt);
            *room.free.get_mut(&node).expect("it has room") -= 1;
            *room.occupied.entry(node.clone()).or_default() += 1;
            self.slots.insert(slot, Slot::new(node.clone(), attempt, cluster.now));
            cluster.note(Note::Placed { job: self.id.clone(), slot, attempt, node });
        }
    }

    fn best_node(&self, room: &Room, cluster: &Cluster) -> Option<Score> {
        let with_room = self.fit_nodes(cluster).filter(|n| room.free.get(&n.id).is_some_and(|free| *free > 0));
        with_room.map(|node| self.score(node, room, cluster)).min()
    }

    fn score(&self, node: &Node, room: &Room, cluster: &Cluster) -> Score {
        let numerics = match (self.numerics, node.numerics) {
            (Some(job), Some(node)) if job == node => NumericsFit::Same,
            (Some(_), Some(_)) => NumericsFit::Other,
            _ => NumericsFit::Unknown,
        };
        Score {
            numerics,
            strikes: node.strikes(cluster.unix_ms, cluster.config),
            of_this_job: self.on_node(&node.id),
            occupied: room.occupied.get(&node.id).copied().unwrap_or(0),
            node: node.id.clone(),
        }
    }

    fn on_node(&self, node: &NodeId) -> usize {
        self.slots.values().filter(|s| s.node == *node && !s.is_leaving()).count()
    }

    fn let_go_of_one(&mut self, why: &'static str, cluster: &mut Cluster) {
        let staying = self.slots.iter().filter(|(_, slot)| !slot.is_leaving());
        let least =
            staying.min_by_key(|(index, slot)| self.dispensable(**index, slot, cluster)).map(|(index, _)| *index);
        if let Some(index) = least {
            self.let_go(index, why, cluster);
        }
    }

    fn dispensable(&self, index: u16, slot: &Slot, cluster: &Cluster) -> Dispensable {
        let role = slot.fit().and_then(|w| self.view.as_ref()?.member(w.id)).map(|m| m.role);
        let strikes = cluster.nodes.get(&slot.node).map_or(0, |n| n.strikes(cluster.unix_ms, cluster.config));
        Dispensable {
            place: match role {
                None => InView::Not,
                Some(Role::Learner) => InView::Learner,
                Some(Role::Active) => InView::Active,
            },
            strikes: Reverse(strikes),
            of_this_job: Reverse(self.on_node(&slot.node)),
            slot: Reverse(index),
        }
    }
}
