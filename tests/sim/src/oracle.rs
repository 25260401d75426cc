//! A coordinator without reason: it sees every process at once and makes views as chance will have it:
//! any split of the shards, false suspicions, needless changes. Members must cope with every legal view,
//! not only with those that the control machine happens to make.

use crate::world::{Happening, World};
use elastic_spec::facts::{JobWant, Launch, NodeWant, Phase, SlotWant};
use elastic_spec::view::{Pace, Role, View, ViewMember};
use elastic_spec::{Digest, Epoch, JobId, Rank, Term, WorkerId};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Oracle {
    view: Option<View>,
    epoch: u64,
    revision: u64,
    attempts: BTreeMap<(usize, u16), u32>,
    pub is_calm: bool,
    pub is_over: bool,
}

const EVERY_US: u64 = 20_000;

impl World {
    pub(crate) fn oracle(&mut self) {
        let Some(mut oracle) = self.oracle.take() else { return };
        let job = JobId::parse("job").expect("a good name");
        oracle.is_over |= self.has_finished;
        let statuses: BTreeMap<WorkerId, _> =
            self.processes.keys().filter_map(|id| Some((*id, self.status_of(*id)?))).collect();
        let mut view = oracle.view.clone();
        let mut is_changed = false;
        let is_upset = |world: &mut World, permille| !oracle.is_calm && world.chance.permille(permille);
        if let Some(view) = &mut view {
            let before = view.members.len();
            view.members.retain(|m| statuses.contains_key(&m.worker));
            if view.world_size() == 0 {
                view.members.clear();
            }
            let actives = view.world_size();
            if actives > 1 && is_upset(self, 20) {
                let victim = self.chance.between(0, u64::from(actives) - 1) as usize;
                view.members.remove(victim);
            }
            is_changed |= view.members.len() != before;
            for member in view.members.iter_mut().filter(|m| m.role == Role::Learner) {
                if statuses[&member.worker].phase == Phase::CaughtUp {
                    member.role = Role::Active;
                    is_changed = true;
                }
            }
        }
        let mut ready: Vec<WorkerId> =
            statuses.iter().filter(|(_, s)| s.phase == Phase::Ready).map(|(id, _)| *id).collect();
        ready.sort_by_key(|id| std::cmp::Reverse(statuses[id].at));
        let is_running = view.as_ref().is_some_and(|v| v.world_size() > 0);
        let newest = ready.iter().filter_map(|id| statuses[id].at).max();
        let max = usize::from(self.config.shards).min(5);
        let mut members = view.map(|v| v.members).unwrap_or_default();
        for id in ready.iter().filter(|id| !members.iter().any(|m| m.worker == **id)).collect::<Vec<_>>() {
            if members.len() >= max || (oracle.epoch == 0 && self.now < 70_000) {
                continue;
            }
            let role = if !is_running && statuses[id].at == newest { Role::Active } else { Role::Learner };
            let node = self.nodes[self.processes[id].node].name.clone();
            members.push(ViewMember { worker: *id, node, address: statuses[id].address.clone(), role });
            is_changed = true;
        }
        is_changed |= is_upset(self, 20);
        if is_changed {
            members.sort_by_key(|m| m.role == Role::Learner);
            let world = members.iter().filter(|m| m.role == Role::Active).count() as u64;
            let skew = self.chance.permille(500);
            let v = u64::from(self.config.shards);
            let rank = |world_: &mut World, s: u64| if skew { world_.chance.draw() % world } else { s * world / v };
            let shard_map = if world == 0 { Vec::new() } else { (0..v).map(|s| Rank(rank(self, s) as u16)).collect() };
            oracle.epoch += 1;
            let pace = if is_upset(self, 50) { Pace::Pause } else { Pace::Run };
            oracle.view = Some(View { job: job.clone(), epoch: Epoch::new(1, oracle.epoch), pace, members, shard_map });
        } else if oracle.view.as_ref().is_some_and(|v| v.pace == Pace::Pause) {
            let view = oracle.view.as_mut().expect("just seen");
            oracle.epoch += 1;
            (view.pace, view.epoch) = (Pace::Run, Epoch::new(1, oracle.epoch));
        }
        oracle.revision += 1;
        for node in 0..self.nodes.len() {
            for slot in 0..self.nodes[node].slots {
                let key = (job.clone(), slot);
                let run = self.nodes[node].slots_run.get(&key);
                if run.is_none_or(|r| !self.processes.contains_key(&r.worker)) {
                    *oracle.attempts.entry((node, slot)).or_default() += 1;
                }
            }
            let slots = (0..self.nodes[node].slots)
                .filter(|_| !oracle.is_over)
                .map(|slot| SlotWant {
                    slot,
                    attempt: oracle.attempts.get(&(node, slot)).copied().unwrap_or(1),
                    leave: false,
                })
                .collect();
            let launch = Launch {
                spec_json: self.spec_json.clone(),
                blobs: Vec::new(),
                secret: Vec::new(),
                run_dir: String::new(),
                program: None,
            };
            let want = NodeWant {
                term: Term(1),
                revision: oracle.revision,
                jobs: vec![JobWant {
                    job: job.clone(),
                    config: Digest::default(),
                    launch,
                    slots,
                    view: oracle.view.clone(),
                    restarts: 0,
                }],
                acknowledged: Vec::new(),
            };
            if !self.chance.permille(self.net.loss) {
                let delay = self.net.delay(&mut self.chance);
                self.at(delay, Happening::WantArrives(node, Box::new(want)));
            }
        }
        self.oracle = Some(oracle);
        self.at(EVERY_US, Happening::OracleTick);
    }
}
