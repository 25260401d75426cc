//! Jobs that run commands: when a generation ends, when the next begins, what counts as a failure.

use elastic_control::{Config, Effects, Event, Machine, Millis, Record, Refusal, Reply, RequestId};
use elastic_spec::api::{JobState, JobStatus, Submit};
use elastic_spec::facts::{End, NodeReport, NodeWant, Phase, Process, ProcessFailure, WorkerReport, WorkerStatus};
use elastic_spec::job::{ParseContext, parse};
use elastic_spec::view::{Pace, View};
use elastic_spec::{Epoch, JobId, NodeId, Step, Term, WorkerId};
use std::collections::BTreeMap;

/// A node whose group does what it is told, and what a test makes it do.
struct Node {
    incarnation: u64,
    slots: u16,
    want: Option<NodeWant>,
    groups: Vec<Group>,
    is_silent: bool,
    is_draining: bool,
}

struct Group {
    slot: u16,
    attempt: u32,
    id: u64,
    port: u16,
    phase: Phase,
    view: Option<View>,
    failure: Option<(ProcessFailure, u64)>,
    end: Option<End>,
}

struct World {
    now: u64,
    machine: Machine,
    records: BTreeMap<String, Vec<u8>>,
    nodes: BTreeMap<String, Node>,
    next: u64,
    /// (generation, members in rank order, master) of each that ran.
    generations: Vec<(u64, Vec<String>, String)>,
}

const JOB: &str = "ddp-1";
const STEP: u64 = 10;

fn allowing() -> Config {
    Config { allow_commands: true, ..Config::default() }
}

fn file(elastic: &str) -> String {
    format!(
        "name = \"ddp\"\n[command]\nrun = [\"python3\", \"train.py\", \"$$x\", \"\"]\nprocesses = 2\n[elastic]\n{elastic}\n"
    )
}

impl World {
    fn new(nodes: &[&str], elastic: &str) -> World {
        let (machine, _) = Machine::new(Term(1), Millis(0), vec![], allowing());
        let mut world = World {
            now: 0,
            machine,
            records: BTreeMap::new(),
            nodes: BTreeMap::new(),
            next: 1,
            generations: Vec::new(),
        };
        nodes.iter().for_each(|name| world.join(name));
        let spec = parse(&file(elastic), &ParseContext::default()).unwrap().spec;
        let submit = Submit { spec_json: spec.canonical_json(), blobs: vec![], resume: None };
        let (job, request) = (job(), RequestId(1));
        let event = Event::Submit { request, submit, job, secret: vec![1], run_dir: "/r".into(), unix_ms: 1 };
        let replies = world.step(event);
        assert!(matches!(replies[..], [Reply::Submitted { .. }]), "{replies:?}");
        world
    }

    fn join(&mut self, name: &str) {
        self.next += 1;
        let node =
            Node { incarnation: self.next, slots: 4, want: None, groups: vec![], is_silent: false, is_draining: false };
        self.nodes.insert(name.into(), node);
    }

    fn step(&mut self, event: Event) -> Vec<Reply> {
        let Effects { persist, then_send, then_reply, .. } = self.machine.step(Millis(self.now), event);
        for Record { key, value } in persist {
            match value {
                Some(value) => self.records.insert(key, value),
                None => self.records.remove(&key),
            };
        }
        for (id, want) in then_send {
            if let Some(node) = self.nodes.get_mut(id.as_str()).filter(|n| !n.is_silent) {
                node.want = Some(want);
            }
        }
        then_reply.into_iter().map(|(_, reply)| reply).collect()
    }

    /// Another coordinator takes over what the store holds.
    fn change_leader(&mut self) {
        let records = self.records.iter().map(|(key, value)| Record { key: key.clone(), value: Some(value.clone()) });
        let term = Term(self.machine.term().0 + 1);
        let (machine, mistakes) = Machine::new(term, Millis(self.now), records.collect(), allowing());
        assert!(mistakes.is_empty(), "{mistakes:?}");
        self.machine = machine;
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms / STEP {
            self.now += STEP;
            let names: Vec<String> = self.nodes.keys().cloned().collect();
            for name in names {
                let node = self.nodes.get_mut(&name).expect("listed");
                node.obey(&mut self.next);
                if node.is_silent || !self.now.is_multiple_of(50) {
                    continue;
                }
                let report = node.report(&name, self.now);
                self.step(Event::Report(report, 1_000_000 + self.now));
            }
            self.step(Event::Tick);
            self.note();
        }
    }

