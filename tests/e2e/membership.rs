//! Nodes join, drain, and die with all that is on them.

use crate::cluster::{Cluster, assert_same, job_file, signal, wait_for};
use crate::faults::{ARGS, submit, undisturbed};

#[test]
fn an_agent_killed_with_its_workers_and_started_again_costs_no_bit() {
    let mut cluster = Cluster::start(None, 3);
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    cluster.until_step(&job, 50);
    let agent = cluster.agents.remove("n1").expect("n1 runs");
    let worker = agent.workers()[0];
    signal(agent.process.pid(), "KILL");
    signal(worker, "KILL");
    drop(agent);
    cluster.until_active(&job, 2);
    cluster.start_agent("n1", &[]);
    cluster.until_active(&job, 3);
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, undisturbed());
}

#[test]
fn the_workers_of_an_agent_killed_alone_end_with_it() {
    let mut cluster = Cluster::start(None, 2);
    let job = submit(&cluster);
    cluster.until_active(&job, 2);
    let agent = cluster.agents.remove("n0").expect("n0 runs");
    let worker = agent.workers()[0];
    signal(agent.process.pid(), "KILL");
    wait_for("the worker ends", 5, || (!crate::cluster::is_alive(worker)).then_some(()));
    drop(agent);
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, undisturbed());
}

#[test]
fn a_node_joins_another_drains_and_nothing_is_charged() {
    let mut cluster = Cluster::start(None, 2);
    let job = submit(&cluster);
    cluster.until_active(&job, 2);
    cluster.until_step(&job, 50);
    cluster.start_agent("n2", &[]);
    cluster.until_active(&job, 3);
    let mut leaver = cluster.agents.remove("n0").expect("n0 runs");
    signal(leaver.process.pid(), "TERM");
    let ended = wait_for("the drained agent ends", 30, || leaver.process.0.try_wait().expect("its state is known"));
    assert!(ended.success(), "a drain ends with {ended}");
    cluster.until_active(&job, 2);
    let (status, proof) = cluster.until_done(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    assert_eq!(status["last_fault"], serde_json::Value::Null, "{status:#}");
    assert_same(&proof, undisturbed());
}

#[test]
fn a_job_scaled_down_to_one_and_up_again_has_the_same_bits() {
    let cluster = Cluster::start(None, 3);
    let job = submit(&cluster);
    cluster.until_active(&job, 3);
    let scale = |max: &str| {
        let url = cluster.url();
        let mut command = std::process::Command::new(crate::cluster::elastic());
        crate::cluster::run(command.args(["scale", &job, "--max", max, "--coordinator", &url]));
    };
    scale("1");
    cluster.until_active(&job, 1);
    scale("3");
    cluster.until_active(&job, 3);
    let (status, proof) = cluster.until_done(&job);
    assert_eq!(status["restarts"], 0, "{status:#}");
    assert_same(&proof, undisturbed());
}

#[test]
fn below_min_workers_the_job_pauses_and_goes_on_where_it_was() {
    let mut cluster = Cluster::start(None, 2);
    let args: Vec<&str> = ARGS.iter().copied().chain(["--workers", "2", "--set", "elastic.min_workers=2"]).collect();
    let job = cluster.submit(&job_file("cnn"), &args);
    cluster.until_active(&job, 2);
    cluster.until_step(&job, 50);
    cluster.agents.remove("n1");
    let paused = wait_for("the pause", 20, || cluster.status(&job).filter(|s| s["state"] == "paused"));
    assert!(paused["reason"].as_str().is_some_and(|r| r.contains("min_workers")), "{paused:#}");
    cluster.start_agent("n1", &[]);
    let (_, proof) = cluster.until_done(&job);
    assert_same(&proof, undisturbed());
}
