//! The claims of `converge`: a table of single decisions, and a property over random histories.

use super::*;
use elastic_spec::facts::{JobWant, Launch, SlotWant};
use elastic_spec::{Digest, Term};
use proptest::prelude::*;

const GRACE: u64 = 100;

fn job(name: &str) -> JobId {
    JobId::parse(name).expect("a good name")
}

/// A want from (job, slot, attempt, leave) and acknowledged workers.
fn want(slots: &[(&str, u16, u32, bool)], acknowledged: &[u64]) -> NodeWant {
    let mut jobs: BTreeMap<&str, Vec<SlotWant>> = BTreeMap::new();
    for (name, slot, attempt, leave) in slots {
        jobs.entry(name).or_default().push(SlotWant { slot: *slot, attempt: *attempt, leave: *leave });
    }
    let launch = Launch { spec_json: "{}".into(), blobs: vec![], secret: vec![], run_dir: "/r".into(), program: None };
    let jobs = jobs
        .into_iter()
        .map(|(name, slots)| JobWant {
            job: job(name),
            config: Digest::default(),
            launch: launch.clone(),
            slots,
            view: None,
            restarts: 0,
        })
        .collect();
    NodeWant { term: Term(1), revision: 1, jobs, acknowledged: acknowledged.iter().map(|w| WorkerId(*w)).collect() }
}

fn process(worker: u64, slot: u16, attempt: u32, life: Life) -> Observed {
    Observed { worker: WorkerId(worker), place: (job("a"), slot), attempt, life }
}

struct Case {
    stance: Stance,
    want: Option<NodeWant>,
    processes: Vec<Observed>,
    started: Vec<(u16, u32)>,
    now_ms: u64,
}

impl Default for Case {
    fn default() -> Case {
        Case { stance: Stance::Serving, want: None, processes: vec![], started: vec![], now_ms: 1_000 }
    }
}

fn check(case: Case, expected: &[Action]) {
    let started = case.started.iter().map(|(slot, attempt)| ((job("a"), *slot), *attempt)).collect();
    let situation = Situation {
        stance: case.stance,
        want: case.want.as_ref(),
        processes: &case.processes,
        started: &started,
        grace_ms: GRACE,
    };
    assert_eq!(converge(case.now_ms, situation), expected);
}

fn spawn(slot: u16, attempt: u32) -> Action {
    Action::Spawn { place: (job("a"), slot), attempt }
}

#[test]
fn wanted_slots_without_a_process_are_started() {
    let want = Some(want(&[("a", 0, 1, false), ("a", 1, 1, false)], &[]));
    check(Case { want, ..Case::default() }, &[spawn(0, 1), spawn(1, 1)]);
}

#[test]
fn what_runs_as_wanted_is_left_alone() {
    let want = Some(want(&[("a", 0, 2, false)], &[]));
    check(
        Case { want, processes: vec![process(7, 0, 2, Life::Running)], started: vec![(0, 2)], ..Case::default() },
        &[],
    );
}

#[test]
fn before_a_coordinator_has_spoken_nothing_is_touched() {
    check(Case { processes: vec![process(7, 0, 1, Life::Running)], ..Case::default() }, &[]);
}

#[test]
fn an_attempt_that_ended_is_not_started_again() {
    let want = want(&[("a", 0, 1, false)], &[]);
    let ended = vec![process(7, 0, 1, Life::Ended)];
    check(Case { want: Some(want.clone()), processes: ended, started: vec![(0, 1)], ..Case::default() }, &[]);
    check(Case { want: Some(want), started: vec![(0, 1)], ..Case::default() }, &[]);
}

#[test]
fn a_higher_attempt_starts_beside_the_unacknowledged_end_of_the_last() {
    let want = Some(want(&[("a", 0, 2, false)], &[]));
    check(
        Case { want, processes: vec![process(7, 0, 1, Life::Ended)], started: vec![(0, 1)], ..Case::default() },
        &[spawn(0, 2)],
    );
}

