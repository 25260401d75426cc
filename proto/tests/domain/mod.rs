//! Draws domain values within their bounds.

use elastic_spec::api::{Fault, JobState, JobStatus, LogPiece, MemberStatus, NodeStatus, Scale};
use elastic_spec::facts::{
    End, JobWant, Launch, Metrics, NodeReport, NodeWant, Phase, Process, ProcessFailure, Published, SlotWant,
    Unpublished, WorkerReport, WorkerStatus, WorkerUp,
};
use elastic_spec::layout::Tail;
use elastic_spec::view::{Pace, Role, View, ViewMember, WorkerOrder};
use elastic_spec::{Digest, Epoch, JobId, NodeId, Rank, Round, Step, Term, WorkerId};
use proptest::collection::{btree_set, vec};
use proptest::option::of;
use proptest::prelude::*;

pub fn job() -> impl Strategy<Value = JobId> {
    "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?".prop_map(|name| JobId::parse(&name).expect("drawn as a name"))
}

pub fn node() -> impl Strategy<Value = NodeId> {
    "[a-z0-9]([a-z0-9._-]{0,20}[a-z0-9])?".prop_map(|name| NodeId::parse(&name).expect("drawn as a name"))
}

fn worker() -> impl Strategy<Value = WorkerId> {
    any::<u64>().prop_map(WorkerId)
}

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<(u64, u64)>().prop_map(|(term, gen_)| Epoch::new(term, gen_))
}

fn address() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z0-9.-]{1,20}:[1-9][0-9]{0,3}", Just("[::1]:7070".to_string())]
}

/// Active members first, a map of a power of two of shards onto them.
pub fn view() -> impl Strategy<Value = View> {
    let members = (btree_set(any::<u64>(), 0..6), any::<proptest::sample::Index>());
    let fields = (job(), epoch(), any::<bool>(), vec((node(), address()), 6), 0u32..5, any::<u64>());
    (members, fields).prop_map(|((ids, cut), (job, epoch, run, places, power, seed))| {
        let active = if ids.is_empty() { 0 } else { cut.index(ids.len() + 1) };
        let members = ids.into_iter().zip(places).enumerate().map(|(i, (id, (node, address)))| ViewMember {
            worker: WorkerId(id),
            node,
            address,
            role: if i < active { Role::Active } else { Role::Learner },
        });
        let shards = if active == 0 { 0 } else { 1u64 << power };
        let shard_map = (0..shards).map(|s| Rank((seed.wrapping_add(s) % active.max(1) as u64) as u16)).collect();
        let pace = if run { Pace::Run } else { Pace::Pause };
        View { job, epoch, pace, members: members.collect(), shard_map }
    })
}

fn tail() -> impl Strategy<Value = Tail> {
    any::<(f64, u64, u64)>().prop_map(|(loss, count, correct)| Tail { loss, count, correct })
}

fn metrics() -> impl Strategy<Value = Metrics> {
    let validation = of((any::<u64>().prop_map(Step), tail()));
    (any::<(u64, f64, f64, u64, u64, u64)>(), tail(), validation).prop_map(
        |((step, lr, grad_norm, skipped, step_us, input_wait_us), train, validation)| Metrics {
            step: Step(step),
            train,
            lr,
            grad_norm,
            skipped,
            validation,
            step_us,
            input_wait_us,
        },
    )
}

fn published() -> impl Strategy<Value = Published> {
    (any::<(u64, u64)>(), ".{1,40}", digest(), digest()).prop_map(|((round, step), path, weights, state)| Published {
        round: Round(round),
        step: Step(step),
        path,
        weights_sha256: weights,
        state_sha256: state,
    })
}

fn phase() -> impl Strategy<Value = Phase> {
    use Phase::*;
    prop::sample::select(vec![Booting, Ready, Learning, CaughtUp, Active, Finished])
}

fn failure() -> impl Strategy<Value = ProcessFailure> {
    (any::<u32>(), end(), ".{0,60}", any::<u64>(), any::<bool>(), of(".{0,60}")).prop_map(
        |(rank, end, message, age_ms, port_taken, error_file)| ProcessFailure {
            rank,
            end,
            message,
            age_ms,
            port_taken,
            error_file,
        },
    )
}