    fn note(&mut self) {
        let wants = self.nodes.values().filter(|n| !n.is_silent).filter_map(|n| n.want.as_ref());
        let view = wants.flat_map(|w| &w.jobs).filter_map(|j| j.view.clone()).max_by_key(|v| v.epoch);
        let Some(view) = view.filter(|v| v.pace == Pace::Run && v.world_size() > 0) else { return };
        if self.generations.last().is_none_or(|(gen_, ..)| *gen_ < view.epoch.gen_.0) {
            let members = view.members.iter().map(|m| m.node.to_string()).collect();
            self.generations.push((view.epoch.gen_.0, members, view.members[0].address.clone()));
        }
    }

    fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.get_mut(name).expect("it joined")
    }

    fn group(&mut self, name: &str) -> &mut Group {
        self.node(name).groups.iter_mut().find(|g| g.end.is_none()).expect("a group runs there")
    }

    fn fail(&mut self, name: &str, code: i32, message: &str) {
        let now = self.now;
        let failure = ProcessFailure {
            rank: 0,
            end: End::Code(code),
            message: message.into(),
            age_ms: 0,
            port_taken: message.contains("EADDRINUSE"),
            error_file: Some(format!("{{\"message\": {message:?}}}")),
        };
        self.group(name).failure = Some((failure, now));
    }

    fn status(&self) -> JobStatus {
        self.machine.job(Millis(self.now), &job()).expect("it is known")
    }

    /// The nodes of the newest generation in rank order.
    #[track_caller]
    fn members(&self) -> Vec<&str> {
        self.generations.last().expect("one ran").1.iter().map(String::as_str).collect()
    }
}

fn job() -> JobId {
    JobId::parse(JOB).unwrap()
}

impl Node {
    fn obey(&mut self, next: &mut u64) {
        let Some(want) = &self.want else { return };
        self.groups.retain(|g| g.end.is_none() || !want.acknowledged.contains(&WorkerId(g.id)));
        let wanted = want.jobs.first();
        for group in self.groups.iter_mut().filter(|g| g.end.is_none()) {
            let slot = wanted.and_then(|j| j.slots.iter().find(|s| s.slot == group.slot));
            match slot {
                None => group.end = Some(End::Code(10)),
                Some(slot) if slot.attempt > group.attempt => group.end = Some(End::Signal(9)),
                Some(slot) if slot.leave => group.end = Some(End::Code(10)),
                Some(_) => group.obey(wanted.and_then(|j| j.view.as_ref())),
            }
        }
        for slot in wanted.iter().flat_map(|j| &j.slots) {
            let is_there = self.groups.iter().any(|g| g.slot == slot.slot && (g.attempt >= slot.attempt));
            if !is_there && !slot.leave && !self.is_draining {
                *next += 1;
                self.groups.push(Group {
                    slot: slot.slot,
                    attempt: slot.attempt,
                    id: *next,
                    port: 7000,
                    phase: Phase::Ready,
                    view: None,
                    failure: None,
                    end: None,
                });
            }
        }
    }

    fn report(&self, name: &str, now: u64) -> NodeReport {
        let workers = self.groups.iter().map(|g| {
            let status = Some(g.status(name, now));
            let process = match &g.end {
                Some(end) => Process::Exited { end: end.clone(), status },
                None => Process::Running { silent_ms: 0, status },
            };
            WorkerReport { job: job(), slot: g.slot, attempt: g.attempt, worker: WorkerId(g.id), process }
        });
        NodeReport {
            node: NodeId::parse(name).unwrap(),
            incarnation: self.incarnation,
            slots: self.slots,
            host: name.into(),
            log_address: "x:1".into(),
            log_token: String::new(),
            draining: self.is_draining,
            seen: self.want.as_ref().map_or(Epoch::default(), |w| Epoch::new(w.term.0, w.revision)),
            workers: workers.collect(),
        }
    }
}

impl Group {
    fn obey(&mut self, view: Option<&View>) {
        let Some(view) = view.filter(|v| self.view.as_ref().is_none_or(|old| old.epoch < v.epoch)) else { return };
        let is_master = view.members.first().is_some_and(|m| m.worker.0 == self.id);
        self.port += u16::from(is_master);
        self.view = Some(view.clone());
        self.failure = None;
        self.phase = if view.pace == Pace::Run { Phase::Active } else { Phase::Ready };
    }