#[test]
fn a_superseded_process_is_killed_before_its_successor_starts() {
    let want = Some(want(&[("a", 0, 2, false)], &[]));
    let case = |life| Case {
        want: want.clone(),
        processes: vec![process(7, 0, 1, life)],
        started: vec![(0, 1)],
        ..Case::default()
    };
    check(case(Life::Running), &[Action::Kill(WorkerId(7))]);
    check(case(Life::Killed), &[]);
}

#[test]
fn a_slot_that_is_no_longer_wanted_gets_sigterm_then_sigkill_after_the_grace() {
    let case = |life, now_ms| Case {
        want: Some(want(&[], &[])),
        processes: vec![process(7, 0, 1, life)],
        started: vec![(0, 1)],
        now_ms,
        ..Case::default()
    };
    check(case(Life::Running, 0), &[Action::Terminate(WorkerId(7))]);
    check(case(Life::Terminated { since_ms: 0 }, GRACE - 1), &[]);
    check(case(Life::Terminated { since_ms: 0 }, GRACE), &[Action::Kill(WorkerId(7))]);
    check(case(Life::Killed, 9 * GRACE), &[]);
}

#[test]
fn an_acknowledged_end_is_forgotten_and_a_running_process_never() {
    let want = Some(want(&[("a", 1, 1, false)], &[7, 8]));
    check(
        Case {
            want,
            processes: vec![process(7, 0, 1, Life::Ended), process(8, 1, 1, Life::Running)],
            started: vec![(0, 1), (1, 1)],
            ..Case::default()
        },
        &[Action::Forget(WorkerId(7))],
    );
}

#[test]
fn a_slot_that_shall_leave_is_neither_started_nor_stopped() {
    let want = want(&[("a", 0, 1, true)], &[]);
    check(Case { want: Some(want.clone()), ..Case::default() }, &[]);
    check(
        Case {
            want: Some(want),
            processes: vec![process(7, 0, 1, Life::Running)],
            started: vec![(0, 1)],
            ..Case::default()
        },
        &[],
    );
}

#[test]
fn a_draining_node_starts_nothing_and_stops_nothing_that_is_wanted() {
    let want = Some(want(&[("a", 0, 1, false), ("a", 1, 1, false)], &[]));
    check(
        Case {
            stance: Stance::Draining,
            want,
            processes: vec![process(7, 0, 1, Life::Running)],
            started: vec![(0, 1)],
            ..Case::default()
        },
        &[],
    );
}

#[test]
fn a_closing_node_stops_all_even_without_a_coordinator() {
    check(
        Case { stance: Stance::Closing, processes: vec![process(7, 0, 1, Life::Running)], ..Case::default() },
        &[Action::Terminate(WorkerId(7))],
    );
}

#[test]
fn a_place_that_was_given_up_may_start_at_the_same_attempt_when_wanted_again() {
    let mut started = BTreeMap::from([((job("a"), 0), 1)]);
    remember(&mut started, &want(&[("a", 0, 1, false)], &[]), &[]);
    assert_eq!(started.len(), 1, "still wanted: still remembered");
    remember(&mut started, &want(&[], &[]), &[process(7, 0, 1, Life::Running)]);
    assert_eq!(started.len(), 1, "still occupied: still remembered");
    remember(&mut started, &want(&[], &[]), &[]);
    assert!(started.is_empty());
}

/// A node whose actions are carried out at once, and whose processes obey SIGTERM or do not.
#[derive(Default)]
struct World {
    now_ms: u64,
    processes: Vec<Observed>,
    started: BTreeMap<Place, u32>,
    want: Option<NodeWant>,
    drawn: u64,
}

impl World {
    fn decide(&mut self) -> Vec<Action> {
        let situation = Situation {
            stance: Stance::Serving,
            want: self.want.as_ref(),
            processes: &self.processes,
            started: &self.started,
            grace_ms: GRACE,
        };
        converge(self.now_ms, situation)
    }