fn unpublished() -> impl Strategy<Value = Unpublished> {
    (any::<(u64, u64)>(), ".{0,40}").prop_map(|((round, since_unix_ms), error)| Unpublished {
        round: Round(round),
        error,
        since_unix_ms,
    })
}

pub fn status() -> impl Strategy<Value = WorkerStatus> {
    let who = (address(), any::<u64>(), phase(), of(view()));
    let at = (of(any::<u64>()), any::<(u64, u64, u64)>(), vec(worker(), 0..4), vec(worker(), 0..4));
    let more = (of(metrics()), of(published()), of(".{0,60}"), vec(any::<u32>(), 0..8));
    let disk = (of(any::<u64>()), of(unpublished()), of(failure()));
    (who, at, more, disk).prop_map(|(who, at, more, disk)| WorkerStatus {
        address: who.0,
        numerics: who.1,
        phase: who.2,
        view: who.3,
        at: at.0.map(Round),
        step: Step(at.1.0),
        steps_total: at.1.1,
        progress: at.1.2,
        waiting_on: at.2,
        lost_peers: at.3,
        metrics: more.0,
        published: more.1,
        error: more.2,
        stalls_ms: more.3,
        run_dir_id: disk.0,
        unpublished: disk.1,
        failure: disk.2,
    })
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        any::<i32>().prop_map(End::Code),
        any::<i32>().prop_map(End::Signal),
        ".{0,40}".prop_map(End::Unstartable)
    ]
}

fn process() -> impl Strategy<Value = Process> {
    prop_oneof![
        (any::<u64>(), of(status())).prop_map(|(silent_ms, status)| Process::Running { silent_ms, status }),
        (end(), of(status())).prop_map(|(end, status)| Process::Exited { end, status }),
    ]
}

fn worker_report() -> impl Strategy<Value = WorkerReport> {
    (job(), any::<(u16, u32)>(), worker(), process()).prop_map(|(job, (slot, attempt), worker, process)| WorkerReport {
        job,
        slot,
        attempt,
        worker,
        process,
    })
}

pub fn report() -> impl Strategy<Value = NodeReport> {
    let log = (address(), "[a-f0-9]{0,64}");
    let who = (node(), (1u64.., any::<u16>(), any::<bool>()), "[a-z0-9.]{1,20}", log);
    (who, epoch(), vec(worker_report(), 0..4)).prop_map(|(who, seen, workers)| NodeReport {
        node: who.0,
        incarnation: who.1.0,
        slots: who.1.1,
        draining: who.1.2,
        host: who.2,
        log_address: who.3.0,
        log_token: who.3.1,
        seen,
        workers,
    })
}

pub fn worker_up() -> impl Strategy<Value = WorkerUp> {
    prop_oneof![
        (worker(), "[a-f0-9]{1,64}").prop_map(|(worker, token)| WorkerUp::Hello { worker, token }),
        status().prop_map(|status| WorkerUp::Status(Box::new(status))),
    ]
}

pub fn order() -> impl Strategy<Value = WorkerOrder> {
    (of(view()), any::<bool>(), any::<u32>()).prop_map(|(view, leave, restarts)| WorkerOrder { view, leave, restarts })
}

fn launch() -> impl Strategy<Value = Launch> {
    let program = of(".{1,30}");
    (".{0,200}", vec((".{1,30}", digest()), 0..3), vec(any::<u8>(), 0..40), ".{1,30}", program)
        .prop_map(|(spec_json, blobs, secret, run_dir, program)| Launch { spec_json, blobs, secret, run_dir, program })
}

fn job_want() -> impl Strategy<Value = JobWant> {
    let slot = any::<(u16, u32, bool)>().prop_map(|(slot, attempt, leave)| SlotWant { slot, attempt, leave });
    (job(), digest(), launch(), vec(slot, 0..4), of(view()), any::<u32>())
        .prop_map(|(job, config, launch, slots, view, restarts)| JobWant { job, config, launch, slots, view, restarts })
}

