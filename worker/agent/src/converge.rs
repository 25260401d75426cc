//! Decides what a node must do so that its processes become what the coordinator wants.
//!
//! Pure: the wanted state, the processes that are there and the time go in, actions come out. Carrying
//! them out, and noticing that a process has ended, is `processes`' business. Deciding the same twice is
//! harmless: an action that was not (or not yet) carried out is simply decided again.

use elastic_spec::facts::NodeWant;
use elastic_spec::{JobId, WorkerId};
use std::collections::BTreeMap;

/// Where a worker process runs: at most one process lives in a place at a time.
pub type Place = (JobId, u16);

/// A worker process that runs, or whose end the coordinator has not taken note of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    pub worker: WorkerId,
    pub place: Place,
    pub attempt: u32,
    pub life: Life,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    Running,
    /// SIGTERM was sent.
    Terminated {
        since_ms: u64,
    },
    /// SIGKILL was sent; the end will be noticed.
    Killed,
    Ended,
}

/// Whether the node itself goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stance {
    Serving,
    /// Nothing is started any more; what runs is left to the coordinator's orders.
    Draining,
    /// All must end now.
    Closing,
}

#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    pub stance: Stance,
    /// None until a coordinator has spoken: then nothing is touched.
    pub want: Option<&'a NodeWant>,
    pub processes: &'a [Observed],
    /// The highest attempt started in each place that is still wanted.
    pub started: &'a BTreeMap<Place, u32>,
    pub grace_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Spawn {
        place: Place,
        attempt: u32,
    },
    /// SIGTERM to the process group.
    Terminate(WorkerId),
    /// SIGKILL to the process group.
    Kill(WorkerId),
    /// The end was acknowledged: no longer reported.
    Forget(WorkerId),
}

/// What to do now.
pub fn converge(now_ms: u64, situation: Situation<'_>) -> Vec<Action> {
    let wanted = wanted_attempts(situation.want);
    let mut actions = Vec::new();
    for process in situation.processes {
        let action = match process.life {
            Life::Ended => forget(process, situation.want),
            Life::Killed => None,
            Life::Running | Life::Terminated { .. } => match (situation.stance, situation.want.is_some()) {
                (Stance::Closing, _) => stop(process, now_ms, situation.grace_ms),
                (_, false) => None,
                (_, true) => match wanted.get(&process.place) {
                    None => stop(process, now_ms, situation.grace_ms),
                    // The coordinator has given this process up (it hangs, say): it gets no grace.
                    Some((attempt, _)) if *attempt > process.attempt => Some(Action::Kill(process.worker)),
                    Some(_) => None,
                },
            },
        };
        actions.extend(action);
    }
    if situation.stance == Stance::Serving {
        actions.extend(spawns(&wanted, situation));
    }
    actions
}

/// The memory of started attempts after a want came: places that are neither wanted nor occupied drop out.
pub fn remember(started: &mut BTreeMap<Place, u32>, want: &NodeWant, processes: &[Observed]) {
    let wanted = wanted_attempts(Some(want));
    started.retain(|place, _| wanted.contains_key(place) || processes.iter().any(|p| p.place == *place));
}

/// (attempt, shall leave) of each wanted place.
fn wanted_attempts(want: Option<&NodeWant>) -> BTreeMap<Place, (u32, bool)> {
    let jobs = want.map_or(&[][..], |w| &w.jobs);
    let slots = jobs
        .iter()
        .flat_map(|job| job.slots.iter().map(|slot| ((job.job.clone(), slot.slot), (slot.attempt, slot.leave))));
    slots.collect()
}

fn spawns<'a>(
    wanted: &'a BTreeMap<Place, (u32, bool)>,
    situation: Situation<'a>,
) -> impl Iterator<Item = Action> + use<'a> {
    let occupied = move |place: &Place| situation.processes.iter().any(|p| p.place == *place && p.life != Life::Ended);
    let is_new = move |place: &Place, attempt: u32| situation.started.get(place).is_none_or(|last| *last < attempt);
    wanted
        .iter()
        .filter(move |(place, (attempt, leave))| !leave && is_new(place, *attempt) && !occupied(place))
        .map(|(place, (attempt, _))| Action::Spawn { place: place.clone(), attempt: *attempt })
}

/// SIGTERM first, SIGKILL after the grace time.
fn stop(process: &Observed, now_ms: u64, grace_ms: u64) -> Option<Action> {
    match process.life {
        Life::Running => Some(Action::Terminate(process.worker)),
        Life::Terminated { since_ms } if now_ms >= since_ms + grace_ms => Some(Action::Kill(process.worker)),
        _ => None,
    }
}

fn forget(process: &Observed, want: Option<&NodeWant>) -> Option<Action> {
    let acknowledged = want.is_some_and(|w| w.acknowledged.contains(&process.worker));
    acknowledged.then_some(Action::Forget(process.worker))
}

#[cfg(test)]
mod tests;