    fn act(&mut self) {
        for action in self.decide() {
            match action {
                Action::Spawn { place, attempt } => {
                    let alive = |p: &Observed| p.place == place && p.life != Life::Ended;
                    assert!(!self.processes.iter().any(alive), "one process lives in a place");
                    let last = self.started.insert(place.clone(), attempt);
                    assert!(last.is_none_or(|last| last < attempt), "an attempt starts once");
                    self.drawn += 1;
                    let life = Life::Running;
                    self.processes.push(Observed { worker: WorkerId(self.drawn), place, attempt, life });
                }
                Action::Terminate(worker) => self.set(worker, Life::Terminated { since_ms: self.now_ms }),
                Action::Kill(worker) => self.set(worker, Life::Killed),
                Action::Forget(worker) => self.processes.retain(|p| p.worker != worker),
            }
        }
        assert_eq!(self.decide(), vec![], "once carried out, nothing more is to be done at the same time");
    }

    fn set(&mut self, worker: WorkerId, life: Life) {
        let process = self.processes.iter_mut().find(|p| p.worker == worker).expect("actions name processes");
        assert!(process.life != Life::Ended, "no signal is sent to what has ended");
        process.life = life;
    }

    /// Everybody who was killed ends; the clock passes the grace time.
    fn settle(&mut self) {
        for _ in 0..4 {
            for process in &mut self.processes {
                if process.life == Life::Killed {
                    process.life = Life::Ended;
                }
            }
            self.now_ms += GRACE;
            self.act();
        }
    }
}

#[derive(Clone, Debug)]
enum Turn {
    Want(Vec<(u8, u16, u32, bool)>),
    End(usize),
    Acknowledge,
    Wait(u64),
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let slots = prop::collection::vec((0..2u8, 0..3u16, 1..4u32, prop::bool::weighted(0.1)), 0..5);
    let turn = prop_oneof![
        slots.prop_map(Turn::Want),
        (0..8usize).prop_map(Turn::End),
        Just(Turn::Acknowledge),
        (0..2 * GRACE).prop_map(Turn::Wait),
    ];
    prop::collection::vec(turn, 0..40)
}

proptest! {
    #[test]
    fn any_history_ends_with_exactly_the_wanted_processes_alive_or_ended_by_themselves(turns in turns()) {
        let mut world = World::default();
        for turn in turns {
            match turn {
                Turn::Want(slots) => {
                    let unique: BTreeMap<_, _> =
                        slots.into_iter().map(|(j, s, a, l)| ((if j == 0 { "a" } else { "b" }, s), (a, l))).collect();
                    let slots: Vec<_> = unique.into_iter().map(|((j, s), (a, l))| (j, s, a, l)).collect();
                    let want = want(&slots, &[]);
                    remember(&mut world.started, &want, &world.processes);
                    world.want = Some(want);
                }
                Turn::End(at) => {
                    let count = world.processes.len().max(1);
                    if let Some(process) = world.processes.get_mut(at % count) {
                        process.life = Life::Ended;
                    }
                }
                Turn::Acknowledge => {
                    let ended = world.processes.iter().filter(|p| p.life == Life::Ended).map(|p| p.worker);
                    let ended: Vec<_> = ended.collect();
                    if let Some(want) = &mut world.want {
                        want.acknowledged = ended;
                    }
                }
                Turn::Wait(ms) => world.now_ms += ms,
            }
            world.act();
        }
        world.settle();
        let wanted = wanted_attempts(world.want.as_ref());
        for process in world.processes.iter().filter(|p| p.life != Life::Ended) {
            let (attempt, _) = wanted[&process.place];
            prop_assert!(process.attempt >= attempt, "{process:?} is superseded");
        }
        for (place, (attempt, leave)) in wanted {
            let was_started = world.started.get(&place).is_some_and(|last| *last >= attempt);
            prop_assert!(leave || was_started, "{place:?} was started");
        }
    }
}