pub fn want() -> impl Strategy<Value = NodeWant> {
    (any::<(u64, u64)>(), vec(job_want(), 0..3), vec(worker(), 0..4))
        .prop_map(|((term, revision), jobs, acknowledged)| NodeWant { term: Term(term), revision, jobs, acknowledged })
}

pub fn scale() -> impl Strategy<Value = Scale> {
    (job(), 1u16..1024).prop_flat_map(|(job, min)| {
        (Just(job), min..=1024).prop_map(move |(job, max)| Scale { job, min_workers: min, max_workers: max })
    })
}

fn member_status() -> impl Strategy<Value = MemberStatus> {
    let role = of(prop::sample::select(vec![Role::Active, Role::Learner]));
    (worker(), node(), any::<(u16, u64, u16)>(), of(any::<u16>()), role, of(any::<u64>())).prop_map(
        |(worker, node, (slot, silent_ms, shards), rank, role, round)| MemberStatus {
            worker,
            node,
            slot,
            rank: rank.map(Rank),
            role,
            round: round.map(Round),
            silent_ms,
            shards,
        },
    )
}

fn fault() -> impl Strategy<Value = Fault> {
    (any::<u64>(), node(), worker(), ".{0,40}").prop_map(|(unix_ms, node, worker, cause)| Fault {
        unix_ms,
        node,
        worker,
        cause,
    })
}

pub fn job_status() -> impl Strategy<Value = JobStatus> {
    use JobState::*;
    let state = prop::sample::select(vec![Pending, Running, Paused, Succeeded, Failed, Cancelled]);
    let words = (job(), ".{0,20}", state, ".{0,40}", ".{0,40}");
    let numbers = (any::<(u64, u64, u64, u64, u64)>(), any::<(u32, u16, u16, f64)>(), vec(any::<u32>(), 0..8));
    let parts = (of(epoch()), vec(member_status(), 0..4), of(metrics()), of(fault()), of(published()));
    let ended = (of(any::<u8>()), any::<bool>(), of(".{0,40}"));
    let disk = (of(node()), of(".{0,40}"), of((node(), unpublished())), ended);
    (words, numbers, parts, disk).prop_map(|(words, numbers, parts, disk)| JobStatus {
        job: words.0,
        name: words.1,
        state: words.2,
        reason: words.3,
        run_dir: words.4,
        round: Round(numbers.0.0),
        step: Step(numbers.0.1),
        steps_total: numbers.0.2,
        views: numbers.0.3,
        submitted_unix_ms: numbers.0.4,
        restarts: numbers.1.0,
        min_workers: numbers.1.1,
        max_workers: numbers.1.2,
        samples_per_second: numbers.1.3,
        stalls_ms: numbers.2,
        epoch: parts.0,
        members: parts.1,
        metrics: parts.2,
        last_fault: parts.3,
        published: parts.4,
        published_on: disk.0,
        run_dir_differs: disk.1,
        unpublished: disk.2,
        exit_code: disk.3.0,
        is_command: disk.3.1,
        error_file: disk.3.2,
    })
}

pub fn node_status() -> impl Strategy<Value = NodeStatus> {
    (node(), ".{0,20}", any::<(u16, u16, bool, u64, u32)>(), vec(job(), 0..4)).prop_map(
        |(node, host, (slots, used, draining, silent_ms, strikes), jobs)| NodeStatus {
            node,
            host,
            slots,
            used,
            draining,
            silent_ms,
            jobs,
            strikes,
        },
    )
}

pub fn log_piece() -> impl Strategy<Value = LogPiece> {
    prop_oneof![
        (node(), ".{0,40}").prop_map(|(node, why)| LogPiece::Missing { node, why }),
        (node(), of(any::<u16>()), any::<u16>(), vec(any::<u8>(), 0..100)).prop_map(|(node, rank, slot, text)| {
            LogPiece::Text { node, rank: rank.map(Rank), slot, text: text.into() }
        }),
    ]
}
