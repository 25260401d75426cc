//! Ranks as real processes over TCP, failing at the protocol's places, against an undisturbed run's digests.
//!
//! The test is agent and coordinator at once (`cluster`); the workers are this very program, started again.

mod cluster;

use cluster::{Cluster, Outcome, Plan};
use elastic_spec::view::exit;
use elastic_tensor::nn::{Module, Scope};
use elastic_tensor::{Result, Tensor, compile};
use std::sync::OnceLock;

/// Two layers of more than one chunk, so that more than one rank owns something.
struct Wide(usize);

impl Module for Wide {
    fn forward(&self, nn: &Scope, x: Tensor) -> Result<Tensor> {
        let hidden = nn.linear("hidden", &x, self.0)?.relu();
        nn.linear("output", &hidden, nn.outputs())
    }
}

/// Not a test of its own: the worker that the others start.
#[test]
fn a_worker_process() {
    if std::env::var_os("ELASTIC_AGENT_SOCKET").is_some() {
        elastic_worker::main_with(|data, samples, params| {
            let width = params["width"].as_u64().ok_or(format!("model.params.width is {}", params["width"]))?;
            compile(&Wide(width as usize), data, samples)
        });
    }
}

fn undisturbed() -> &'static Outcome {
    static OUTCOME: OnceLock<Outcome> = OnceLock::new();
    OUTCOME.get_or_init(|| Cluster::run(Plan::of(1)))
}

fn undisturbed_and_long() -> &'static Outcome {
    static OUTCOME: OnceLock<Outcome> = OnceLock::new();
    OUTCOME.get_or_init(|| Cluster::run(Plan::long(1)))
}

fn same_as_undisturbed(plan: Plan) {
    let what = format!("{plan:?}");
    let fails = plan.fail.is_some();
    let wanted = if plan.steps == Plan::of(1).steps { undisturbed() } else { undisturbed_and_long() };
    let outcome = Cluster::run(plan);
    assert_eq!(outcome.faults > 0, fails, "{what}: the fault is to happen, {} did", outcome.faults);
    assert_eq!(outcome.digests, wanted.digests, "{what}");
    assert!(outcome.events == wanted.events, "{what}: the event log differs");
}

#[test]
fn two_and_three_processes_end_with_the_bits_of_one() {
    same_as_undisturbed(Plan::of(2));
    same_as_undisturbed(Plan::of(3));
}

#[test]
fn the_event_log_has_one_row_a_step() {
    let outcome = undisturbed();
    let steps =
        outcome.events.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].clone());
    assert!(steps.eq(1..=Plan::of(1).steps), "each step once, in order");
}

fn killed(rank: usize, point: &str) {
    for hit in [1, 2] {
        same_as_undisturbed(Plan::of(2).failing(rank, &format!("{point}:{hit}:kill")));
    }
}

#[test]
fn a_kill_while_computing_costs_no_bit() {
    killed(0, "before-compute");
    killed(1, "after-leaf");
    killed(1, "after-compute");
}

#[test]
fn a_kill_between_segments_and_chunks_costs_no_bit() {
    killed(1, "after-contribute");
    killed(0, "owner-summed");
    killed(0, "after-reduced-sent");
}

#[test]
fn a_kill_around_the_update_costs_no_bit() {
    killed(0, "before-apply");
    killed(1, "after-apply");
    killed(0, "at-sent");
}

#[test]
fn a_kill_of_the_writer_while_it_publishes_costs_no_bit() {
    for point in ["publish-begin", "publish-before-rename", "publish-after-rename"] {
        killed(0, point);
    }
}

#[test]
fn a_kill_at_the_very_end_costs_no_bit() {
    same_as_undisturbed(Plan::of(2).failing(0, "finished:1:kill"));
    same_as_undisturbed(Plan::of(2).failing(1, "finished:1:kill"));
    let steps = Plan::of(2).steps;
    let last = steps + steps / cluster::VALIDATE_EVERY;
    for point in ["before-apply", "after-apply"] {
        same_as_undisturbed(Plan::of(2).failing(1, &format!("{point}:{last}:kill")));
    }
}

#[test]
fn a_kill_when_a_new_view_arrives_costs_no_bit() {
    same_as_undisturbed(Plan::of(3).failing(1, "view-received:1:kill"));
    same_as_undisturbed(Plan::of(2).growing(10, 3).failing(0, "view-received:2:kill"));
}

#[test]
fn a_kill_of_a_joiner_or_of_who_serves_it_costs_no_bit() {
    let growing = || Plan::long(2).growing(320, 3);
    same_as_undisturbed(growing());
    same_as_undisturbed(growing().failing_once("state-taken:1:kill"));
    for point in ["before-install", "after-install"] {
        same_as_undisturbed(growing().failing(2, &format!("{point}:1:kill")));
    }
}

#[test]
fn a_stopped_process_is_replaced_and_costs_no_bit() {
    same_as_undisturbed(Plan::of(2).failing(1, "after-compute:7:stop"));
    same_as_undisturbed(Plan::of(3).failing(0, "owner-summed:7:stop"));
}

#[test]
fn a_training_thread_that_spins_is_replaced_though_its_heart_beats() {
    same_as_undisturbed(Plan::of(2).failing(1, "before-compute:7:spin"));
}

#[test]
fn all_killed_at_once_go_on_from_the_newest_checkpoint() {
    same_as_undisturbed(Plan::of(1).failing(0, "after-apply:170:kill"));
    same_as_undisturbed(Plan::of(1).failing(0, "publish-before-rename:2:kill"));
}

#[test]
fn a_worker_ends_with_its_agent() {
    let mut cluster = Cluster::start(Plan::of(1));
    cluster.until("ready", |s| s.at.is_some());
    assert_eq!(cluster.leave_the_workers_alone(), vec![Some(exit::ORPHANED)]);
}

#[test]
fn a_mistake_of_the_user_is_told_before_the_worker_ends() {
    let mut plan = Plan::of(1);
    plan.params = serde_json::json!({ "width": "broad" });
    let mut cluster = Cluster::start(plan);
    cluster.until("an error", |s| s.error.as_deref() == Some("build the model: model.params.width is \"broad\""));
    assert_eq!(cluster.wait_for_exit(0), Some(exit::USER_ERROR));
}

#[test]
fn a_worker_that_shall_leave_does_so_once_it_is_out_of_the_view() {
    let mut cluster = Cluster::start(Plan::of(2));
    cluster.until("ready", |s| s.at.is_some());
    cluster.put_in_force(&[0, 1]);
    cluster.until("step 20", |s| s.step.0 >= 20);
    cluster.ask_to_leave(1);
    cluster.put_in_force(&[0]);
    assert_eq!(cluster.wait_for_exit(1), Some(exit::DRAINED));
    assert_eq!(cluster.go_on().digests, undisturbed().digests);
}