    fn status(&self, name: &str, now: u64) -> WorkerStatus {
        WorkerStatus {
            address: format!("{name}:{}", self.port),
            numerics: 0,
            phase: self.phase,
            view: self.view.clone(),
            at: None,
            step: Step(0),
            steps_total: 0,
            progress: 0,
            waiting_on: vec![],
            lost_peers: vec![],
            metrics: None,
            published: None,
            error: None,
            stalls_ms: vec![],
            run_dir_id: None,
            unpublished: None,
            failure: self.failure.clone().map(|(failure, at)| ProcessFailure { age_ms: now - at, ..failure }),
        }
    }
}

#[test]
fn a_generation_has_one_group_on_each_node_and_its_end_is_the_jobs() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 4");
    world.run(1_000);
    assert_eq!(world.members(), ["a", "b"], "though each node has room for more");
    assert_eq!(world.status().reason, "4 processes on 2 nodes of at most 4, generation 1");
    world.group("a").phase = Phase::Finished;
    world.run(500);
    assert_eq!(world.status().state, JobState::Running);
    world.group("b").phase = Phase::Finished;
    world.run(200);
    let status = world.status();
    assert_eq!((status.state, status.exit_code, status.views), (JobState::Succeeded, Some(0), 1));
}

#[test]
fn nodes_that_join_together_make_one_generation_and_cost_no_restart() {
    let mut world = World::new(&["c"], "min_workers = 1\nmax_workers = 4\nrestarts = 0");
    world.run(1_000);
    world.join("a");
    world.run(300);
    world.join("b");
    world.run(2_000);
    assert_eq!(world.members(), ["c", "a", "b"], "who was there keeps its rank");
    assert_eq!(world.generations.len(), 2, "{:?}", world.generations);
    assert_eq!((world.status().restarts, world.status().state), (0, JobState::Running));
}

#[test]
fn every_generation_meets_at_another_place() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2\nrestarts = 5");
    world.run(1_000);
    for _ in 0..3 {
        world.fail("b", 1, "");
        world.run(5_000);
    }
    let masters: Vec<&str> = world.generations.iter().map(|(.., master)| master.as_str()).collect();
    assert_eq!(masters, ["a:7000", "a:7001", "a:7002", "a:7003"]);
}

#[test]
fn a_failure_is_charged_and_the_last_one_ends_the_job_with_its_code() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2\nrestarts = 1");
    world.run(1_000);
    world.fail("a", 7, "ValueError: boom");
    world.run(2_000);
    assert_eq!((world.status().restarts, world.generations.len()), (1, 2));
    world.fail("b", 9, "ValueError: again");
    world.run(2_000);
    let status = world.status();
    assert_eq!((status.state, status.exit_code), (JobState::Failed, Some(9)));
    assert_eq!(status.reason, "rank 0 exited with code 9: ValueError: again on b, after 1 restart");
    assert_eq!(status.error_file.as_deref(), Some("{\"message\": \"ValueError: again\"}"));
    let listed = world.machine.jobs(Millis(world.now));
    assert_eq!(listed[0].error_file, None, "a list of many stays small");
}

#[test]
fn the_root_cause_is_who_failed_first_not_who_was_heard_first() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2\nrestarts = 0");
    world.run(1_000);
    world.fail("b", 7, "root");
    world.now += 20;
    world.fail("a", 1, "connection closed by peer");
    world.run(1_000);
    assert_eq!(world.status().exit_code, Some(7), "{}", world.status().reason);
}

#[test]
fn the_failures_that_a_lost_node_brings_about_cost_nothing() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2\nrestarts = 0");
    world.run(1_000);
    assert_eq!(world.members(), ["a", "b"]);
    world.node("a").is_silent = true;
    world.fail("b", 1, "connection reset by peer");
    world.run(3_000);
    assert_eq!(world.members(), ["b"], "{}", world.status().reason);
    assert_eq!((world.status().restarts, world.status().state), (0, JobState::Running));
    let fault = world.status().last_fault.expect("the loss is told");
    assert!(fault.cause.contains("silent") && fault.node.as_str() == "a", "{fault:?}");
}

#[test]
fn a_group_that_is_killed_comes_back_into_the_next_generation() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2\nrestarts = 0");
    world.run(1_000);
    world.group("a").end = Some(End::Signal(9));
    world.run(2_000);
    assert_eq!(world.members(), ["b", "a"]);
    assert_eq!(world.generations.len(), 2, "one generation for the loss and the return");
    assert_eq!(world.status().restarts, 0);
}

