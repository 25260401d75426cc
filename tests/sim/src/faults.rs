//! What goes wrong, and when.

use crate::world::{Happening, World};
use elastic_spec::WorkerId;
use elastic_spec::facts::End;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillWorker,
    /// Killed after it has sent so many reduced frames of a round.
    KillOwner(u64),
    LoseNode,
    StopWorker,
    SpinTrainer,
    CrashLeader,
    /// The leader dies in the n-th change that concerns several nodes, when half of them were told.
    CrashLeaderAfter(u64),
    StopLeader,
    BreakLink,
    CutPair,
    CutNodeFromLeader,
    AddNode,
    DrainNode,
}

impl World {
    /// Draws a schedule of faults over `span` microseconds.
    pub(crate) fn plan_faults(&mut self, span: u64) {
        let count = self.chance.between(0, 12);
        for _ in 0..count {
            let fault = match self.chance.between(0, 21) {
                0..=4 => Fault::KillWorker,
                5..=7 => Fault::KillOwner(self.chance.between(1, 12)),
                8..=9 => Fault::LoseNode,
                10..=11 => Fault::StopWorker,
                12 => Fault::SpinTrainer,
                13 => Fault::CrashLeader,
                14 => Fault::CrashLeaderAfter(self.chance.between(1, 3)),
                15 => Fault::StopLeader,
                16 => Fault::BreakLink,
                17 => Fault::CutPair,
                18 => Fault::CutNodeFromLeader,
                19..=20 => Fault::AddNode,
                _ => Fault::DrainNode,
            };
            let when = self.chance.between(0, span);
            self.at(when, Happening::Strike(fault));
        }
    }

    pub(crate) fn crash_leader(&mut self) {
        self.leaders.pop();
        let back = self.chance.between(10_000, 4_000_000);
        self.at(back, Happening::NewLeader);
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        let workers: Vec<WorkerId> = self.processes.keys().copied().collect();
        let worker = self.chance.pick(&workers).copied();
        let nodes: Vec<usize> = (0..self.nodes.len()).filter(|n| self.nodes[*n].is_up).collect();
        let node = self.chance.pick(&nodes).copied();
        self.trace(|| format!("FAULT {fault:?} {}", worker.map(|w| w.to_string()).unwrap_or_default()));
        *self
            .counts
            .faults
            .entry(format!("{fault:?}").split('(').next().unwrap_or_default().to_string())
            .or_default() += 1;
        match (fault, worker, node) {
            // The oracle knows no hangs and never dies.
            (Fault::SpinTrainer | Fault::CrashLeader | Fault::CrashLeaderAfter(_) | Fault::StopLeader, _, _)
                if self.oracle.is_some() => {}
            (Fault::KillWorker, Some(worker), _) => self.end(worker, End::Signal(9)),
            (Fault::KillOwner(frames), _, _) => self.kill_after_reduced = Some(frames),
            (Fault::LoseNode, _, Some(node)) => {
                self.lose_node(node);
                let back = self.chance.between(50_000, 3_000_000);
                self.at(back, Happening::NodeReturns(node));
            }
            (Fault::StopWorker, Some(worker), _) => {
                let for_us = self.chance.between(10_000, 5_000_000);
                if let Some(process) = self.processes.get_mut(&worker) {
                    process.stopped_until = self.now + for_us;
                }
            }
            (Fault::SpinTrainer, Some(worker), _) => {
                if let Some(process) = self.processes.get_mut(&worker) {
                    process.hangs = true;
                }
            }
            (Fault::CrashLeader, _, _) => self.crash_leader(),
            (Fault::CrashLeaderAfter(orders), _, _) => self.crash_after_orders = Some(orders),
            (Fault::StopLeader, _, _) => {
                let for_us = self.chance.between(10_000, 4_000_000);
                let succeeded = self.chance.permille(500);
                if let Some(leader) = self.leaders.last_mut() {
                    leader.stopped_until = self.now + for_us;
                }
                if succeeded {
                    let takes = self.chance.between(10_000, 2_000_000);
                    self.at(takes, Happening::NewLeader);
                }
            }
            (Fault::BreakLink, Some(a), _) => {
                if let Some(b) = self.chance.pick(&workers).copied().filter(|b| *b != a) {
                    self.break_link(a, b);
                }
            }
            (Fault::CutPair, Some(a), _) => {
                if let Some(b) = self.chance.pick(&workers).copied().filter(|b| *b != a) {
                    let for_us = self.chance.between(10_000, 2_000_000);
                    self.cuts.insert((a.min(b), a.max(b)), self.now + for_us);
                }
            }
            (Fault::CutNodeFromLeader, _, Some(node)) => {
                let for_us = self.chance.between(10_000, 4_000_000);
                self.nodes[node].cut_until = self.now + for_us;
            }
            (Fault::AddNode, _, _) => self.add_node(),
            (Fault::DrainNode, _, Some(node)) if nodes.len() > 1 => {
                self.nodes[node].draining = true;
                let back = self.chance.between(500_000, 3_000_000);
                self.at(back, Happening::NodeReturns(node));
            }
            _ => {}
        }
    }
}