#[test]
fn below_min_nodes_the_processes_stop_and_begin_when_there_are_enough_again() {
    let mut world = World::new(&["a", "b"], "min_workers = 2\nmax_workers = 2");
    world.run(1_000);
    world.node("b").is_silent = true;
    world.run(3_000);
    let status = world.status();
    assert_eq!(status.state, JobState::Paused);
    assert!(status.reason.starts_with("has 1 of at least 2 nodes"), "{}", status.reason);
    assert_eq!(world.group("a").phase, Phase::Ready, "its processes are told to stop");
    world.join("c");
    world.run(4_000);
    assert_eq!(world.members(), ["a", "c"]);
    assert_eq!(world.status().state, JobState::Running);
}

#[test]
fn a_drained_node_leaves_and_the_others_go_on() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2\nrestarts = 0");
    world.run(1_000);
    world.step(Event::Drain { request: RequestId(2), node: NodeId::parse("a").unwrap() });
    world.run(2_000);
    assert_eq!(world.members(), ["b"]);
    assert!(world.node("a").groups.is_empty(), "it was told to leave and its end was taken note of");
    assert_eq!((world.status().restarts, world.status().last_fault), (0, None));
}

#[test]
fn scaling_changes_the_generation() {
    let mut world = World::new(&["a", "b", "c"], "min_workers = 1\nmax_workers = 1");
    world.run(1_000);
    assert_eq!(world.members().len(), 1);
    let scale = |world: &mut World, max| world.step(Event::Scale { request: RequestId(3), job: job(), min: 1, max });
    assert_eq!(scale(&mut world, 3), [Reply::Done]);
    world.run(3_000);
    assert_eq!(world.members().len(), 3);
    scale(&mut world, 2);
    world.run(3_000);
    assert_eq!(world.members().len(), 2);
}

#[test]
fn nobody_joins_when_some_are_done() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 3");
    world.run(1_000);
    world.group("a").phase = Phase::Finished;
    world.join("c");
    world.run(3_000);
    assert_eq!(world.generations.len(), 1);
    world.group("b").phase = Phase::Finished;
    world.run(500);
    assert_eq!(world.status().state, JobState::Succeeded);
}

#[test]
fn a_node_that_is_lost_after_its_processes_are_done_is_not_missed() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 2");
    world.run(1_000);
    world.group("a").phase = Phase::Finished;
    world.run(200);
    world.node("a").is_silent = true;
    world.run(3_000);
    assert_eq!(world.generations.len(), 1);
    world.group("b").phase = Phase::Finished;
    world.run(500);
    assert_eq!(world.status().state, JobState::Succeeded);
}

#[test]
fn a_port_that_is_taken_begins_the_generation_again_without_a_charge_but_not_for_ever() {
    let mut world = World::new(&["a"], "min_workers = 1\nmax_workers = 1\nrestarts = 0");
    world.run(1_000);
    let mut tries = 0;
    while world.status().state == JobState::Running && tries < 20 {
        tries += 1;
        world.fail("a", 1, "EADDRINUSE");
        world.run(1_000);
    }
    assert_eq!((world.status().state, tries), (JobState::Failed, 6));
}

#[test]
fn a_new_coordinator_goes_on_with_the_generation_and_its_numbers() {
    let mut world = World::new(&["a", "b"], "min_workers = 1\nmax_workers = 3\nrestarts = 3");
    world.run(1_000);
    world.fail("a", 7, "boom");
    world.run(2_000);
    world.change_leader();
    world.run(6_000);
    assert_eq!(world.generations.len(), 2, "what runs is left alone: {:?}", world.generations);
    assert_eq!((world.status().state, world.status().restarts), (JobState::Running, 1));
    world.join("c");
    world.run(3_000);
    assert_eq!(world.generations.last().map(|(gen_, ..)| *gen_), Some(3));
}

#[test]
fn a_coordinator_runs_commands_only_where_its_policy_says_so() {
    let (mut machine, _) = Machine::new(Term(1), Millis(0), vec![], Config::default());
    let spec = parse(&file("min_workers = 1"), &ParseContext::default()).unwrap().spec;
    let submit = Submit { spec_json: spec.canonical_json(), blobs: vec![], resume: None };
    let request = RequestId(1);
    let event = Event::Submit { request, submit, job: job(), secret: vec![1], run_dir: "/r".into(), unix_ms: 1 };
    let effects = machine.step(Millis(0), event);
    assert_eq!(effects.then_reply, [(request, Reply::Refused(Refusal::CommandsForbidden))]);
}
